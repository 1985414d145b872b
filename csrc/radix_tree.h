// SPDX-License-Identifier: Apache-2.0
// Token-granular radix tree. A node spans tokens [start, end) of every sequence that runs through it and holds the
// pages that those tokens' bytes touch:
//
//     tokens    0 ......................... 23 ............ 37        (here 16 tokens a page)
//     nodes     [-- system prompt -----------)[-- a turn ---)
//     pages     |    P7     |    P9  .    |     turn in place: P9, P4     turn after a copy: P5, P4
//
// The border page is shared by both nodes when the turn extended it in place, and copied when it could not be. A
// path's page i is the one of its deepest node that touches page i; it carries all earlier bytes too.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "child_map.h"
#include "live_order.h"
#include "page_pool.h"
#include "types.h"

namespace vt {

// Part of a token sequence; a split shares the sequence instead of copying it.
class TokenSlice {
 public:
  TokenSlice() = default;
  explicit TokenSlice(std::span<const Token> tokens);
  const Token* begin() const { return data_.get() + offset_; }
  std::size_t size() const { return size_; }
  TokenSlice first(std::size_t count) const;
  TokenSlice from(std::size_t offset) const;

 private:
  std::shared_ptr<const Token[]> data_;
  std::size_t offset_ = 0;
  std::size_t size_ = 0;
};

// A name for `block_tokens` tokens at a multiple of that many, and all tokens before them. What it is, the caller
// decides.
using BlockId = std::array<std::uint8_t, 32>;

struct Node {
  Node* parent = nullptr;  // null for the root of a namespace
  Node* older = nullptr;   // neighbours in the list of unlocked nodes
  Node* newer = nullptr;
  std::size_t end = 0;  // tokens from the root to here
  Token first = 0;      // of its tokens
  TokenSlice tokens;
  std::vector<PageId> pages;  // for page indices [page_of(start), pages_for(end))
  std::uint32_t index = 0;    // in the tree's table; with the generation it makes the handle
  std::uint32_t generation = 0;
  std::uint32_t locks = 0;  // of it and its descendants
  std::uint32_t own_locks = 0;
  bool alive = false;
  SlotId slots = kNoSlot;       // first of the slots attached here
  SlotId first_live = kNoSlot;  // of those in use that are attached here or below, in their order
  ChildMap children;
  std::uint64_t hits = 0;       // binds that found all of it
  std::vector<BlockId> blocks;  // that end in (start, end], once they are set
  std::size_t path_pages = 0;   // pages that the nodes from the root to here hold; neighbours' shared ones once
  const std::string* name_space = nullptr;  // of a root
  std::uint32_t idle_slots = 0;             // idle slots attached here or below
  Node* idle_children = nullptr;            // first child with idle slots; the others by when they got theirs
  Node* last_idle_child = nullptr;
  Node* idle_previous = nullptr;  // neighbours among the parent's idle children
  Node* idle_next = nullptr;

  std::size_t start() const { return end - tokens.size(); }
  bool is_root() const { return parent == nullptr; }
};

using NodeHandle = std::uint64_t;  // 0 stands for every root

// Not thread-safe: the caller serialises.
class RadixTree {
 public:
  // block_tokens: 0 for no blocks.
  RadixTree(PagePool& pool, const Geometry& geometry, SlotId slots, std::size_t block_tokens);
  ~RadixTree();

  // ---- matching and recording

  // The deepest node that the tokens reach; a node is split where they part from it. Null: the namespace is empty.
  // The path counts as used now.
  Node* match(const std::string& name_space, std::span<const Token> tokens);
  // Splits a node, if need be, so that it ends at `end`, which lies in (start, end].
  Node* cut(Node* node, std::size_t end);

  struct Recorded {
    Node* node;         // spans up to tokens.size()
    bool duplicate;     // some of the tokens after `from` stood in the tree already, with other pages
    std::size_t added;  // tokens new to the tree
  };
  // Records a sequence whose first from->end tokens are from's path. pages[i] is the page that backs page index i of
  // the sequence; those of the new tokens get the tree as a holder.
  Recorded record(Node* from, std::span<const Token> tokens, std::span<const PageId> pages);

  Node* root(const std::string& name_space);  // made where absent
  static const std::string& name_space(const Node* node);
  // Page ids of a path, by page index.
  void collect(const Node* node, std::vector<PageId>& pages) const;

  // ---- locks and eviction

  void lock(Node* node);  // the node and its ancestors
  void unlock(Node* node);
  struct Evicted {
    std::size_t tokens;
    std::size_t pages_freed;
  };
  // Removes the leaf unused for longest. None: every node is locked.
  std::optional<Evicted> evict_oldest();
  // Removes every node. None may be locked.
  void clear();

  // ---- blocks: what the tree holds, for those who are told of it in whole blocks. A block belongs to the node in
  // which it ends, so that splitting a node neither adds nor removes one.

  std::size_t block_tokens() const { return block_tokens_; }
  std::size_t blocks_in(const Node* node) const;
  struct NewBlocks {
    std::size_t start;              // where the first block that ends in the node begins
    std::optional<BlockId> parent;  // the block before it
  };
  NewBlocks new_blocks(const Node* node) const;
  void set_blocks(Node* node, std::span<const BlockId> ids);
  // Those that evictions removed since this was called last; children before parents.
  std::vector<BlockId> take_removed_blocks();
  std::vector<BlockId> blocks() const;

  // ---- moving contents

  // Whether the tree holds the page, and no request does.
  bool is_cached_only(PageId page) const;
  // Of such a page: whether an idle slot other than this one may map it in its place for a next turn to find. Not one
  // for which so many others have become idle since that no next turn is expected.
  bool awaited(PageId page, SlotId slot, std::uint64_t others) const;
  // Has either page's holders hold the other one.
  void exchange(PageId a, PageId b);

  // ---- slots that were last bound along a path

  void attach(SlotId slot, Node* node, bool idle);
  void detach(SlotId slot);
  // Notes that a slot becomes idle.
  void became_idle(SlotId slot) { idle_since_[slot] = ++idle_clock_; }
  // Attaches a slot in use to a node below its own.
  void go_on(SlotId slot, Node* node);
  Node* attached(SlotId slot) const { return attachments_[slot].node; }
  // The next of the slots attached to the same node, of which node->slots is the first.
  SlotId next_attached(SlotId slot) const { return attachments_[slot].next; }
  // A slot whose last recorded token was the last that it had has more now.
  void grew_past_path() { live_order_.changed(); }
  // Those that are attached and not idle, as the tree orders them.
  const LiveOrder& live_order() const { return live_order_; }
  // An idle slot attached where the path to `node` is longest shared; kNoSlot: none shares anything with it. Of those
  // that do, the one with the least besides, or else the one that is idle for longest.
  SlotId idle_slot_near(const Node* node) const;
  // Called for each idle slot whose last node above a root was evicted.
  std::function<void(SlotId)> on_slot_loose;

  // ---- who is used

  void count_hit(Node* node);  // of the node and its ancestors
  struct Busy {
    std::string name_space;
    std::size_t start, end;
    std::uint64_t hits;
    std::vector<Token> first;  // tokens of its span, a few
  };
  std::vector<Busy> busiest(std::size_t count) const;

  // ---- looking

  Node* at(NodeHandle handle) const;  // throws InvariantError for a handle whose node is gone
  static NodeHandle handle(const Node* node);
  std::size_t nodes() const { return node_count_; }
  std::size_t tokens() const { return token_count_; }
  bool shares_first_page(const Node* node) const;
  void for_each(const std::function<void(const Node&)>& visit) const;
  const Node* least_recent() const { return oldest_; }

 private:
  struct Attachment {
    Node* node = nullptr;
    SlotId previous = kNoSlot;
    SlotId next = kNoSlot;
    bool idle = false;
  };

  Node* make_node();
  void free_node(Node* node);
  void free_root_if_unused(Node* root);
  Node* split(Node* node, std::size_t count);
  Node* holder_above(const Node* leaf, PageId page) const;
  void collect_places(PageId page, std::vector<PageId*>& places) const;
  void touch(Node* node);
  void list_insert_after(Node* node, Node* older);
  void list_remove(Node* node);
  void prefetch_evictions(const Node* leaf) const;
  void add_idle(Node* node, std::int32_t count);
  SlotId first_idle_below(const Node* node) const;
  void link(SlotId slot, Node* node, bool idle);
  Node* unlink(SlotId slot);

  PagePool& pool_;
  Geometry geometry_;
  std::size_t block_tokens_;
  std::vector<BlockId> removed_blocks_;
  std::vector<PageId*> places_;  // of the exchange under way; kept for its memory
  std::vector<std::unique_ptr<Node>> table_;
  std::vector<std::uint32_t> unused_;
  std::unordered_map<std::string, Node*> roots_;
  std::vector<Attachment> attachments_;    // by slot
  std::vector<std::uint64_t> idle_since_;  // likewise: how many had become idle by then
  std::uint64_t idle_clock_ = 0;
  LiveOrder live_order_;
  // Every unlocked node, least recently used first. A node stands after all its descendants, so the first is always
  // a leaf, and evicting takes no search.
  Node* oldest_ = nullptr;
  Node* newest_ = nullptr;
  std::size_t node_count_ = 0;
  std::size_t token_count_ = 0;
};

}  // namespace vt
