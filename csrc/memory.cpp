// SPDX-License-Identifier: Apache-2.0
// Where pages come from and go to: created, evicted, taken, mapped, shed and given back.
#include <algorithm>
#include <cerrno>
#include <string>

#include "errors.h"
#include "kv_cache.h"

namespace vt {
namespace {

// After a page could not be created. Counted and not timed, so that the same calls always do the same (invariant 7);
// a second or two of decoding.
constexpr std::uint64_t kForwardsBeforeRetry = 64;

}  // namespace

// ---- eviction

std::size_t KVCache::evict(std::size_t pages) {
  const std::lock_guard guard(mutex_);
  return evict_until(pool_.available() + pages);
}

std::size_t KVCache::evict_tokens(std::size_t tokens) {
  const std::lock_guard guard(mutex_);
  const std::size_t available = pool_.available();
  const std::size_t wanted = geometry_.pages_for(geometry_.tokens_in(available) + tokens);
  return evict_until(wanted);
}

// The tokens of the leaf that was evicted; nothing if all are locked.
std::optional<std::size_t> KVCache::evict_one() {
  const auto evicted = tree_.evict_oldest();
  if (!evicted) return std::nullopt;
  ++counters_.nodes_evicted;
  counters_.tokens_evicted += evicted->tokens;
  return evicted->tokens;
}

// Evicts until this many pages can be taken, as far as that goes. Returns tokens evicted.
std::size_t KVCache::evict_until(std::size_t available) {
  std::size_t tokens = 0;
  while (pool_.available() < available) {
    const auto evicted = evict_one();
    if (!evicted) break;
    tokens += *evicted;
  }
  return tokens;
}

// Evicts what is held above the limit, as far as it is not pinned.
void KVCache::evict_excess() {
  while (pool_.excess() > 0 && evict_one()) {
  }
}

std::size_t KVCache::mappable_pages() const {
  const std::lock_guard guard(mutex_);
  return room_for_mappings();
}

// A page is a run at most and a gap after it another, so two are reckoned for each.
std::size_t KVCache::room_for_mappings() const {
  std::size_t kept = 0;
  for (SlotId slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].state == State::kIdle) continue;
    // Of a live slot what lies past its pages can be shed; the gap after them stays.
    const bool live = slots_[slot].state == State::kLive;
    kept += live ? std::min(arena_.runs(slot), slots_[slot].pages + 1) : arena_.runs(slot);
  }
  return kept < arena_.mapping_limit() ? (arena_.mapping_limit() - kept) / 2 : 0;
}

bool KVCache::make_room(std::size_t pages) {
  const std::lock_guard guard(mutex_);
  if (arena_.runs() + 2 * pages > arena_.mapping_limit() && room_for_mappings() < pages) return false;
  return free_pages(pages);
}

void KVCache::create_ahead(std::size_t pages, bool retry) {
  const std::lock_guard guard(mutex_);
  retry_withheld(retry);
  create_pages(pages);
}

// ---- taking pages

// kNoPage for lack of memory.
PageId KVCache::create_page() {
  PageId page = kNoPage;
  try {
    page = pool_.create();
  } catch (const OutOfMemory&) {
    if (give_back_stock() > 0) return create_page();  // it was for other pages
    retry_at_ = begun_ + kForwardsBeforeRetry;
    ++counters_.creations_failed;
    return kNoPage;
  }
  ++counters_.pages_created;
  if (move_pages_) {
    try {
      driver_->ready_to_move(page);
    } catch (const DriverError&) {  // then at its first move
    }
  }
  return page;
}

void KVCache::create_pages(std::size_t pages) {
  while (pool_.free() < pages + pool_.reserved() && pool_.creatable() > 0 && create_page() != kNoPage) {
  }
}

void KVCache::retry_withheld(bool now) {
  if (pool_.withheld() > 0 && pool_.created() < pool_.limit() && (now || begun_ >= retry_at_)) create_page();
}

// Creates and evicts until this many pages are free, so that taking them cannot fail. False where that cannot be.
bool KVCache::free_pages(std::size_t pages) {
  const auto deliverable = [&] { return pool_.available() + pool_.reclaimable() >= pages; };
  retry_withheld(false);
  if (!deliverable()) return false;
  create_pages(pages);
  if (!deliverable()) return false;
  evict_until(pages);
  return true;
}

void KVCache::require(std::size_t pages) {
  if (!free_pages(pages)) throw OutOfPages(pages, pool_.available() + pool_.reclaimable());
}

void KVCache::acquire(std::vector<Fresh>& fresh) {
  scratch_.planned.clear();
  // First those that cost nothing, before take() can hand one of them to another index.
  constexpr std::size_t kAhead = 8;
  for (std::size_t i = 0; i < fresh.size(); ++i) {
    Fresh& it = fresh[i];
    if (i + kAhead < fresh.size())  // what is mapped there lies anywhere
      if (const PageId page = arena_.mapped(fresh[i + kAhead].slot, fresh[i + kAhead].index); page != kNoPage)
        pool_.prefetch(page);
    if (const PageId page = arena_.mapped(it.slot, it.index); page != kNoPage && pool_.claim(page)) it.page = page;
  }
  for (std::size_t i = 0; i < fresh.size(); ++i) {
    Fresh& it = fresh[i];
    if (it.page != kNoPage) continue;
    const PageId mapped = move_pages_ ? arena_.mapped(it.slot, it.index) : kNoPage;
    if (mapped == kNoPage || pool_[mapped].chosen == choices_ || !movable(mapped, it.slot)) {
      it.page = pool_.take();  // to be mapped: rather one that is not mapped elsewhere too
      continue;
    }
    it.page = pool_.take(PagePool::Prefer::kMapped);
    pool_[mapped].chosen = choices_;
    scratch_.planned.push_back({{it.page, mapped, false}, false, i});
    it.comes = true;
  }
}

void KVCache::give_back(const std::vector<Fresh>& fresh) {
  for (const Fresh& it : fresh)
    if (it.page != kNoPage) pool_.give_back(it.page);
}

// Zeros where a page is new, so that nothing is ever read that was never written: 0 times a stray NaN is not 0.
void KVCache::clear_created(const std::vector<Fresh>& fresh) {
  for (const Fresh& it : fresh) clear_if_new(it.page, it.slot, it.index);
}

void KVCache::clear_if_new(PageId page, SlotId slot, std::size_t index) {
  if (pool_[page].cleared) return;
  driver_->clear(arena_.address(slot, index));
  pool_[page].cleared = true;
  touch(page);
}

// The driver was told to copy or clear a page, and a device does that when it comes to it: ahead of the next forward.
void KVCache::touch(PageId page) {
  if (driver_->device() >= 0) pool_[page].touched = begun_ + 1;
}

// Adds what has to be mapped so that this many tokens behind a slot's last can be read. Returns how many pages.
std::size_t KVCache::add_guards(SlotId slot, std::size_t tokens, std::size_t guard_tokens,
                                std::vector<Change>& changes) const {
  if (guard_tokens == 0) return 0;
  const std::size_t before = changes.size();
  const std::size_t left = arena_.slot_tokens() - tokens;
  const std::size_t end = geometry_.pages_for(tokens + std::min(guard_tokens, left));
  for (std::size_t index = geometry_.pages_for(tokens); index < end; ++index)
    if (arena_.mapped(slot, index) == kNoPage)
      changes.push_back({slot, static_cast<std::uint32_t>(index), arena_.mapped(kPaddingSlot, 0)});
  return changes.size() - before;
}

void KVCache::map(std::span<const Change> changes, SlotId binding) {
  if (changes.empty()) return;
  // A page amid a gap makes two runs more, and nothing makes more than that.
  if (arena_.runs() + 2 * changes.size() > arena_.mapping_limit()) shed(changes, binding);
  arena_.map(changes);
}

// Unmaps what nobody uses, the longest idle first, until these changes keep to the mapping limit.
void KVCache::shed(std::span<const Change> changes, SlotId binding) {
  settle_all();
  const auto enough = [&] { return arena_.runs_after(changes) <= arena_.mapping_limit(); };
  std::vector<SlotId> order(unmapped_.begin(), unmapped_.end());  // which may map a prefix after all: see dissolve
  order.insert(order.end(), idle_.begin(), idle_.end());
  for (const SlotId slot : order) {
    if (enough()) return;
    if (slot == binding || arena_.extent(slot) == 0) continue;
    arena_.unmap(slot, 0);
    ++counters_.slots_shed;
    if (slots_[slot].unmapped) continue;
    tree_.detach(slot);
    unmapped_.splice(unmapped_.end(), idle_, slots_[slot].idle);
    slots_[slot].unmapped = true;
    slots_[slot].prepared = false;
  }
  for (SlotId slot = 0; slot < slots_.size() && !enough(); ++slot) {
    if (slots_[slot].state != State::kLive || slots_[slot].guard_reader > completed_) continue;
    // What lies past its pages, but for those that the growth under way has claimed where they are mapped.
    std::size_t first = arena_.extent(slot);
    while (first > slots_[slot].pages &&
           (arena_.mapped(slot, first - 1) == kNoPage || !pool_.taken(arena_.mapped(slot, first - 1))))
      --first;
    arena_.unmap(slot, first);
  }
  if (!enough())
    throw DriverError("mmap", ENOMEM,
                      "more than " + std::to_string(arena_.mapping_limit()) +
                          " separate runs of pages would be mapped: raise vm.max_map_count (sysctl), or take larger "
                          "pages with --vtensor-page-bytes");
}

std::size_t KVCache::trim(std::size_t keep, std::size_t most_calls, bool settled) {
  const std::lock_guard guard(mutex_);
  return trim_pages(keep, most_calls, settled);
}

void KVCache::set_limit(std::size_t pages) {
  const std::lock_guard guard(mutex_);
  if (pages == 0 || pages > budget_)
    throw std::invalid_argument("the limit must be 1 to " + std::to_string(budget_) + " pages, not " +
                                std::to_string(pages));
  pool_.set_limit(static_cast<PageId>(pages) + 1);
  give_back_stock();
  evict_excess();
}

std::size_t KVCache::shrink(std::size_t most_calls, bool settled) {
  const std::lock_guard guard(mutex_);
  evict_excess();
  if (pool_.created() <= pool_.limit()) return 0;
  const PageId surplus = pool_.created() - pool_.limit();
  return trim_pages(pool_.free() - std::min(pool_.free(), surplus), most_calls, settled);
}

// By page, whether a slot in flight maps it behind what it holds: such a slot is left as it is, and with it what it
// maps.
std::vector<bool> KVCache::mapped_in_flight() const {
  std::vector<bool> pages(pool_.budget());
  const auto mark = [&](SlotId slot, std::size_t from) {
    for (std::size_t index = from; index < arena_.extent(slot); ++index)
      if (const PageId page = arena_.mapped(slot, index); page != kNoPage) pages[page] = true;
  };
  for (const auto& [forward, slot] : draining_) mark(slot, 0);
  for (SlotId slot = 0; slot < slots_.size(); ++slot)
    if (slots_[slot].state == State::kLive && slots_[slot].guard_reader > completed_) mark(slot, slots_[slot].pages);
  return pages;
}

std::size_t KVCache::trim_pages(std::size_t keep, std::size_t most_calls, bool settled) {
  const std::size_t stock = give_back_stock();
  if (pool_.free() <= keep) return stock;
  settle_all();
  const std::vector<bool> untouchable = mapped_in_flight();
  std::vector<std::uint32_t> mappings(pool_.budget());
  for (SlotId slot = 0; slot < slots_.size(); ++slot)
    for (const PageId page : arena_.mapped(slot))
      if (page != kNoPage) ++mappings[page];
  std::vector<bool> chosen(pool_.budget());
  std::vector<PageId> pages;
  std::size_t calls = 0;
  for (PageId page = pool_.first_free(); page != kNoPage && pool_.free() - pages.size() > keep && calls < most_calls;
       page = pool_.next_free(page)) {
    if (untouchable[page] || (!settled && pool_[page].touched > completed_)) continue;
    calls += mappings[page] + 1;
    chosen[page] = true;
    pages.push_back(page);
  }
  for (SlotId slot = 0; slot < slots_.size(); ++slot)
    for (std::size_t index = 0; index < arena_.extent(slot); ++index)
      if (const PageId page = arena_.mapped(slot, index); page != kNoPage && chosen[page])
        arena_.unmap_index(slot, index);
  for (const PageId page : pages) {
    pool_.destroy(page);
    ++counters_.pages_released;
  }
  return stock + pages.size();
}

}  // namespace vt
