// SPDX-License-Identifier: Apache-2.0
// The invariants of docs/design.md, proved from scratch.
#include <algorithm>
#include <string>
#include <unordered_map>
#include <vector>

#include "errors.h"
#include "kv_cache.h"

// A macro, so that the text is made only when it is needed.
#define VERIFY(holds, what)                   \
  do {                                        \
    if (!(holds)) throw InvariantError(what); \
  } while (false)

namespace vt {

struct KVCache::Expected {
  std::uint32_t holders = 0;
  std::uint32_t pins = 0;
  std::uint32_t recorded = 0;
  std::uint32_t live = 0;
  const Node* deepest = nullptr;
  std::size_t index = 0;
};

namespace {

std::string name(const Node& node) {
  return "node " + std::to_string(node.index) + " [" + std::to_string(node.start()) + ", " + std::to_string(node.end) +
         ")";
}

std::string name(PageId page) { return "page " + std::to_string(page); }

template <typename Expected>
void check_node(const Node& node, const Geometry& geometry, const RadixTree& tree, std::vector<Expected>& pages) {
  std::uint32_t idle = 0;
  node.children.for_each([&](Token token, const Node* child) {
    VERIFY(child->alive && child->parent == &node, name(node) + " has a child that is not its own");
    VERIFY(token == child->first && child->first == *child->tokens.begin() && node.children.find(token) == child,
           name(*child) + " is not found under its first token");
    VERIFY(child->start() == node.end, name(*child) + " does not begin where its parent ends");
    VERIFY(node.is_root() || child->locks <= node.locks, name(*child) + " is locked more often than its parent");
    idle += child->idle_slots;
  });
  std::uint32_t locks = node.own_locks;
  node.children.for_each([&](Token, const Node* child) { locks += child->locks; });
  VERIFY(node.is_root() || locks == node.locks, name(node) + " miscounts its locks");
  VERIFY(idle <= node.idle_slots, name(node) + " counts fewer idle slots than its children");
  for (const Node* child = node.idle_children; child != nullptr; child = child->idle_next)
    VERIFY(child->idle_slots > 0 && child->parent == &node, name(node) + " lists a child without idle slots");
  if (node.is_root()) {
    VERIFY(node.end == 0 && node.pages.empty(), "a root holds tokens or pages");
    return;
  }
  VERIFY(node.tokens.size() > 0, name(node) + " is empty");
  VERIFY(node.blocks.empty() || node.blocks.size() == tree.blocks_in(&node), name(node) + " has blocks of others");
  VERIFY(node.parent->is_root() || node.hits <= node.parent->hits,
         name(node) + " was found more often than its parent");
  // Invariant 1: its pages are those of its positions.
  const std::size_t first = geometry.page_of(node.start());
  VERIFY(node.pages.size() == geometry.pages_for(node.end) - first, name(node) + " does not hold its span's pages");
  VERIFY(node.path_pages == node.parent->path_pages + node.pages.size() - tree.shares_first_page(&node),
         name(node) + " miscounts its path's pages");
  for (std::size_t i = 0; i < node.pages.size(); ++i) {
    Expected& page = pages.at(node.pages[i]);
    ++page.holders;
    page.pins += node.locks > 0;
    const std::size_t tail = i + 1 == node.pages.size() ? geometry.tail_bytes(node.end) : 0;
    page.recorded = std::max(page.recorded, static_cast<std::uint32_t>(tail == 0 ? geometry.page_bytes : tail));
    VERIFY(page.deepest == nullptr || page.index == first + i, name(node.pages[i]) + " is held at two page indices");
    page.index = first + i;
    const Node* upper = &node;
    const Node* lower = page.deepest == nullptr ? &node : page.deepest;
    if (upper->end > lower->end) std::swap(upper, lower);
    page.deepest = lower;
    while (lower->end > upper->end) lower = lower->parent;
    VERIFY(lower == upper, name(node.pages[i]) + " is held by nodes that do not lie on one path");
  }
}

// The list holds exactly the unlocked nodes, each after all its descendants.
void check_list(const RadixTree& tree) {
  std::vector<const Node*> order;
  for (const Node* node = tree.least_recent(); node != nullptr; node = node->newer) order.push_back(node);
  std::size_t unlocked = 0;
  tree.for_each([&](const Node& node) { unlocked += !node.is_root() && node.locks == 0; });
  VERIFY(order.size() == unlocked, "the eviction list does not hold exactly the unlocked nodes");
  std::vector<bool> seen;
  const auto mark = [&](const Node* node) {
    if (node->index >= seen.size()) seen.resize(node->index + 1);
    seen[node->index] = true;
  };
  for (const Node* node : order) {
    VERIFY(node->locks == 0, name(*node) + " is locked and stands in the eviction list");
    node->children.for_each([&](Token, const Node* child) {
      VERIFY(child->index < seen.size() && seen[child->index], name(*node) + " would be evicted before its child");
    });
    mark(node);
  }
}

// Slots in use stand in the order of the tree, with what neighbours share.
void check_order(const RadixTree& tree, const std::vector<bool>& used) {
  const LiveOrder& order = tree.live_order();
  struct Range {
    SlotId first, last;
  };
  std::unordered_map<const Node*, Range> below;
  std::vector<bool> listed(used.size());
  SlotId previous = kNoSlot;
  for (SlotId slot = order.first(); slot != kNoSlot; previous = slot, slot = order.next(slot)) {
    const std::string which = "slot " + std::to_string(slot);
    VERIFY(used[slot] && !listed[slot], which + " is listed twice, or is idle and listed among those in use");
    listed[slot] = true;
    std::ptrdiff_t shared = LiveOrder::kOtherRoot;
    for (const Node* node = tree.attached(slot); node != nullptr; node = node->parent) {
      const auto [entry, is_new] = below.try_emplace(node, Range{slot, slot});
      VERIFY(is_new || entry->second.last == previous,
             name(*node) + " has slots in use that do not stand side by side");
      entry->second.last = slot;
      if (!is_new) shared = std::max(shared, static_cast<std::ptrdiff_t>(node->end));
    }
    VERIFY(shared == order.shared(slot), which + " shares " + std::to_string(shared) +
                                             " tokens with the one before it, not " +
                                             std::to_string(order.shared(slot)));
  }
  VERIFY(listed == used, "a slot in use is not listed");
  tree.for_each([&](const Node& node) {
    const auto found = below.find(&node);
    VERIFY(node.first_live == (found == below.end() ? kNoSlot : found->second.first),
           name(node) + " does not know the first slot in use below it");
  });
}

}  // namespace

void KVCache::check() const {
  const std::lock_guard guard(mutex_);
  std::vector<Expected> pages(pool_.budget());
  std::size_t tokens = 0;
  std::size_t nodes = 0;
  tree_.for_each([&](const Node& node) {
    check_node(node, geometry_, tree_, pages);
    tokens += node.tokens.size();
    ++nodes;
  });
  VERIFY(tokens == tree_.tokens() && nodes == tree_.nodes(), "the tree miscounts its tokens or nodes");
  check_list(tree_);
  std::vector<bool> used(slots_.size());
  for (SlotId slot = 0; slot < slots_.size(); ++slot)
    used[slot] = slots_[slot].state == State::kLive || slots_[slot].state == State::kDraining;
  check_order(tree_, used);
  check_slots(pages);
  check_pages(pages);
  check_mappings();
}

void KVCache::check_slots(std::vector<Expected>& pages) const {
  std::size_t live_tokens = 0;
  SlotId live = 0;
  SlotId idle = 0;
  for (SlotId slot = 0; slot < slots_.size(); ++slot) {
    const Slot& it = slots_[slot];
    const std::string which = "slot " + std::to_string(slot);
    idle += it.state == State::kIdle;
    if (it.state != State::kLive) {
      VERIFY(it.pages == 0 && it.tokens == 0 && it.recorded == 0 && it.path == nullptr,
             which + " is not live and owns something");
      continue;
    }
    ++live;
    live_tokens += it.tokens - it.recorded;
    VERIFY(tree_.attached(slot) != nullptr && tree_.attached(slot)->alive, which + " is live and attached nowhere");
    VERIFY(it.path == nullptr || it.path->locks > 0, which + " is live and the path it was bound along is not locked");
    VERIFY(it.recorded <= it.tokens, which + " recorded more tokens than it has");
    VERIFY(it.pages == geometry_.pages_for(it.tokens), which + " is not backed exactly as far as its tokens reach");
    for (std::size_t index = 0; index < it.pages; ++index) {
      const PageId page = arena_.mapped(slot, index);
      VERIFY(page != kNoPage, which + " is live and page index " + std::to_string(index) + " maps nothing");
      ++pages[page].holders;
      ++pages[page].pins;
      ++pages[page].live;
    }
  }
  VERIFY(live == live_slots_ && live_tokens == live_tokens_, "live slots or their tokens are miscounted");
  VERIFY(idle == idle_.size() + unmapped_.size() && idle + live + draining_.size() + 1 == slots_.size(),
         "a slot is lost");
  const PageId padding = arena_.mapped(0, 0);
  ++pages[padding].holders;
  ++pages[padding].pins;
  ++pages[padding].live;
}

void KVCache::check_pages(const std::vector<Expected>& pages) const {
  PageId created = 0;
  PageId free = 0;
  PageId held = 0;
  PageId pinned = 0;
  for (PageId page = 0; page < pool_.budget(); ++page) {
    const Page& it = pool_[page];
    const Expected& should = pages[page];
    VERIFY(it.holders == should.holders,
           name(page) + " counts " + std::to_string(it.holders) + " holders, has " + std::to_string(should.holders));
    VERIFY(it.pins == should.pins,
           name(page) + " counts " + std::to_string(it.pins) + " pins, has " + std::to_string(should.pins));
    VERIFY(it.recorded == should.recorded, name(page) + " has " + std::to_string(should.recorded) +
                                               " recorded bytes, not " + std::to_string(it.recorded));
    VERIFY(it.created || it.holders == 0, name(page) + " is held and does not exist");
    VERIFY(it.live == should.live,
           name(page) + " counts " + std::to_string(it.live) + " requests, has " + std::to_string(should.live));
    VERIFY(it.deepest == should.deepest && (it.deepest == nullptr || it.index == should.index),
           name(page) + " does not know the deepest node that holds it");
    if (it.writer != kNoSlot) {  // a live slot that owns the page
      const Slot& writer = slots_.at(it.writer);
      bool maps = false;
      for (std::size_t index = 0; index < writer.pages; ++index) maps |= arena_.mapped(it.writer, index) == page;
      VERIFY(writer.state == State::kLive && maps, name(page) + " has a writer that does not own it");
    }
    created += it.created;
    free += it.created && it.holders == 0;
    held += it.holders > 0;
    pinned += it.pins > 0;
  }
  VERIFY(created == pool_.created() && free == pool_.free() && held == pool_.held() && pinned == pool_.pinned() &&
             free + held == created && pool_.evictable() == held - pinned,
         "the ledger of pages does not add up");
  VERIFY(pool_.withheld() <= pool_.budget() - created, "pages that exist are withheld");
  VERIFY(pool_.limit() > 1 && pool_.limit() <= pool_.budget(), "the limit is not within the budget");
  // What may be held: as much as there is memory for, and not more than the limit. It is held, or can be taken.
  const PageId capacity = std::min(pool_.limit(), pool_.budget() - pool_.withheld());
  VERIFY(held > capacity ? pool_.available() == 0 && pool_.excess() == held - capacity
                         : pool_.available() == capacity - held && pool_.excess() == 0,
         "what is held and can be taken is not what there is memory for and the limit allows");
  VERIFY(pool_.available() + pool_.reclaimable() == (pinned > capacity ? 0 : capacity - pinned),
         "evicting everything would not make available what nobody pins");
  VERIFY(pool_.creatable() == (created > capacity ? 0 : capacity - created) &&
             pool_.available() <= free + pool_.creatable(),
         "what can be taken neither exists nor can be created");
  PageId listed = 0;
  for (PageId page = pool_.first_free(); page != kNoPage; page = pool_.next_free(page)) ++listed;
  VERIFY(listed == free, "the list of free pages does not hold every free page");
}

void KVCache::check_mappings() const {
  std::size_t runs = 0;
  std::size_t mappings = 0;
  std::vector<std::uint32_t> of_page(pool_.budget());
  for (SlotId slot = 0; slot < slots_.size(); ++slot) {
    runs += arena_.extent(slot) > 0;  // the gap after its last page
    for (std::size_t index = 0; index < arena_.extent(slot); ++index) {
      const PageId page = arena_.mapped(slot, index);
      const PageId before = index == 0 ? kNoPage : arena_.mapped(slot, index - 1);
      runs += page == kNoPage ? before != kNoPage : before == kNoPage || before + 1 != page;
      if (page == kNoPage) continue;
      ++mappings;
      ++of_page[page];
      VERIFY(pool_[page].created, "slot " + std::to_string(slot) + " maps " + name(page) + ", which does not exist");
    }
  }
  VERIFY(runs == arena_.runs() && mappings == arena_.mappings(), "the runs of mapped pages are miscounted");
  for (PageId page = 0; page < pool_.budget(); ++page)
    VERIFY(pool_[page].mappings == (move_pages_ ? of_page[page] : 0), name(page) + " miscounts its mappings");
}

}  // namespace vt
