// SPDX-License-Identifier: Apache-2.0
// The core as its users see it: page pool, virtual tensors and radix tree under one lock, with every operation all
// or nothing.
//
// A slot's life, and who owns its pages [0, pages):
//
//     idle     --bind-->   live    --grow, record-->   live   --release-->   idle
//     nobody               the slot and the tree                              the tree, where recorded
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "arena.h"
#include "driver.h"
#include "driver_worker.h"
#include "page_pool.h"
#include "radix_tree.h"
#include "share_plan.h"

namespace vt {

// Counted since the start.
struct Counters {
  std::uint64_t binds = 0;
  std::uint64_t tokens_matched = 0;  // tokens that binds found in the tree: the sum of the next three
  std::uint64_t tokens_adopted = 0;  // on pages that the slot mapped already
  std::uint64_t tokens_aliased = 0;  // on pages that were mapped for it
  std::uint64_t tokens_copied = 0;   // copied or moved to pages that the slot mapped already, or copied as a tail
  std::uint64_t pages_created = 0;
  std::uint64_t pages_released = 0;    // given back to the driver
  std::uint64_t creations_failed = 0;  // for lack of memory
  std::uint64_t pages_aliased = 0;     // shared with the tree by a bind
  std::uint64_t pages_adopted = 0;     // those of them that the slot mapped already
  std::uint64_t pages_reused = 0;      // free pages that the slot mapped already
  std::uint64_t pages_mapped = 0;
  std::uint64_t pages_unmapped = 0;      // taken out of a mapping or replaced in it
  std::uint64_t guards_mapped = 0;       // those mapped only so that what lies behind a sequence can be read
  std::uint64_t pages_mapped_ahead = 0;  // those mapped before they were needed, beside other work
  std::uint64_t pages_moved = 0;         // contents that went to another page, so that a mapping could stay
  std::uint64_t pages_copied = 0;        // of prefixes, to pages of the request's own that its slot mapped already
  std::uint64_t tails_extended = 0;      // partly filled pages that a bind went on filling in place
  std::uint64_t tails_copied = 0;        // partly filled pages that a bind copied
  std::uint64_t nodes_evicted = 0;
  std::uint64_t tokens_evicted = 0;
  std::uint64_t slots_shed = 0;      // idle slots unmapped to stay under the mapping limit
  std::uint64_t driver_calls = 0;    // a page is a call of its own, also in a batch
  std::uint64_t driver_ns = 0;       // time spent in them, by whichever thread
  std::uint64_t driver_wait_ns = 0;  // that callers of the cache spent in them, or waiting for the thread's
};

// What one live request has cost so far.
struct RequestCosts {
  std::uint64_t pages_adopted = 0;  // of its prefix, where its slot mapped them already
  std::uint64_t pages_aliased = 0;  // of its prefix, mapped for it
  std::uint64_t pages_moved = 0;    // contents moved for it
  std::uint64_t pages_copied = 0;   // of its prefix, to pages of its own
  std::uint64_t pages_reused = 0;   // free ones, where its slot mapped them already
  std::uint64_t pages_mapped = 0;
  std::uint64_t pages_unmapped = 0;
  bool tail_copied = false;
  std::uint64_t driver_wait_ns = 0;  // that its bind took, and its part of growths
};

// Now, in pages and tokens.
struct Usage {
  PageId budget, limit, created, free, held, evictable, withheld;
  SlotId slots, slots_live;
  std::size_t nodes, tree_tokens, live_tokens;
  std::size_t mapping_runs;
};

class KVCache {
 public:
  // slots: virtual tensors, the padding slot 0 included. slot_tokens: the longest sequence a slot must hold.
  // budget: pages for sequences; one more backs token 0 of slot 0 from the start, so that kernels may read and write
  // it as padding. mapping_limit: 0 takes the driver's. block_tokens: tokens of a block, for those who are told what
  // the tree holds; 0 for no blocks. move_pages: move contents rather than map pages, where either would do. map_ahead:
  // a thread of the cache's maps what is likely to be needed. copy_from_pages: so many pages of its prefix, or more, a
  // bind copies rather than maps, where it may; at least 1.
  KVCache(std::unique_ptr<Driver> driver, const Geometry& geometry, SlotId slots, std::size_t slot_tokens,
          PageId budget, std::size_t mapping_limit, std::size_t block_tokens, bool move_pages, bool map_ahead,
          std::size_t copy_from_pages);
  ~KVCache();

  struct Match {
    NodeHandle node;
    std::size_t tokens;
  };
  // The longest recorded prefix. total_tokens, where not 0, is how far the sequence may grow: the match is cut
  // shorter where holding it and growing so far would take more pages than there are (the tail of the match and
  // what diverged from it would have to exist side by side).
  Match match(const std::string& name_space, std::span<const Token> tokens, std::size_t total_tokens);

  void lock(NodeHandle node);
  void unlock(NodeHandle node);

  enum class Tail { kNone, kExtended, kCopied };
  struct Bound {
    SlotId slot;
    Tail tail;
    std::size_t pages_aliased;
    std::size_t pages_mapped;
  };
  // Takes an idle slot, backs its first `tokens` tokens, the path of `node` (at least as long as the path, which
  // must be locked) shared and the rest new. Evicts if need be. Throws OutOfPages, SlotsBusy or DriverError.
  // So many guard_tokens behind the last may be read then, whatever they hold: where nothing is mapped, the padding
  // page is.
  // Of spare_pages, which nobody else will need, half may be taken, if they are free, for copies of what others hold.
  Bound bind(const std::string& name_space, NodeHandle node, std::size_t tokens, std::size_t guard_tokens,
             std::size_t spare_pages);
  // Where binding a slot to the node would map this many pages of its path or more: has the thread map them in a slot
  // that maps nothing, if there is one. Returns how many of these mappings are still to come; 0: better bind now.
  std::size_t prepare(NodeHandle node, std::size_t least_pages, std::size_t spare_pages);
  // Backs each live slot up to so many tokens; all of them or none. Evicts if need be. Guards as bind does.
  void grow(std::span<const SlotId> slots, std::span<const std::size_t> tokens, std::size_t guard_tokens);
  // Pages that such a growth would take.
  std::size_t pages_to_grow(std::span<const SlotId> slots, std::span<const std::size_t> tokens) const;

  struct Recorded {
    NodeHandle node;
    bool duplicate;
    std::size_t added;
  };
  // Records the live slot's first tokens.size() tokens in the tree. They must all be written by forwards begun
  // before now.
  Recorded record(SlotId slot, std::span<const Token> tokens);
  // Blocks, see radix_tree.h. New ones belong to the leaf that record just made.
  RadixTree::NewBlocks new_blocks(NodeHandle node) const;
  void set_blocks(NodeHandle node, std::span<const BlockId> ids);
  std::vector<BlockId> take_removed_blocks();
  std::vector<BlockId> blocks() const;
  // Nodes by the tokens that they saved binds from computing, most first; at most so many.
  std::vector<RadixTree::Busy> busiest(std::size_t count) const;

  // Ends the slot's request. Its pages stay with the tree where recorded, and mapped in any case.
  void release(SlotId slot);

  // Forwards are numbered in the order they are launched. A slot that one uses is not bound anew before the
  // forward is completed.
  // Where it reads guards too, they are not replaced before it is completed: grow throws SlotsBusy.
  std::uint64_t begin_forward(std::span<const SlotId> slots, bool reads_guards);
  void complete_forward(std::uint64_t forward);

  // Plans what these live slots (or padding) read together in a decode step, by what the tree knows of them now.
  // False, and nothing written, if that is what `plan` was made of last.
  bool plan_shares(SharePlan& plan, std::span<const SlotId> slots, std::size_t tile, std::size_t workers,
                   std::span<std::int32_t> buffer);
  SharePlan::Facts facts(const SharePlan& plan) const;

  // Evicts until this many more pages can be taken than now, or nothing is left to evict. Returns tokens evicted.
  std::size_t evict(std::size_t pages);
  // The same until this many more tokens are available.
  std::size_t evict_tokens(std::size_t tokens);
  // Creates pages and evicts, if need be, so that this many are free: the next binds and growths that take no more
  // cannot fail for lack of memory. False, and nothing evicted, if that cannot be or if they could not be mapped.
  bool make_room(std::size_t pages);
  // Creates pages until this many are free, as far as the budget and the memory go. What could not be created is
  // withheld from then on; `retry` asks again at once and not only after a while.
  void create_ahead(std::size_t pages, bool retry);
  // Pages that can be mapped besides those of live and draining slots, after shedding all else.
  std::size_t mappable_pages() const;
  // Gives free pages back to the driver until this many are left, by about so many driver calls at most (every mapping
  // of a page is one); pages of slots in flight are passed over. So are, unless all is `settled`, pages that the driver
  // was told to copy or to clear ahead of a forward that is not completed. Returns pages given back.
  std::size_t trim(std::size_t keep, std::size_t most_calls, bool settled);
  // How many pages may exist beside the padding page, from now on; 1 up to the budget. What is above it is evicted, as
  // far as it is not pinned; see `shrink`.
  void set_limit(std::size_t pages);
  // Evicts what is held above the limit, and gives free pages above it back to the driver by about so many calls, while
  // forwards may be in flight. `settled`: see `trim`. Returns pages given back. To be called again while more exist
  // than the limit allows.
  std::size_t shrink(std::size_t most_calls, bool settled);
  // Waits until all that is mapped and created ahead is so.
  void finish_ahead();
  // Forgets every recorded sequence. No slot may be live and no node locked.
  void clear();

  Usage usage() const;
  Counters counters() const;
  // Tokens that SGLang may be told of; their sum with those of its running requests is always total_tokens().
  std::size_t total_tokens() const { return geometry_.tokens_in(budget_); }
  std::size_t available_tokens() const;
  std::size_t evictable_tokens() const;
  std::size_t protected_tokens() const;
  SlotId idle_slots() const;
  // Pages that can be taken, if need be after evicting everything that is not locked.
  std::size_t deliverable_pages() const;
  // Length of a node's path.
  std::size_t node_tokens(NodeHandle node) const;

  const Geometry& geometry() const { return geometry_; }
  std::uintptr_t base() const { return arena_.base(); }
  SlotId slots() const { return arena_.slots(); }
  std::size_t slot_tokens() const { return arena_.slot_tokens(); }
  std::size_t block_tokens() const { return tree_.block_tokens(); }
  // 0 where contents do not move.
  std::size_t copy_from_pages() const { return move_pages_ ? copy_from_pages_ : 0; }
  std::size_t slot_bytes() const { return arena_.slot_bytes(); }
  Driver& driver() { return *driver_; }
  std::size_t physical_bytes() const;
  void set_stream(std::uintptr_t stream);
  RequestCosts costs(SlotId slot) const;  // of the request in a live slot
  // Page ids of a slot's held pages, and of a node's path, by page index.
  std::vector<PageId> slot_pages(SlotId slot) const;
  std::vector<PageId> path_pages(NodeHandle node) const;
  // Proves every invariant from scratch; throws InvariantError naming the one that does not hold. Slow.
  void check() const;

 private:
  enum class State : std::uint8_t { kPadding, kIdle, kDraining, kLive };
  struct Slot {
    State state = State::kIdle;
    std::size_t pages = 0;     // held, from index 0, while live
    std::size_t tokens = 0;    // backed and counted to the request, while live
    std::size_t recorded = 0;  // tokens of it that the tree has too, while live
    bool duplicate = false;    // some of them stood there already, with other pages
    RequestCosts costs;        // of the request, while live
    // What it was bound along, locked while it is live: the tree would not know of a page that only a request reads,
    // and would let another extend it over what is read.
    Node* path = nullptr;
    std::uint64_t last_forward = 0;
    std::uint64_t guard_reader = 0;             // the last forward that reads behind its tokens
    std::uint64_t seen = 0;                     // the growth that looked at it last
    std::list<SlotId>::iterator idle;           // while idle: place in idle_, or in unmapped_
    bool unmapped = false;                      // in the latter
    bool prepared = false;                      // mapped for a prefix, and bound to no request since
    std::vector<DriverWorker::Ticket> pending;  // mappings that the thread is to make
  };
  // A fresh page for each of these indices: claimed where the slot maps a free one, else taken.
  struct Fresh {
    SlotId slot;
    std::size_t index;
    PageId page = kNoPage;
    bool comes = false;  // it will be the one that the slot maps, whose content goes to `page` by then
  };
  // A move, and what it is for: that fresh page `at` can be the one mapped there, or page `at` of the path bound to.
  struct Planned {
    Move move;
    bool of_path;
    std::size_t at;
  };

  // A mapping that the thread is to make. Until it is known to be made, the arena does not have it.
  struct Ahead {
    SlotId slot;
    std::uint32_t index;
    PageId page;
  };

  struct Expected;  // of a page, as the checker counts it

  void check_slots(std::vector<Expected>& pages) const;
  void check_pages(const std::vector<Expected>& pages) const;
  void check_mappings() const;
  const Slot& live(SlotId slot) const;
  bool fits(const Node* node, std::size_t total_tokens) const;
  // bind.cpp
  struct Binding;
  Node* node_to_bind(const std::string& name_space, NodeHandle handle, std::size_t tokens) const;
  Binding begin_binding(Node* node, std::size_t tokens);
  void choose_slot_and_copies(Binding& it, std::size_t spare_pages);
  bool is_copied(std::size_t index) const;
  std::size_t tokens_on(const Binding& it, std::size_t index) const;
  void take_pages(Binding& it);
  void choose_changes(Binding& it, std::size_t guard_tokens);
  void map_and_fill(const Binding& it);
  void hold_pages(const std::string& name_space, const Binding& it);
  void count(const Binding& it);
  void require_idle_slot() const;
  void await_own_slot(const Node* node, std::span<const PageId> path) const;
  SlotId idle_slot_near(const Node* node, std::span<const PageId> path) const;
  bool may_map_more(std::size_t pages) const;
  SlotId choose_slot(const Node* node, std::span<const PageId> path);
  // moves.cpp
  bool movable(PageId page, SlotId slot) const;
  bool can_copy_here(SlotId slot, std::size_t index, PageId page) const;
  bool can_move_here(SlotId slot, std::size_t index, PageId page) const;
  bool plan_move_here(SlotId slot, std::size_t index, PageId page);
  std::size_t make_moves(std::vector<Fresh>& fresh, std::vector<PageId>& path);
  void begin_choice(std::span<const PageId> path);
  std::size_t most_copies(std::size_t fresh, std::size_t spare_pages) const;
  std::size_t pages_to_map(SlotId slot, std::span<const PageId> prefix, std::size_t copies) const;
  SlotId choose_slot_to_copy_to(SlotId slot, std::span<const PageId> prefix, std::size_t copies) const;
  std::size_t plan_copies(SlotId slot, std::span<const PageId> prefix, std::size_t copies);
  void copy_prefix(std::span<const Fresh> copies, std::span<const PageId> path);
  // ahead.cpp
  void harvest();
  void settle(SlotId slot, std::size_t first, std::size_t last);
  void settle_all();
  void end_ahead(DriverWorker::Ticket ticket, std::optional<bool> done);
  void post_ahead(const Ahead& ahead, DriverWorker::Priority priority);
  PageId page_to_map_ahead();
  void map_ahead(SlotId slot, std::size_t guard_tokens);
  void keep_guards(SlotId slot);
  void unreserve(SlotId slot);
  void prepare_slot(Node* node);
  std::size_t whole_pages(const Node* node) const;
  std::size_t map_in_spare_slot(Node* node);
  void dissolve(SlotId slot);
  void stock_up();
  std::size_t give_back_stock();
  // memory.cpp
  std::optional<std::size_t> evict_one();
  std::size_t evict_until(std::size_t available);
  void evict_excess();
  std::size_t room_for_mappings() const;
  PageId create_page();
  void create_pages(std::size_t pages);
  void retry_withheld(bool now);
  bool free_pages(std::size_t pages);
  void require(std::size_t pages);
  void acquire(std::vector<Fresh>& fresh);
  void give_back(const std::vector<Fresh>& fresh);
  void clear_created(const std::vector<Fresh>& fresh);
  void clear_if_new(PageId page, SlotId slot, std::size_t index);
  void touch(PageId page);
  void touch_all(std::span<const Move> moves);
  std::size_t add_guards(SlotId slot, std::size_t tokens, std::size_t guard_tokens, std::vector<Change>& changes) const;
  void map(std::span<const Change> changes, SlotId binding);
  void shed(std::span<const Change> changes, SlotId binding);
  std::size_t trim_pages(std::size_t keep, std::size_t most_calls, bool settled);
  std::vector<bool> mapped_in_flight() const;

  void make_idle(SlotId slot);
  void forget_idle(SlotId slot);

  mutable std::mutex mutex_;
  std::unique_ptr<DriverWorker> driver_;
  Geometry geometry_;
  PageId budget_;  // without the padding page
  PagePool pool_;
  Arena arena_;
  RadixTree tree_;
  std::vector<Slot> slots_;
  // Idle slots that map something: first those that share nothing with the tree, then by the time of their release.
  std::list<SlotId> idle_;
  std::list<SlotId> unmapped_;                     // those that were never bound, or were shed or dissolved
  std::multimap<std::uint64_t, SlotId> draining_;  // by the forward that each waits for
  std::size_t live_tokens_ = 0;                    // of live slots, not recorded
  SlotId live_slots_ = 0;
  std::uint64_t begun_ = 0;
  std::uint64_t completed_ = 0;
  std::uint64_t growths_ = 0;
  std::uint64_t choices_ = 0;  // binds and growths that chose what to move
  bool move_pages_;
  bool map_ahead_;
  std::size_t copy_from_pages_;
  std::unordered_map<DriverWorker::Ticket, Ahead> pending_;
  PageId stocked_until_ = 0;    // the pages from the next new one to this were to be prepared
  std::uint64_t retry_at_ = 0;  // the forward from which on it is tried again to create a page that is withheld
  Counters counters_;
  struct {
    std::vector<PageId> path;
    std::vector<Fresh> fresh;
    std::vector<Change> changes;
    std::vector<bool> replaced;  // by change
    std::vector<bool> copied;    // by page index of the path
    std::vector<Planned> planned;
    std::vector<Move> moves;
    std::vector<std::int32_t> rows;  // by slot
    std::vector<SharePlan::Member> members;
  } scratch_;  // of the bind, growth or plan under way; kept for its memory
};

}  // namespace vt
