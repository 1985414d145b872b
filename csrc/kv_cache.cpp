// SPDX-License-Identifier: Apache-2.0
#include "kv_cache.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "errors.h"

namespace vt {

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

void KVCache::clear() {
  const std::lock_guard guard(mutex_);
  if (live_slots_ > 0)
    throw InvariantError("the cache cannot be cleared: " + std::to_string(live_slots_) + " slots are live");
  tree_.clear();
}

// ---- a request's life

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

const KVCache::Slot& KVCache::live(SlotId slot) const {
  if (slot >= slots_.size() || slots_[slot].state != State::kLive)
    throw std::invalid_argument("slot " + std::to_string(slot) + " is not live");
  return slots_[slot];
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
