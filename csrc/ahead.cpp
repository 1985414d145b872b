// SPDX-License-Identifier: Apache-2.0
// What is mapped and created ahead by the driver's thread. What to do is decided here, under the cache's lock; the
// thread only makes calls. Nothing is held by it: a page mapped ahead is free, or the tree's, as before.
#include <algorithm>

#include "errors.h"
#include "kv_cache.h"

namespace vt {
namespace {

constexpr PageId kMostStock = 64;          // pages
constexpr std::size_t kLeastPrepared = 4;  // whole pages of a prefix

}  // namespace

// Takes note of what the thread has done.
void KVCache::harvest() {
  if (!driver_->any_ended()) return;
  for (const auto& [ticket, done] : driver_->take_ended()) {
    std::erase(slots_[pending_.at(ticket).slot].pending, ticket);
    end_ahead(ticket, done);
  }
}

// done: nothing if the thread did not come to it.
void KVCache::end_ahead(DriverWorker::Ticket ticket, std::optional<bool> done) {
  const auto found = pending_.find(ticket);
  const auto [slot, index, page] = found->second;
  pending_.erase(found);
  if (done.value_or(false)) {
    arena_.note({slot, index, page});
    try {
      clear_if_new(page, slot, index);  // it may be read as a guard before it is taken
      ++counters_.pages_mapped_ahead;
      return;
    } catch (const DriverError&) {  // as if it had not been mapped; who needs the page meets the error
      arena_.unmap_index(slot, index);
    }
  } else if (done) {  // it may have come as far as to unmap what was there
    arena_.note({slot, index, kNoPage});
  }
  pool_.unreserve(page);
}

// Nothing is under way for these page indices of the slot after this: they can be changed.
void KVCache::settle(SlotId slot, std::size_t first, std::size_t last) {
  std::vector<DriverWorker::Ticket>& pending = slots_[slot].pending;
  if (pending.empty()) return;
  const auto others = std::partition(pending.begin(), pending.end(), [&](DriverWorker::Ticket ticket) {
    const std::size_t index = pending_.at(ticket).index;
    return first <= index && index < last;
  });
  const std::vector<DriverWorker::Ticket> tickets(pending.begin(), others);
  pending.erase(pending.begin(), others);
  if (tickets.empty()) return;
  for (const auto& [ticket, done] : driver_->settle(tickets)) end_ahead(ticket, done);
}

void KVCache::settle_all() {
  if (pending_.empty()) return;
  for (SlotId slot = 0; slot < slots_.size(); ++slot) settle(slot, 0, arena_.slot_pages());
}

void KVCache::finish_ahead() {
  const std::lock_guard guard(mutex_);
  driver_->drain();
  harvest();
}

void KVCache::post_ahead(const Ahead& ahead, DriverWorker::Priority priority) {
  const DriverWorker::Ticket ticket = driver_->post({arena_.address(ahead.slot, ahead.index), ahead.page}, priority);
  pending_.emplace(ticket, ahead);
  slots_[ahead.slot].pending.push_back(ticket);
}

// A page that is free and kept for nobody, or that can be created at once. Evicting for it would be too early.
PageId KVCache::page_to_map_ahead() {
  if (pool_.free() > pool_.reserved()) return pool_.first_free();  // those that are kept come last
  const PageId next = pool_.next_new();
  if (next == kNoPage || pool_.creatable() == 0 || !driver_->prepared(next)) return kNoPage;
  return create_page();
}

// The page behind a live slot's last, where nothing is mapped, or the padding page, which was mapped for forwards that
// read behind the tokens, and none does any more (invariant 5). One a slot, which comes before all prefixes that wait.
void KVCache::map_ahead(SlotId slot, std::size_t guard_tokens) {
  if (!map_ahead_) return;
  const Slot& it = slots_[slot];
  const std::size_t index = it.pages;
  if (index == arena_.slot_pages()) return;
  if (const PageId mapped = arena_.mapped(slot, index); mapped != kNoPage) {
    const bool was_guard = mapped == arena_.mapped(kPaddingSlot, 0);
    if (!was_guard || guard_tokens > 0 || it.guard_reader > completed_) return;
  }
  if (arena_.runs() + 2 * (pending_.size() + 1) > arena_.mapping_limit()) return;
  const auto is_here = [&](DriverWorker::Ticket ticket) { return pending_.at(ticket).index == index; };
  if (std::any_of(it.pending.begin(), it.pending.end(), is_here)) return;
  try {
    const PageId page = page_to_map_ahead();
    if (page == kNoPage) return;
    pool_.reserve(page);
    post_ahead({slot, static_cast<std::uint32_t>(index), page}, DriverWorker::Priority::kSoon);
  } catch (const DriverError&) {  // whoever needs the page meets it
  }
}

// A forward is to read behind the slot's last page, so that what is mapped there may no more be replaced.
void KVCache::keep_guards(SlotId slot) {
  const std::size_t index = slots_[slot].pages;
  if (arena_.mapped(slot, index) != kNoPage) settle(slot, index, index + 1);
}

// A request ends: what was mapped for its growth is for others.
void KVCache::unreserve(SlotId slot) {
  const PageId page = arena_.mapped(slot, slots_[slot].pages);
  if (page != kNoPage) pool_.unreserve(page);
  for (const DriverWorker::Ticket ticket : slots_[slot].pending) pool_.unreserve(pending_.at(ticket).page);
}

// Maps the deepest prefix of a path that branches in a slot which maps nothing, if all that map it are in use: so that
// the next request with that prefix finds it there.
void KVCache::prepare_slot(Node* node) {
  if (!map_ahead_ || unmapped_.empty()) return;
  while (!node->is_root() && node->children.size() < 2) node = node->parent;
  if (node->is_root() || node->idle_slots > 0 || whole_pages(node) < kLeastPrepared) return;
  map_in_spare_slot(node);
}

std::size_t KVCache::prepare(NodeHandle handle, std::size_t least_pages, std::size_t spare_pages) {
  const std::lock_guard guard(mutex_);
  if (!map_ahead_ || handle == 0) return 0;
  harvest();
  Node* node = tree_.at(handle);
  if (whole_pages(node) < least_pages || (idle_.empty() && unmapped_.empty())) return 0;
  std::vector<PageId>& path = scratch_.path;
  path.clear();
  tree_.collect(node, path);
  const std::span<const PageId> prefix(path.data(), whole_pages(node));
  begin_choice(path);
  const std::size_t copies = most_copies(0, spare_pages);
  const SlotId slot = choose_slot_to_copy_to(choose_slot(node, path), prefix, copies);
  // One that was prepared before, for this node or one close to it: what failed there is left to the bind, which will
  // choose as it is chosen here.
  if (slots_[slot].prepared) return slots_[slot].pending.size();
  return pages_to_map(slot, prefix, copies) < least_pages ? 0 : map_in_spare_slot(node);
}

std::size_t KVCache::whole_pages(const Node* node) const {
  return node->end * geometry_.token_bytes / geometry_.page_bytes;
}

// Maps a path in a slot that maps nothing, if there is one and more may be mapped. Returns the pages to come.
std::size_t KVCache::map_in_spare_slot(Node* node) {
  const std::size_t pages = whole_pages(node);
  if (unmapped_.empty() || !may_map_more(pages)) return 0;
  if (arena_.runs() + 2 * (pending_.size() + pages) > arena_.mapping_limit()) return 0;
  const SlotId slot = unmapped_.front();
  settle(slot, 0, arena_.slot_pages());
  std::vector<PageId> path;
  tree_.collect(node, path);
  for (std::size_t index = 0; index < pages; ++index)
    if (arena_.mapped(slot, index) != path[index])
      post_ahead({slot, static_cast<std::uint32_t>(index), path[index]}, DriverWorker::Priority::kLater);
  idle_.splice(idle_.end(), unmapped_, slots_[slot].idle);
  slots_[slot].unmapped = false;
  slots_[slot].prepared = true;
  tree_.attach(slot, node, true);
  return slots_[slot].pending.size();
}

// A prepared slot is taken before others that map the prefix, having nothing besides; and then it maps pages of its
// own. Once more pages are mapped than should be, it is as if it mapped nothing, and no more are mapped for it.
void KVCache::dissolve(SlotId slot) {
  settle(slot, 0, arena_.slot_pages());
  tree_.detach(slot);
  unmapped_.splice(unmapped_.begin(), idle_, slots_[slot].idle);
  slots_[slot].unmapped = true;
  slots_[slot].prepared = false;
}

// Has memory taken for the pages that are created next, as many as there are live slots.
void KVCache::stock_up() {
  const PageId next = pool_.next_new();
  if (!map_ahead_ || next == kNoPage || pool_.withheld() > 0) return;
  stocked_until_ = std::max(stocked_until_, next);
  const PageId wanted = next + std::min({kMostStock, static_cast<PageId>(live_slots_), pool_.creatable()});
  for (; stocked_until_ < wanted; ++stocked_until_) driver_->post_prepare(stocked_until_);
}

// Returns pages given back.
std::size_t KVCache::give_back_stock() {
  if (!map_ahead_) return 0;
  driver_->cancel_preparing();
  std::size_t pages = 0;
  for (PageId page = 0; page < pool_.budget(); ++page)
    if (driver_->prepared(page)) pages += driver_->unprepare(page);
  stocked_until_ = 0;
  return pages;
}

}  // namespace vt
