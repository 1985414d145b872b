// SPDX-License-Identifier: Apache-2.0
#include "radix_tree.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "errors.h"

namespace vt {
namespace {

// Length of the common prefix of two sequences of `count` tokens. In blocks, because memcmp is many times faster
// than a loop over tokens, but does not say where the difference is.
std::size_t common_prefix(const Token* a, const Token* b, std::size_t count) {
  constexpr std::size_t kBlock = 512;
  std::size_t i = 0;
  while (i < count) {
    const std::size_t n = std::min(kBlock, count - i);
    if (std::memcmp(a + i, b + i, n * sizeof(Token)) != 0) break;
    i += n;
  }
  const std::size_t end = std::min(i + kBlock, count);
  while (i < end && a[i] == b[i]) ++i;
  return i;
}

}  // namespace

TokenSlice::TokenSlice(std::span<const Token> tokens) : size_(tokens.size()) {
  auto copy = std::make_shared_for_overwrite<Token[]>(tokens.size());
  std::copy(tokens.begin(), tokens.end(), copy.get());
  data_ = std::move(copy);
}

TokenSlice TokenSlice::first(std::size_t count) const {
  TokenSlice part = *this;
  part.size_ = count;
  return part;
}

TokenSlice TokenSlice::from(std::size_t offset) const {
  TokenSlice part = *this;
  part.offset_ += offset;
  part.size_ -= offset;
  return part;
}

RadixTree::RadixTree(PagePool& pool, const Geometry& geometry, SlotId slots, std::size_t block_tokens)
    : pool_(pool),
      geometry_(geometry),
      block_tokens_(block_tokens),
      attachments_(slots),
      idle_since_(slots),
      live_order_(slots) {}

RadixTree::~RadixTree() = default;

// ---- matching and recording

Node* RadixTree::match(const std::string& name_space, std::span<const Token> tokens) {
  const auto found = roots_.find(name_space);
  if (found == roots_.end()) return nullptr;
  Node* node = found->second;
  for (std::size_t position = 0; position < tokens.size();) {
    Node* next = node->children.find(tokens[position]);
    if (next == nullptr) break;
    const std::size_t size = next->tokens.size();
    const std::size_t same =
        common_prefix(next->tokens.begin(), tokens.data() + position, std::min(size, tokens.size() - position));
    position += same;
    if (same < size) {
      node = split(next, same);
      break;
    }
    node = next;
  }
  touch(node);
  return node;
}

Node* RadixTree::cut(Node* node, std::size_t end) { return end == node->end ? node : split(node, end - node->start()); }

RadixTree::Recorded RadixTree::record(Node* from, std::span<const Token> tokens, std::span<const PageId> pages) {
  Node* node = from;
  bool duplicate = false;
  std::size_t position = from->end;
  while (position < tokens.size()) {
    Node* next = node->children.find(tokens[position]);
    if (next == nullptr) break;
    const std::size_t size = next->tokens.size();
    const std::size_t same =
        common_prefix(next->tokens.begin(), tokens.data() + position, std::min(size, tokens.size() - position));
    duplicate = true;
    position += same;
    if (same < size) {
      node = split(next, same);
      break;
    }
    node = next;
  }
  const std::size_t added = tokens.size() - position;
  if (added > 0) {
    Node* leaf = make_node();
    leaf->parent = node;
    leaf->first = tokens[position];
    leaf->tokens = TokenSlice(tokens.subspan(position));
    leaf->end = tokens.size();
    const std::size_t last = geometry_.pages_for(leaf->end);
    leaf->pages.reserve(last - geometry_.page_of(position));
    for (std::size_t index = geometry_.page_of(position); index < last; ++index) {
      const PageId id = pages[index];
      const std::size_t tail = index + 1 == last ? geometry_.tail_bytes(leaf->end) : 0;
      pool_.hold(id, false);
      Page& page = pool_[id];
      page.recorded = std::max(page.recorded, static_cast<std::uint32_t>(tail == 0 ? geometry_.page_bytes : tail));
      page.deepest = leaf;  // the request wrote the page, so that who else holds it stands above
      page.index = static_cast<std::uint32_t>(index);
      leaf->pages.push_back(id);
    }
    node->children.put(leaf->first, leaf);
    leaf->path_pages = node->path_pages + leaf->pages.size() - shares_first_page(leaf);
    list_insert_after(leaf, newest_);
    token_count_ += added;
    node = leaf;
  }
  touch(node);
  return {node, duplicate, added};
}

Node* RadixTree::root(const std::string& name_space) {
  const auto [entry, is_new] = roots_.try_emplace(name_space, nullptr);
  if (is_new) {
    entry->second = make_node();
    entry->second->name_space = &entry->first;
  }
  return entry->second;
}

const std::string& RadixTree::name_space(const Node* node) {
  while (!node->is_root()) node = node->parent;
  return *node->name_space;
}

void RadixTree::collect(const Node* node, std::vector<PageId>& pages) const {
  pages.resize(geometry_.pages_for(node->end));
  std::size_t known_from = pages.size();  // indices from here on are set; deeper nodes have precedence
  for (; !node->is_root(); node = node->parent) {
    const std::size_t first = geometry_.page_of(node->start());
    for (std::size_t index = first; index < known_from; ++index) pages[index] = node->pages[index - first];
    known_from = std::min(known_from, first);
  }
}

Node* RadixTree::split(Node* node, std::size_t count) {
  Node* upper = make_node();
  upper->parent = node->parent;
  upper->tokens = node->tokens.first(count);
  upper->end = node->start() + count;
  upper->locks = node->locks;
  upper->hits = node->hits;
  upper->first_live = node->first_live;
  if (!node->blocks.empty()) {
    const auto of_upper = node->blocks.begin() + static_cast<std::ptrdiff_t>(blocks_in(upper));
    upper->blocks.assign(node->blocks.begin(), of_upper);
    node->blocks.erase(node->blocks.begin(), of_upper);
  }
  const std::size_t first = geometry_.page_of(node->start());
  const std::size_t border = geometry_.page_of(upper->end);
  const auto upper_pages = static_cast<std::ptrdiff_t>(geometry_.pages_for(upper->end) - first);
  upper->pages.assign(node->pages.begin(), node->pages.begin() + upper_pages);
  node->pages.erase(node->pages.begin(), node->pages.begin() + static_cast<std::ptrdiff_t>(border - first));
  for (const PageId page : upper->pages)
    if (pool_[page].deepest == node) pool_[page].deepest = upper;
  // Both parts hold a page that they share.
  if (geometry_.tail_bytes(upper->end) != 0) {
    Page& border_page = pool_[node->pages.front()];
    pool_.hold(node->pages.front(), node->locks > 0);
    if (border_page.deepest == upper) border_page.deepest = node;
  }

  node->parent->children.put(node->first, upper);
  upper->first = node->first;
  node->tokens = node->tokens.from(count);
  node->first = *node->tokens.begin();
  upper->children.put(node->first, node);
  if (node->idle_slots > 0) {  // moves below the new node, whose count its ancestors have already
    const auto idle = static_cast<std::int32_t>(node->idle_slots);
    add_idle(node, -idle);
    node->parent = upper;
    add_idle(node, idle);
  }
  node->parent = upper;
  upper->path_pages = upper->parent->path_pages + upper->pages.size() - shares_first_page(upper);
  if (upper->locks == 0) list_insert_after(upper, node);
  return upper;
}

bool RadixTree::shares_first_page(const Node* node) const {
  const Node* parent = node->parent;
  return geometry_.tail_bytes(parent->end) != 0 && !parent->pages.empty() &&
         parent->pages.back() == node->pages.front();
}

// ---- locks and eviction

void RadixTree::lock(Node* node) {
  ++node->own_locks;
  for (; !node->is_root(); node = node->parent) {
    if (node->locks++ > 0) continue;
    list_remove(node);
    for (const PageId page : node->pages) pool_.pin(page);
  }
}

void RadixTree::unlock(Node* node) {
  if (node->own_locks == 0) throw InvariantError("a node was unlocked more often than locked");
  --node->own_locks;
  for (; !node->is_root(); node = node->parent) {
    if (--node->locks > 0) continue;
    list_insert_after(node, newest_);
    for (const PageId page : node->pages) pool_.unpin(page);
  }
}

std::optional<RadixTree::Evicted> RadixTree::evict_oldest() {
  Node* leaf = oldest_;
  if (leaf == nullptr) return std::nullopt;
  prefetch_evictions(leaf);
  if (!leaf->children.empty()) throw InvariantError("the least recently used node is not a leaf");
  Node* parent = leaf->parent;
  const PageId free_before = pool_.free();
  for (const PageId page : leaf->pages) {
    Node* holder = holder_above(leaf, page);
    pool_[page].recorded = holder == nullptr ? 0 : static_cast<std::uint32_t>(geometry_.tail_bytes(holder->end));
    pool_[page].deepest = holder;
    pool_.drop(page, false);
  }
  const Evicted evicted{leaf->tokens.size(), pool_.free() - free_before};
  token_count_ -= leaf->tokens.size();
  removed_blocks_.insert(removed_blocks_.end(), leaf->blocks.rbegin(), leaf->blocks.rend());
  list_remove(leaf);
  parent->children.erase(leaf->first);
  while (leaf->slots != kNoSlot) {
    const SlotId slot = leaf->slots;
    const bool idle = attachments_[slot].idle;
    detach(slot);
    if (idle && parent->is_root())
      on_slot_loose(slot);
    else
      attach(slot, parent, idle);
  }
  free_node(leaf);
  free_root_if_unused(parent);
  return evicted;
}

// Evicting is bound by cache misses: the next leaves' memory is fetched while this one is worked on, each kind of it
// one step after what points to it.
void RadixTree::prefetch_evictions(const Node* leaf) const {
  const Node* first = leaf->newer;
  const Node* second = first == nullptr ? nullptr : first->newer;
  const Node* third = second == nullptr ? nullptr : second->newer;
  if (third == nullptr) return;
  for (std::size_t offset = 0; offset < sizeof(Node); offset += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(third) + offset, 1);
  __builtin_prefetch(second->pages.data());
  __builtin_prefetch(second->tokens.begin() - 4, 1);
  __builtin_prefetch(second->tokens.begin() + second->tokens.size(), 1);  // freeing it looks at its neighbour
  __builtin_prefetch(second->parent->children.place_of(second->first), 1);
  for (const PageId page : first->pages) pool_.prefetch(page);
}

// The deepest ancestor of a leaf that holds a page of it too, which can only be the leaf's first: the page on which the
// ancestor ends and which was extended in place. Not always the parent: where the extending request found that another
// had recorded its next tokens, from other pages, it recorded only what comes after them.
Node* RadixTree::holder_above(const Node* leaf, PageId page) const {
  if (page != leaf->pages.front()) return nullptr;
  const std::size_t index = geometry_.page_of(leaf->start());
  for (Node* node = leaf->parent; !node->is_root() && geometry_.pages_for(node->end) > index; node = node->parent)
    if (node->pages.back() == page) return node;
  return nullptr;
}

void RadixTree::clear() {
  for (const auto& node : table_)
    if (node->alive && node->locks > 0)
      throw InvariantError("the tree cannot be cleared: some of its nodes are locked");
  while (evict_oldest()) {
  }
}

void RadixTree::touch(Node* node) {
  for (; !node->is_root(); node = node->parent) {
    if (node->locks > 0 || node == newest_) continue;
    list_remove(node);
    list_insert_after(node, newest_);
  }
}

void RadixTree::list_insert_after(Node* node, Node* older) {
  node->older = older;
  node->newer = older == nullptr ? oldest_ : older->newer;
  (node->older == nullptr ? oldest_ : node->older->newer) = node;
  (node->newer == nullptr ? newest_ : node->newer->older) = node;
}

void RadixTree::list_remove(Node* node) {
  (node->older == nullptr ? oldest_ : node->older->newer) = node->newer;
  (node->newer == nullptr ? newest_ : node->newer->older) = node->older;
  node->older = node->newer = nullptr;
}

// ---- moving contents

bool RadixTree::is_cached_only(PageId page) const {
  const Page& it = pool_[page];
  return it.holders > 0 && it.live == 0 && it.deepest != nullptr;
}

bool RadixTree::awaited(PageId page, SlotId slot, std::uint64_t others) const {
  const Node* deepest = pool_[page].deepest;
  if (deepest->idle_slots != 1) return deepest->idle_slots > 1;
  const SlotId home = first_idle_below(deepest);
  return home != slot && idle_clock_ - idle_since_[home] < others;
}

// Where the nodes that hold a page name it: all on the path to the deepest, those that touch the page's index.
void RadixTree::collect_places(PageId page, std::vector<PageId*>& places) const {
  const std::size_t index = pool_[page].index;
  for (Node* node = pool_[page].deepest; node != nullptr && !node->is_root() && geometry_.pages_for(node->end) > index;
       node = node->parent) {
    PageId& place = node->pages[index - geometry_.page_of(node->start())];
    if (place == page) places.push_back(&place);
  }
}

void RadixTree::exchange(PageId a, PageId b) {
  places_.clear();
  collect_places(a, places_);
  const std::size_t of_a = places_.size();
  collect_places(b, places_);
  for (std::size_t i = 0; i < places_.size(); ++i) *places_[i] = i < of_a ? b : a;
  pool_.exchange(a, b);
}

// ---- blocks

std::size_t RadixTree::blocks_in(const Node* node) const {
  return block_tokens_ == 0 ? 0 : node->end / block_tokens_ - node->start() / block_tokens_;
}

RadixTree::NewBlocks RadixTree::new_blocks(const Node* node) const {
  if (block_tokens_ == 0) throw std::invalid_argument("this cache has no blocks: block_tokens is 0");
  const std::size_t start = node->start() / block_tokens_ * block_tokens_;
  if (start == 0) return {0, std::nullopt};
  const Node* above = node->parent;
  while (blocks_in(above) == 0) above = above->parent;
  if (above->blocks.empty()) throw InvariantError("a node's blocks are asked for before those above it were set");
  return {start, above->blocks.back()};
}

void RadixTree::set_blocks(Node* node, std::span<const BlockId> ids) {
  if (ids.size() != blocks_in(node) || !node->blocks.empty())
    throw std::invalid_argument("a node in which " + std::to_string(blocks_in(node)) + " blocks end, " +
                                std::to_string(node->blocks.size()) + " of them set, was given " +
                                std::to_string(ids.size()));
  node->blocks.assign(ids.begin(), ids.end());
}

std::vector<BlockId> RadixTree::take_removed_blocks() { return std::exchange(removed_blocks_, {}); }

std::vector<BlockId> RadixTree::blocks() const {
  std::vector<BlockId> ids;
  for_each([&](const Node& node) { ids.insert(ids.end(), node.blocks.begin(), node.blocks.end()); });
  return ids;
}

// ---- who is used

void RadixTree::count_hit(Node* node) {
  for (; !node->is_root(); node = node->parent) ++node->hits;
}

std::vector<RadixTree::Busy> RadixTree::busiest(std::size_t count) const {
  constexpr std::size_t kShownTokens = 16;
  std::vector<const Node*> nodes;
  for_each([&](const Node& node) {
    if (node.hits > 0) nodes.push_back(&node);
  });
  const auto more = [](const Node* a, const Node* b) {
    const std::uint64_t saved_a = a->hits * a->tokens.size();
    const std::uint64_t saved_b = b->hits * b->tokens.size();
    return saved_a != saved_b ? saved_a > saved_b : a->index < b->index;
  };
  const auto last = nodes.begin() + static_cast<std::ptrdiff_t>(std::min(count, nodes.size()));
  std::partial_sort(nodes.begin(), last, nodes.end(), more);
  nodes.erase(last, nodes.end());
  std::vector<Busy> busy;
  busy.reserve(nodes.size());
  for (const Node* node : nodes) {
    const Token* first = node->tokens.begin();
    busy.push_back({name_space(node), node->start(), node->end, node->hits,
                    std::vector<Token>(first, first + std::min(kShownTokens, node->tokens.size()))});
  }
  return busy;
}

// ---- slots

void RadixTree::attach(SlotId slot, Node* node, bool idle) {
  link(slot, node, idle);
  if (idle)
    add_idle(node, 1);
  else
    live_order_.insert(slot, node);
}

void RadixTree::detach(SlotId slot) {
  if (attachments_[slot].node == nullptr) return;
  const bool idle = attachments_[slot].idle;
  Node* node = unlink(slot);
  if (idle)
    add_idle(node, -1);
  else
    live_order_.remove(slot, node);
  if (node->is_root()) free_root_if_unused(node);
}

void RadixTree::go_on(SlotId slot, Node* node) {
  Node* from = unlink(slot);
  link(slot, node, false);
  live_order_.go_on(slot, from, node);
}

void RadixTree::link(SlotId slot, Node* node, bool idle) {
  Attachment& it = attachments_[slot];
  it = {node, kNoSlot, node->slots, idle};
  if (it.next != kNoSlot) attachments_[it.next].previous = slot;
  node->slots = slot;
}

// The node that the slot was attached to.
Node* RadixTree::unlink(SlotId slot) {
  Attachment& it = attachments_[slot];
  (it.previous == kNoSlot ? it.node->slots : attachments_[it.previous].next) = it.next;
  if (it.next != kNoSlot) attachments_[it.next].previous = it.previous;
  return std::exchange(it, Attachment{}).node;
}

void RadixTree::add_idle(Node* node, std::int32_t count) {
  for (; node != nullptr; node = node->parent) {
    const bool had = node->idle_slots > 0;
    node->idle_slots += static_cast<std::uint32_t>(count);
    const bool has = node->idle_slots > 0;
    Node* parent = node->parent;
    if (parent == nullptr || had == has) continue;
    if (has) {
      node->idle_previous = parent->last_idle_child;
      (node->idle_previous == nullptr ? parent->idle_children : node->idle_previous->idle_next) = node;
      parent->last_idle_child = node;
    } else {
      (node->idle_previous == nullptr ? parent->idle_children : node->idle_previous->idle_next) = node->idle_next;
      (node->idle_next == nullptr ? parent->last_idle_child : node->idle_next->idle_previous) = node->idle_previous;
      node->idle_previous = node->idle_next = nullptr;
    }
  }
}

SlotId RadixTree::idle_slot_near(const Node* node) const {
  while (!node->is_root() && node->idle_slots == 0) node = node->parent;
  return node->is_root() ? kNoSlot : first_idle_below(node);
}

SlotId RadixTree::first_idle_below(const Node* node) const {
  for (;;) {
    for (SlotId slot = node->slots; slot != kNoSlot; slot = attachments_[slot].next)
      if (attachments_[slot].idle) return slot;
    node = node->idle_children;
  }
}

// ---- nodes

Node* RadixTree::make_node() {
  if (unused_.empty()) {
    unused_.push_back(static_cast<std::uint32_t>(table_.size()));
    table_.push_back(std::make_unique<Node>());
  }
  Node* node = table_[unused_.back()].get();
  node->index = unused_.back();
  ++node->generation;
  node->alive = true;
  unused_.pop_back();
  ++node_count_;
  return node;
}

// Leaves it as a new one, but for what tells a stale handle and the memory of its pages, which is kept.
void RadixTree::free_node(Node* node) {
  std::vector<PageId> pages = std::move(node->pages);
  pages.clear();
  const std::uint32_t index = node->index;
  const std::uint32_t generation = node->generation;
  *node = Node{};
  node->index = index;
  node->generation = generation;
  node->pages = std::move(pages);
  unused_.push_back(node->index);
  --node_count_;
}

void RadixTree::free_root_if_unused(Node* root) {
  if (!root->is_root() || !root->children.empty() || root->slots != kNoSlot) return;
  roots_.erase(*root->name_space);
  free_node(root);
}

Node* RadixTree::at(NodeHandle handle) const {
  const auto index = static_cast<std::uint32_t>(handle) - 1;
  if (index < table_.size()) {
    Node* node = table_[index].get();
    if (node->alive && node->generation == handle >> 32) return node;
  }
  throw InvariantError("no tree node has this handle: " + std::to_string(handle) + "; it was evicted");
}

NodeHandle RadixTree::handle(const Node* node) {
  if (node == nullptr || node->is_root()) return 0;
  return (static_cast<NodeHandle>(node->generation) << 32) | (node->index + 1);
}

void RadixTree::for_each(const std::function<void(const Node&)>& visit) const {
  for (const auto& node : table_)
    if (node->alive) visit(*node);
}

}  // namespace vt
