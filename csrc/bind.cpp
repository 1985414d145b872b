// SPDX-License-Identifier: Apache-2.0
// A request gets its slot: which it takes, what is shared, moved, copied or mapped for it (docs/design.md, "A request's
// life").
#include <algorithm>
#include <string>

#include "errors.h"
#include "kv_cache.h"

namespace vt {
namespace {

// To map as many takes the driver about as long as launching a forward late costs: a millisecond.
constexpr std::size_t kManyPages = 32;
// Slots attached to one node that are compared by what they map.
constexpr int kSlotsCompared = 8;

}  // namespace

// What a bind does. `path`, `fresh` and `changes` are in scratch_.
struct KVCache::Binding {
  Node* node;           // that it is bound to, or null
  std::size_t matched;  // tokens of its path
  std::size_t tokens;   // that are to be backed
  std::size_t pages;    // the same in pages
  std::size_t shared;   // the path's pages that the request has too, but for those that are copied
  Tail tail;            // what becomes of the page on which the path ends
  SlotId slot = kNoSlot;
  std::size_t copied = 0;        // of the shared pages
  std::size_t moves = 0;         // contents moved, of the path and to make way
  std::size_t moved = 0;         // those of the path
  std::size_t aliased = 0;       // of the shared pages, mapped
  std::size_t reused = 0;        // fresh pages that the slot maps already
  std::size_t guards = 0;        // mapped behind the tokens
  std::size_t tokens_moved = 0;  // of the path, by what becomes of them
  std::size_t tokens_copied = 0;
  std::size_t tokens_aliased = 0;
};

KVCache::Bound KVCache::bind(const std::string& name_space, NodeHandle handle, std::size_t tokens,
                             std::size_t guard_tokens, std::size_t spare_pages) {
  const std::lock_guard guard(mutex_);
  Node* node = node_to_bind(name_space, handle, tokens);
  const std::uint64_t waited_before = driver_->waited_nanoseconds();
  const std::uint64_t unmapped_before = arena_.pages_unmapped;
  Binding it = begin_binding(node, tokens);
  harvest();
  require_idle_slot();
  if (node != nullptr) await_own_slot(node, scratch_.path);
  require(it.pages - it.shared);
  choose_slot_and_copies(it, spare_pages);
  take_pages(it);
  choose_changes(it, guard_tokens);
  map_and_fill(it);
  // From here on nothing can fail.
  hold_pages(name_space, it);
  slots_[it.slot].costs = {it.shared - it.copied - it.aliased - it.moved,
                           it.aliased,
                           it.moves,
                           it.copied,
                           it.reused,
                           scratch_.changes.size(),
                           arena_.pages_unmapped - unmapped_before,
                           it.tail == Tail::kCopied,
                           driver_->waited_nanoseconds() - waited_before};
  count(it);
  if (node != nullptr) prepare_slot(node);
  map_ahead(it.slot, guard_tokens);
  stock_up();
  return {it.slot, it.tail, it.shared - it.copied, scratch_.changes.size()};
}

Node* KVCache::node_to_bind(const std::string& name_space, NodeHandle handle, std::size_t tokens) const {
  Node* node = handle == 0 ? nullptr : tree_.at(handle);
  const std::size_t matched = node == nullptr ? 0 : node->end;
  if (tokens < matched || tokens > arena_.slot_tokens())
    throw std::invalid_argument("a slot holds " + std::to_string(arena_.slot_tokens()) + " tokens, and its prefix " +
                                std::to_string(matched) + "; it cannot be bound to " + std::to_string(tokens));
  if (node != nullptr && node->locks == 0) throw InvariantError("bind needs its node to be locked");
  if (node != nullptr && tree_.name_space(node) != name_space)
    throw std::invalid_argument("the node to bind to is of another namespace");
  return node;
}

KVCache::Binding KVCache::begin_binding(Node* node, std::size_t tokens) {
  std::vector<PageId>& path = scratch_.path;
  path.clear();
  if (node != nullptr) tree_.collect(node, path);
  const std::size_t matched = node == nullptr ? 0 : node->end;
  Binding it{node, matched, tokens, geometry_.pages_for(tokens), path.size(), Tail::kNone};
  if (const std::size_t bytes = geometry_.tail_bytes(matched); bytes != 0) {
    const Page& last = pool_[path.back()];
    it.tail = last.writer == kNoSlot && last.recorded == bytes ? Tail::kExtended : Tail::kCopied;
    if (it.tail == Tail::kCopied) --it.shared;
  }
  return it;
}

// Only once there is room: the slots of what was evicted for it have pages to take where they are mapped.
void KVCache::choose_slot_and_copies(Binding& it, std::size_t spare_pages) {
  const std::vector<PageId>& path = scratch_.path;
  begin_choice(path);
  const std::size_t copies = most_copies(it.pages - it.shared, spare_pages);
  // Of a tail that is extended, it is the page itself that goes on.
  const std::span<const PageId> prefix(path.data(), it.shared - (it.tail == Tail::kExtended));
  it.slot = choose_slot_to_copy_to(choose_slot(it.node, path), prefix, copies);
  settle(it.slot, 0, arena_.slot_pages());
  it.copied = plan_copies(it.slot, prefix, copies);
}

bool KVCache::is_copied(std::size_t index) const { return index < scratch_.copied.size() && scratch_.copied[index]; }

// The path's tokens that count on a page: where a token's last byte lies.
std::size_t KVCache::tokens_on(const Binding& it, std::size_t index) const {
  return std::min(geometry_.tokens_in(index + 1), it.matched) - std::min(geometry_.tokens_in(index), it.matched);
}

// A fresh page for every index that shares none, those of copies last; and contents are moved to where the slot maps a
// page.
void KVCache::take_pages(Binding& it) {
  std::vector<Fresh>& fresh = scratch_.fresh;
  fresh.clear();
  for (std::size_t index = it.shared; index < it.pages; ++index) fresh.push_back({it.slot, index});
  if (it.copied > 0)
    for (std::size_t index = 0; index < it.shared; ++index)
      if (is_copied(index)) fresh.push_back({it.slot, index});
  acquire(fresh);
  std::vector<PageId>& path = scratch_.path;
  if (move_pages_)
    for (std::size_t index = 0; index < it.shared; ++index)
      if (!is_copied(index) && plan_move_here(it.slot, index, path[index])) it.tokens_moved += tokens_on(it, index);
  it.moves = scratch_.planned.size();
  it.moved = make_moves(fresh, path);
}

// What is to be mapped: shared pages, fresh ones, and guards.
void KVCache::choose_changes(Binding& it, std::size_t guard_tokens) {
  std::vector<Change>& changes = scratch_.changes;
  changes.clear();
  const auto change_unless_mapped = [&](std::size_t index, PageId page) {
    const bool differs = arena_.mapped(it.slot, index) != page;
    if (differs) changes.push_back({it.slot, static_cast<std::uint32_t>(index), page});
    return differs;
  };
  it.tokens_copied = it.tokens_moved + (it.tail == Tail::kCopied ? tokens_on(it, it.shared) : 0);
  for (std::size_t index = 0; index < it.shared; ++index) {
    if (is_copied(index))
      it.tokens_copied += tokens_on(it, index);
    else if (change_unless_mapped(index, scratch_.path[index]))
      it.tokens_aliased += tokens_on(it, index);
  }
  it.aliased = changes.size();
  for (const Fresh& one : scratch_.fresh) {
    const bool is_mapped = !change_unless_mapped(one.index, one.page);
    it.reused += is_mapped && !one.comes && one.index >= it.shared;
  }
  it.guards = add_guards(it.slot, it.tokens, guard_tokens, changes);
}

void KVCache::map_and_fill(const Binding& it) {
  const std::vector<Fresh>& fresh = scratch_.fresh;
  const std::vector<PageId>& path = scratch_.path;
  try {
    map(scratch_.changes, it.slot);
    clear_created(fresh);
    if (it.tail == Tail::kCopied) {
      driver_->copy(arena_.address(it.slot, it.shared), path.back(), geometry_.tail_bytes(it.matched));
      touch(path.back());
      touch(fresh.front().page);
    }
    if (it.copied > 0) copy_prefix(std::span(fresh).last(it.copied), path);
  } catch (const DriverError&) {
    give_back(fresh);
    throw;
  }
}

// The slot is live, and holds its pages.
void KVCache::hold_pages(const std::string& name_space, const Binding& it) {
  const SlotId slot = it.slot;
  tree_.detach(slot);
  tree_.attach(slot, it.node != nullptr ? it.node : tree_.root(name_space), false);
  if (it.node != nullptr) {
    tree_.lock(it.node);
    tree_.count_hit(it.node);
  }
  forget_idle(slot);
  const std::vector<PageId>& path = scratch_.path;
  for (std::size_t index = 0; index < it.shared; ++index)
    if (!is_copied(index)) pool_.hold_live(path[index]);
  if (it.tail == Tail::kExtended) pool_[path.back()].writer = slot;
  for (const Fresh& one : scratch_.fresh) {
    pool_.hold_live(one.page);
    pool_[one.page].writer = slot;
  }
  Slot& taken = slots_[slot];
  taken.state = State::kLive;
  taken.pages = it.pages;
  taken.tokens = it.tokens;
  taken.recorded = it.matched;
  taken.duplicate = false;
  taken.prepared = false;
  taken.path = it.node;
  ++live_slots_;
  live_tokens_ += it.tokens - it.matched;
}

void KVCache::count(const Binding& it) {
  ++counters_.binds;
  counters_.tokens_matched += it.matched;
  counters_.tokens_adopted += it.matched - it.tokens_aliased - it.tokens_copied;
  counters_.tokens_aliased += it.tokens_aliased;
  counters_.tokens_copied += it.tokens_copied;
  counters_.pages_aliased += it.shared - it.copied;
  counters_.pages_adopted += slots_[it.slot].costs.pages_adopted;
  counters_.pages_copied += it.copied;
  counters_.pages_reused += it.reused;
  counters_.tails_extended += it.tail == Tail::kExtended;
  counters_.tails_copied += it.tail == Tail::kCopied;
  counters_.guards_mapped += it.guards;
}

// ---- which slot

void KVCache::require_idle_slot() const {
  if (!idle_.empty()) return;
  // A slot that maps nothing yet is not for a moment's need once as many pages are mapped as there are: from then on
  // each would be mapped in several slots for sequences of theirs (docs/design.md, "Moving").
  const bool all_mapped = arena_.mappings() + pending_.size() >= pool_.limit();
  if (!unmapped_.empty() && (draining_.empty() || !move_pages_ || !all_mapped)) return;
  if (draining_.empty())
    throw std::length_error("all " + std::to_string(live_slots_) + " slots are live: raise --max-running-requests");
  throw SlotsBusy("every idle slot is still used by a forward; complete forward " +
                  std::to_string(draining_.begin()->first) + " first");
}

// A request that goes on where another has just ended finds most of its prefix mapped in that one's slot. While a
// forward still includes it, waiting for that forward, which is under way, is less than mapping many pages in another
// slot.
void KVCache::await_own_slot(const Node* node, std::span<const PageId> path) const {
  if (!move_pages_) return;
  SlotId own = node->slots;
  while (own != kNoSlot && slots_[own].state != State::kDraining) own = tree_.next_attached(own);
  if (own == kNoSlot) return;
  const SlotId near = idle_slot_near(node, path);
  std::size_t missing = 0;
  for (std::size_t index = 0; index < path.size(); ++index)
    missing += near == kNoSlot || arena_.mapped(near, index) != path[index];
  if (missing < kManyPages) return;
  throw SlotsBusy("the slot that maps this prefix is still used by a forward; complete forward " +
                  std::to_string(slots_[own].last_forward) + " first");
}

// An idle slot by the tree, of which the path is that to this node. Of several that are attached to one node the one
// that maps most of the path: requests that compute the same at the same time end there with different pages.
SlotId KVCache::idle_slot_near(const Node* node, std::span<const PageId> path) const {
  const SlotId first = tree_.idle_slot_near(node);
  if (first == kNoSlot) return kNoSlot;
  const std::size_t pages = std::min(path.size(), whole_pages(tree_.attached(first)));
  const auto agreeing = [&](SlotId slot) {
    std::size_t count = 0;
    for (std::size_t index = 0; index < pages; ++index) count += arena_.mapped(slot, index) == path[index];
    return count;
  };
  SlotId best = first;
  std::size_t most = agreeing(first);
  int compared = 1;
  for (SlotId slot = tree_.next_attached(first); slot != kNoSlot && most < pages && compared < kSlotsCompared;
       slot = tree_.next_attached(slot)) {
    if (slots_[slot].state != State::kIdle) continue;
    ++compared;
    if (const std::size_t count = agreeing(slot); count > most) {
      most = count;
      best = slot;
    }
  }
  return best;
}

// Whether a slot that maps nothing should be taken, and so many pages be mapped there, before one with a cached
// sequence is. Where contents move, not once half as many pages are mapped as there may be: a page that two slots map
// for sequences of theirs cannot be moved without loss to the other, and then growth is a driver call again
// (docs/design.md, "Moving").
bool KVCache::may_map_more(std::size_t pages) const {
  return move_pages_ ? 2 * (arena_.mappings() + pending_.size() + pages) < pool_.limit() : pool_.creatable() > 0;
}

// Where nothing of the path is mapped: a slot whose sequence was evicted; else one that maps nothing, or the one idle
// for longest.
SlotId KVCache::choose_slot(const Node* node, std::span<const PageId> path) {
  if (node != nullptr) {
    SlotId near = idle_slot_near(node, path);
    for (; near != kNoSlot && slots_[near].prepared && !may_map_more(0); near = idle_slot_near(node, path))
      dissolve(near);
    if (near != kNoSlot) return near;
  }
  if (idle_.empty()) return unmapped_.front();
  const bool loose = tree_.attached(idle_.front()) == nullptr;
  return loose || unmapped_.empty() || !may_map_more(0) ? idle_.front() : unmapped_.front();
}

}  // namespace vt
