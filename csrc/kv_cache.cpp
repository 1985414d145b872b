// SPDX-License-Identifier: Apache-2.0
#include "kv_cache.h"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <numeric>
#include <string>

#include "errors.h"

namespace vt {
namespace {

// After a page could not be created. Counted and not timed, so that the same calls always do the same (invariant 7);
// a second or two of decoding.
constexpr std::uint64_t kForwardsBeforeRetry = 64;
// To map as many takes the driver about as long as launching a forward late costs: a millisecond.
constexpr std::size_t kManyPages = 32;

}  // namespace

KVCache::KVCache(std::unique_ptr<Driver> driver, const Geometry& geometry, SlotId slots, std::size_t slot_tokens,
                 PageId budget, std::size_t mapping_limit, std::size_t block_tokens, bool move_pages, bool map_ahead,
                 std::size_t copy_from_pages)
    : driver_(std::make_unique<DriverWorker>(std::make_unique<TimedDriver>(std::move(driver)))),
      geometry_(geometry),
      budget_(budget),
      pool_(*driver_, budget + 1),
      arena_(*driver_, geometry, slots, slot_tokens,
             mapping_limit == 0 ? driver_->mapping_limit() : std::min(mapping_limit, driver_->mapping_limit()),
             move_pages ? &pool_ : nullptr),
      tree_(pool_, geometry, slots, block_tokens),
      slots_(slots),
      move_pages_(move_pages),
      map_ahead_(map_ahead),
      copy_from_pages_(copy_from_pages) {
  if (copy_from_pages == 0) throw std::invalid_argument("copy_from_pages must be positive");
  // One page behind all of token 0, over and over if the token is larger: what is written there is never used.
  const PageId page = pool_.create();
  pool_.claim(page);
  std::vector<Change> padding;
  for (std::uint32_t index = 0; index < geometry_.pages_for(1); ++index) padding.push_back({kPaddingSlot, index, page});
  arena_.map(padding);
  driver_->clear(arena_.address(kPaddingSlot, 0));
  pool_[page].cleared = true;
  pool_.hold_live(page);
  slots_[kPaddingSlot].state = State::kPadding;
  for (SlotId slot = 1; slot < slots; ++slot) {
    slots_[slot].idle = unmapped_.insert(unmapped_.end(), slot);
    slots_[slot].unmapped = true;
  }
  tree_.on_slot_loose = [this](SlotId slot) { idle_.splice(idle_.begin(), idle_, slots_[slot].idle); };
}

KVCache::~KVCache() = default;

// ---- the radix tree

KVCache::Match KVCache::match(const std::string& name_space, std::span<const Token> tokens, std::size_t total_tokens) {
  const std::lock_guard guard(mutex_);
  Node* node = tree_.match(name_space, tokens);
  if (node == nullptr) return {0, 0};
  // Tokens after which a sequence ends on a page border.
  const std::size_t unit = std::lcm(geometry_.page_bytes, geometry_.token_bytes) / geometry_.token_bytes;
  while (!node->is_root() && !fits(node, total_tokens)) {
    const std::size_t aligned = node->end / unit * unit;
    node = aligned > node->start() && aligned < node->end ? tree_.cut(node, aligned) : node->parent;
  }
  return {RadixTree::handle(node), node->end};
}

bool KVCache::fits(const Node* node, std::size_t total_tokens) const {
  if (total_tokens <= node->end) return true;
  // A sequence longer than memory is left for may still end early: it only must not waste what there is.
  const std::size_t pages = pool_.capacity() - 1;  // the padding page
  return node->path_pages + std::min(geometry_.pages_for(total_tokens), pages) - geometry_.page_of(node->end) <= pages;
}

void KVCache::lock(NodeHandle node) {
  const std::lock_guard guard(mutex_);
  if (node != 0) tree_.lock(tree_.at(node));
}

void KVCache::unlock(NodeHandle node) {
  const std::lock_guard guard(mutex_);
  if (node != 0) tree_.unlock(tree_.at(node));
}

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

void KVCache::clear() {
  const std::lock_guard guard(mutex_);
  if (live_slots_ > 0)
    throw InvariantError("the cache cannot be cleared: " + std::to_string(live_slots_) + " slots are live");
  tree_.clear();
}

// ---- a request's life

KVCache::Bound KVCache::bind(const std::string& name_space, NodeHandle handle, std::size_t tokens,
                             std::size_t guard_tokens, std::size_t spare_pages) {
  const std::lock_guard guard(mutex_);
  Node* node = handle == 0 ? nullptr : tree_.at(handle);
  const std::size_t matched = node == nullptr ? 0 : node->end;
  if (tokens < matched || tokens > arena_.slot_tokens())
    throw std::invalid_argument("a slot holds " + std::to_string(arena_.slot_tokens()) + " tokens, and its prefix " +
                                std::to_string(matched) + "; it cannot be bound to " + std::to_string(tokens));
  if (node != nullptr && node->locks == 0) throw InvariantError("bind needs its node to be locked");
  if (node != nullptr && tree_.name_space(node) != name_space)
    throw std::invalid_argument("the node to bind to is of another namespace");

  const std::uint64_t waited_before = driver_->waited_nanoseconds();
  const std::uint64_t unmapped_before = arena_.pages_unmapped;
  std::vector<PageId>& path = scratch_.path;
  path.clear();
  if (node != nullptr) tree_.collect(node, path);
  std::size_t shared = path.size();
  Tail tail = Tail::kNone;
  if (const std::size_t bytes = geometry_.tail_bytes(matched); bytes != 0) {
    const Page& last = pool_[path.back()];
    tail = last.writer == kNoSlot && last.recorded == bytes ? Tail::kExtended : Tail::kCopied;
    if (tail == Tail::kCopied) --shared;
  }
  const std::size_t pages = geometry_.pages_for(tokens);
  harvest();
  require_idle_slot();
  if (node != nullptr) await_own_slot(node, path);
  require(pages - shared);
  begin_choice(path);
  const std::size_t copies = most_copies(pages - shared, spare_pages);
  // Of a tail that is extended, it is the page itself that goes on.
  const std::span<const PageId> prefix(path.data(), shared - (tail == Tail::kExtended));
  // Only now: the slots of what was evicted have pages to take where they are mapped.
  const SlotId slot = choose_slot_to_copy_to(choose_slot(node), prefix, copies);
  settle(slot, 0, arena_.slot_pages());
  const std::size_t copied = plan_copies(slot, prefix, copies);

  std::vector<Fresh>& fresh = scratch_.fresh;
  fresh.clear();
  for (std::size_t index = shared; index < pages; ++index) fresh.push_back({slot, index});
  if (copied > 0)
    for (std::size_t index = 0; index < prefix.size(); ++index)
      if (scratch_.copied[index]) fresh.push_back({slot, index});
  acquire(fresh);
  const auto is_copied = [&](std::size_t index) { return index < scratch_.copied.size() && scratch_.copied[index]; };
  std::size_t tokens_moved = 0;
  // A token counts where its last byte lies.
  const auto tokens_on = [&](std::size_t index) {
    return std::min(geometry_.tokens_in(index + 1), matched) - std::min(geometry_.tokens_in(index), matched);
  };
  if (move_pages_)
    for (std::size_t index = 0; index < shared; ++index)
      if (!is_copied(index) && plan_move_here(slot, index, path[index])) tokens_moved += tokens_on(index);
  const std::size_t all_moved = scratch_.planned.size();
  const std::size_t moved = make_moves(fresh, path);
  std::size_t reused = 0;
  std::vector<Change>& changes = scratch_.changes;
  changes.clear();
  const auto change_unless_mapped = [&](std::size_t index, PageId page) {
    const bool differs = arena_.mapped(slot, index) != page;
    if (differs) changes.push_back({slot, static_cast<std::uint32_t>(index), page});
    return differs;
  };
  std::size_t tokens_aliased = 0;
  std::size_t tokens_copied = tokens_moved + (tail == Tail::kCopied ? tokens_on(shared) : 0);
  for (std::size_t index = 0; index < shared; ++index) {
    if (is_copied(index))
      tokens_copied += tokens_on(index);
    else if (change_unless_mapped(index, path[index]))
      tokens_aliased += tokens_on(index);
  }
  const std::size_t aliased_by_mapping = changes.size();
  for (const Fresh& it : fresh) {
    const bool is_mapped = !change_unless_mapped(it.index, it.page);
    reused += is_mapped && !it.comes && it.index >= shared;
  }
  const std::size_t guards = add_guards(slot, tokens, guard_tokens, changes);
  try {
    map(changes, slot);
    clear_created(fresh);
    if (tail == Tail::kCopied) {
      driver_->copy(arena_.address(slot, shared), path.back(), geometry_.tail_bytes(matched));
      touch(path.back());
      touch(fresh.front().page);
    }
    if (copied > 0) copy_prefix(std::span(fresh).last(copied), path);
  } catch (const DriverError&) {
    give_back(fresh);
    throw;
  }

  // From here on nothing can fail.
  tree_.detach(slot);
  tree_.attach(slot, node != nullptr ? node : tree_.root(name_space), false);
  if (node != nullptr) {
    tree_.lock(node);
    tree_.count_hit(node);
  }
  forget_idle(slot);
  for (std::size_t index = 0; index < shared; ++index)
    if (!is_copied(index)) pool_.hold_live(path[index]);
  if (tail == Tail::kExtended) pool_[path.back()].writer = slot;
  for (const Fresh& it : fresh) {
    pool_.hold_live(it.page);
    pool_[it.page].writer = slot;
  }
  Slot& it = slots_[slot];
  it.state = State::kLive;
  it.pages = pages;
  it.tokens = tokens;
  it.recorded = matched;
  it.duplicate = false;
  it.prepared = false;
  it.path = node;
  it.costs = {shared - copied - aliased_by_mapping - moved,
              aliased_by_mapping,
              all_moved,
              copied,
              reused,
              changes.size(),
              arena_.pages_unmapped - unmapped_before,
              tail == Tail::kCopied,
              driver_->waited_nanoseconds() - waited_before};
  ++live_slots_;
  live_tokens_ += tokens - matched;
  ++counters_.binds;
  counters_.tokens_matched += matched;
  counters_.tokens_adopted += matched - tokens_aliased - tokens_copied;
  counters_.tokens_aliased += tokens_aliased;
  counters_.tokens_copied += tokens_copied;
  counters_.pages_aliased += shared - copied;
  counters_.pages_adopted += it.costs.pages_adopted;
  counters_.pages_copied += copied;
  counters_.pages_reused += it.costs.pages_reused;
  counters_.tails_extended += tail == Tail::kExtended;
  counters_.tails_copied += tail == Tail::kCopied;
  counters_.guards_mapped += guards;
  if (node != nullptr) prepare_slot(node);
  map_ahead(slot, guard_tokens);
  stock_up();
  return {slot, tail, shared - copied, changes.size()};
}

void KVCache::grow(std::span<const SlotId> slots, std::span<const std::size_t> tokens, std::size_t guard_tokens) {
  const std::lock_guard guard(mutex_);
  if (slots.size() != tokens.size()) throw std::invalid_argument("grow takes one token count per slot");
  harvest();
  const std::uint64_t waited_before = driver_->waited_nanoseconds();
  ++growths_;
  std::vector<Fresh>& fresh = scratch_.fresh;
  std::vector<Change>& changes = scratch_.changes;
  fresh.clear();
  changes.clear();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const Slot& it = live(slots[i]);
    if (tokens[i] < it.tokens || tokens[i] > arena_.slot_tokens())
      throw std::invalid_argument("slot " + std::to_string(slots[i]) + " has " + std::to_string(it.tokens) +
                                  " tokens and holds at most " + std::to_string(arena_.slot_tokens()) +
                                  "; it cannot grow to " + std::to_string(tokens[i]));
    if (slots_[slots[i]].seen == growths_) throw std::invalid_argument("a slot is named twice in one growth");
    slots_[slots[i]].seen = growths_;
    const std::size_t pages = geometry_.pages_for(tokens[i]);
    settle(slots[i], it.pages, geometry_.pages_for(tokens[i] + guard_tokens));
    for (std::size_t index = it.pages; index < pages; ++index) fresh.push_back({slots[i], index});
    add_guards(slots[i], tokens[i], guard_tokens, changes);
  }
  const std::size_t guards = changes.size();
  std::size_t moved = 0;
  if (!fresh.empty()) {
    require(fresh.size());
    ++choices_;
    acquire(fresh);
    for (const Fresh& it : fresh) {  // what is to be moved is mapped already
      const PageId mapped = arena_.mapped(it.slot, it.index);
      if (mapped == it.page || it.comes) continue;
      changes.push_back({it.slot, static_cast<std::uint32_t>(it.index), it.page});
      if (mapped == kNoPage || slots_[it.slot].guard_reader <= completed_) continue;
      give_back(fresh);
      throw SlotsBusy("a forward may be reading behind slot " + std::to_string(it.slot) + "; complete forward " +
                      std::to_string(slots_[it.slot].guard_reader) + " first");
    }
    moved = scratch_.planned.size();
    make_moves(fresh, scratch_.path);
  }
  scratch_.replaced.clear();
  for (const Change& it : changes) scratch_.replaced.push_back(arena_.mapped(it.slot, it.index) != kNoPage);
  try {
    map(changes, kNoSlot);
    clear_created(fresh);
  } catch (const DriverError&) {
    give_back(fresh);
    throw;
  }
  counters_.guards_mapped += guards;
  counters_.pages_reused += fresh.size() - (changes.size() - guards) - moved;
  for (const Fresh& it : fresh) {
    pool_.hold_live(it.page);
    pool_[it.page].writer = it.slot;
    ++slots_[it.slot].pages;
    slots_[it.slot].costs.pages_moved += it.comes;
    slots_[it.slot].costs.pages_reused += !it.comes;  // less what was mapped, see below
  }
  const std::uint64_t waited = driver_->waited_nanoseconds() - waited_before;
  for (std::size_t i = 0; i < changes.size(); ++i) {
    RequestCosts& costs = slots_[changes[i].slot].costs;
    ++costs.pages_mapped;
    costs.pages_unmapped += scratch_.replaced[i];
    if (i >= guards) --costs.pages_reused;
    costs.driver_wait_ns += waited / changes.size();
  }
  if (changes.empty())  // what it took to move contents
    for (const Fresh& it : fresh) slots_[it.slot].costs.driver_wait_ns += waited / fresh.size();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    Slot& it = slots_[slots[i]];
    live_tokens_ += tokens[i] - it.tokens;
    // A row reads its last token by itself (plan_shares): where that was a recorded one, more can be shared now.
    if (tokens[i] > it.tokens && it.tokens == it.recorded) tree_.grew_past_path();
    it.tokens = tokens[i];
    map_ahead(slots[i], guard_tokens);
  }
  stock_up();
}

std::size_t KVCache::pages_to_grow(std::span<const SlotId> slots, std::span<const std::size_t> tokens) const {
  const std::lock_guard guard(mutex_);
  if (slots.size() != tokens.size()) throw std::invalid_argument("pages_to_grow takes one token count per slot");
  std::size_t pages = 0;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::size_t held = live(slots[i]).pages;
    const std::size_t wanted = geometry_.pages_for(tokens[i]);
    pages += wanted > held ? wanted - held : 0;
  }
  return pages;
}

KVCache::Recorded KVCache::record(SlotId slot, std::span<const Token> tokens) {
  const std::lock_guard guard(mutex_);
  live(slot);
  Slot& it = slots_[slot];
  if (tokens.size() > it.tokens)
    throw std::invalid_argument("slot " + std::to_string(slot) + " has " + std::to_string(it.tokens) + " tokens; " +
                                std::to_string(tokens.size()) + " cannot be recorded");
  Node* from = tree_.attached(slot);
  if (tokens.size() <= from->end) return {RadixTree::handle(from), it.duplicate, 0};
  const auto recorded = tree_.record(from, tokens, arena_.mapped(slot));
  tree_.go_on(slot, recorded.node);
  if (tokens.size() > it.recorded) {
    live_tokens_ -= tokens.size() - it.recorded;
    it.recorded = tokens.size();
  }
  if (recorded.added > 0) prepare_slot(recorded.node->parent);
  it.duplicate |= recorded.duplicate;  // from now on: all that it records stands below pages that are not its own
  return {RadixTree::handle(recorded.node), it.duplicate, recorded.added};
}

RadixTree::NewBlocks KVCache::new_blocks(NodeHandle node) const {
  const std::lock_guard guard(mutex_);
  return tree_.new_blocks(tree_.at(node));
}

void KVCache::set_blocks(NodeHandle node, std::span<const BlockId> ids) {
  const std::lock_guard guard(mutex_);
  tree_.set_blocks(tree_.at(node), ids);
}

std::vector<BlockId> KVCache::take_removed_blocks() {
  const std::lock_guard guard(mutex_);
  return tree_.take_removed_blocks();
}

std::vector<BlockId> KVCache::blocks() const {
  const std::lock_guard guard(mutex_);
  return tree_.blocks();
}

std::vector<RadixTree::Busy> KVCache::busiest(std::size_t count) const {
  const std::lock_guard guard(mutex_);
  return tree_.busiest(count);
}

void KVCache::release(SlotId slot) {
  const std::lock_guard guard(mutex_);
  live(slot);
  Slot& it = slots_[slot];
  unreserve(slot);
  if (it.path != nullptr) tree_.unlock(it.path);
  it.path = nullptr;
  for (std::size_t index = 0; index < it.pages; ++index) {
    const PageId page = arena_.mapped(slot, index);
    if (pool_[page].writer == slot) pool_[page].writer = kNoSlot;
    pool_.drop_live(page);
  }
  live_tokens_ -= it.tokens - it.recorded;
  --live_slots_;
  it.pages = it.tokens = it.recorded = 0;
  if (it.last_forward > completed_) {
    it.state = State::kDraining;
    draining_.emplace(it.last_forward, slot);
  } else {
    make_idle(slot);
  }
}

void KVCache::make_idle(SlotId slot) {
  Node* node = tree_.attached(slot);
  const bool loose = node->is_root();
  tree_.detach(slot);
  if (!loose) tree_.attach(slot, node, true);
  tree_.became_idle(slot);
  slots_[slot].state = State::kIdle;
  slots_[slot].idle = idle_.insert(loose ? idle_.begin() : idle_.end(), slot);
}

void KVCache::forget_idle(SlotId slot) {
  (slots_[slot].unmapped ? unmapped_ : idle_).erase(slots_[slot].idle);
  slots_[slot].unmapped = false;
}

// ---- forwards

std::uint64_t KVCache::begin_forward(std::span<const SlotId> slots, bool reads_guards) {
  const std::lock_guard guard(mutex_);
  for (const SlotId slot : slots) live(slot);
  if (reads_guards)
    for (const SlotId slot : slots) keep_guards(slot);
  ++begun_;
  for (const SlotId slot : slots) {
    slots_[slot].last_forward = begun_;
    if (reads_guards) slots_[slot].guard_reader = begun_;
  }
  return begun_;
}

void KVCache::complete_forward(std::uint64_t forward) {
  const std::lock_guard guard(mutex_);
  if (forward > begun_) throw std::invalid_argument("forward " + std::to_string(forward) + " has not begun");
  completed_ = std::max(completed_, forward);
  while (!draining_.empty() && draining_.begin()->first <= completed_) {
    make_idle(draining_.begin()->second);
    draining_.erase(draining_.begin());
  }
}

// ---- decode steps

bool KVCache::plan_shares(SharePlan& plan, std::span<const SlotId> slots, std::size_t tile, std::size_t workers,
                          std::span<std::int32_t> buffer) {
  const std::lock_guard guard(mutex_);
  plan.check(slots.size(), tile, workers, buffer.size());
  const LiveOrder& order = tree_.live_order();
  if (plan.is_of(slots, order.version(), tile, workers)) return false;
  std::vector<std::int32_t>& rows = scratch_.rows;
  rows.assign(slots_.size(), -1);
  for (std::size_t row = 0; row < slots.size(); ++row) {
    if (slots[row] == kPaddingSlot) continue;
    order.fetch_ahead(slots[row]);
    live(slots[row]);
    if (rows[slots[row]] >= 0)
      throw std::invalid_argument("slot " + std::to_string(slots[row]) + " is named twice in one batch");
    rows[slots[row]] = static_cast<std::int32_t>(row);
  }
  std::vector<SharePlan::Member>& members = scratch_.members;
  members.clear();
  std::ptrdiff_t shared = LiveOrder::kOtherRoot;
  for (SlotId slot = order.first(); slot != kNoSlot; slot = order.next(slot)) {
    shared = std::min(shared, order.shared(slot));
    if (rows[slot] < 0) continue;
    SharePlan::Member& member = members.emplace_back();
    member.row = rows[slot];
    member.slot = slot;
    member.shared = static_cast<std::int32_t>(std::max(shared, std::ptrdiff_t{0}));
    member.most = static_cast<std::int32_t>(std::max(slots_[slot].tokens, std::size_t{1}) - 1);
    shared = std::numeric_limits<std::ptrdiff_t>::max();
  }
  plan.make({{slots.begin(), slots.end()}, order.version(), tile, workers}, members, buffer);
  return true;
}

SharePlan::Facts KVCache::facts(const SharePlan& plan) const {
  const std::lock_guard guard(mutex_);
  return plan.facts();
}

// ---- slots, pages and mappings

const KVCache::Slot& KVCache::live(SlotId slot) const {
  if (slot >= slots_.size() || slots_[slot].state != State::kLive)
    throw std::invalid_argument("slot " + std::to_string(slot) + " is not live");
  return slots_[slot];
}

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
  const SlotId near = tree_.idle_slot_near(node);
  std::size_t missing = 0;
  for (std::size_t index = 0; index < path.size(); ++index)
    missing += near == kNoSlot || arena_.mapped(near, index) != path[index];
  if (missing < kManyPages) return;
  throw SlotsBusy("the slot that maps this prefix is still used by a forward; complete forward " +
                  std::to_string(slots_[own].last_forward) + " first");
}

// Whether a slot that maps nothing should be taken before one with a cached sequence. Where contents move, not once
// half as many pages are mapped as there may be: a page that two slots map for sequences of theirs cannot be moved
// without loss to the other, and then growth is a driver call again (docs/design.md, "Moving").
bool KVCache::may_map_more() const {
  return move_pages_ ? 2 * (arena_.mappings() + pending_.size()) < pool_.limit() : pool_.creatable() > 0;
}

// Where nothing of the path is mapped: a slot whose sequence was evicted; else one that maps nothing, or the one idle
// for longest.
SlotId KVCache::choose_slot(const Node* node) {
  if (node != nullptr) {
    SlotId near = tree_.idle_slot_near(node);
    for (; near != kNoSlot && slots_[near].prepared && !may_map_more(); near = tree_.idle_slot_near(node))
      dissolve(near);
    if (near != kNoSlot) return near;
  }
  if (idle_.empty()) return unmapped_.front();
  const bool loose = tree_.attached(idle_.front()) == nullptr;
  return loose || unmapped_.empty() || !may_map_more() ? idle_.front() : unmapped_.front();
}

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

std::size_t KVCache::shrink(std::size_t most_calls) {
  const std::lock_guard guard(mutex_);
  evict_excess();
  if (pool_.created() <= pool_.limit()) return 0;
  const PageId surplus = pool_.created() - pool_.limit();
  return trim_pages(pool_.free() - std::min(pool_.free(), surplus), most_calls, false);
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

// ---- looking

Usage KVCache::usage() const {
  const std::lock_guard guard(mutex_);
  return {budget_,      pool_.limit() - 1, pool_.created(),  pool_.free(),
          pool_.held(), pool_.evictable(), pool_.withheld(), static_cast<SlotId>(slots_.size()),
          live_slots_,  tree_.nodes(),     tree_.tokens(),   live_tokens_,
          arena_.runs()};
}

Counters KVCache::counters() const {
  const std::lock_guard guard(mutex_);
  Counters counters = counters_;  // without what the thread has done since the last bind or growth
  counters.pages_mapped = arena_.pages_mapped;
  counters.pages_unmapped = arena_.pages_unmapped;
  counters.driver_calls = driver_->calls();
  counters.driver_ns = driver_->nanoseconds();
  counters.driver_wait_ns = driver_->waited_nanoseconds();
  return counters;
}

std::size_t KVCache::available_tokens() const {
  const std::lock_guard guard(mutex_);
  return geometry_.tokens_in(pool_.available());
}

std::size_t KVCache::evictable_tokens() const {
  const std::lock_guard guard(mutex_);
  return geometry_.tokens_in(pool_.available() + pool_.reclaimable()) - geometry_.tokens_in(pool_.available());
}

// Counted from the pages pinned and withheld, by the limit too, and not as what is left over, so that the sum proves
// something: it misses the total when a page is lost, and when a request that SGLang has forgotten still holds its
// slot.
std::size_t KVCache::protected_tokens() const {
  const std::lock_guard guard(mutex_);
  const PageId left = pool_.capacity() - std::min(pool_.capacity(), pool_.pinned());
  return total_tokens() - geometry_.tokens_in(left) - live_tokens_;
}

SlotId KVCache::idle_slots() const {
  const std::lock_guard guard(mutex_);
  return static_cast<SlotId>(slots_.size()) - 1 - live_slots_;
}

std::size_t KVCache::deliverable_pages() const {
  const std::lock_guard guard(mutex_);
  return pool_.available() + pool_.reclaimable();
}

std::size_t KVCache::node_tokens(NodeHandle node) const {
  const std::lock_guard guard(mutex_);
  return node == 0 ? 0 : tree_.at(node)->end;
}

std::size_t KVCache::physical_bytes() const {
  const std::lock_guard guard(mutex_);
  return driver_->physical_bytes();
}

void KVCache::set_stream(std::uintptr_t stream) {
  const std::lock_guard guard(mutex_);
  driver_->set_stream(stream);
}

RequestCosts KVCache::costs(SlotId slot) const {
  const std::lock_guard guard(mutex_);
  return live(slot).costs;
}

std::vector<PageId> KVCache::slot_pages(SlotId slot) const {
  const std::lock_guard guard(mutex_);
  std::vector<PageId> pages;
  for (std::size_t index = 0; index < live(slot).pages; ++index) pages.push_back(arena_.mapped(slot, index));
  return pages;
}

std::vector<PageId> KVCache::path_pages(NodeHandle node) const {
  const std::lock_guard guard(mutex_);
  std::vector<PageId> pages;
  if (node != 0) tree_.collect(tree_.at(node), pages);
  return pages;
}

}  // namespace vt
