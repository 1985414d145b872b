// SPDX-License-Identifier: Apache-2.0
// Physical pages and the one ledger over them.
//
//   not created --create--> free --take--> taken --hold--> held (count = holders)
//        ^                   | ^             |               |
//        +----- destroy -----+ +- give_back -+               |
//                              +--------- last drop ---------+
//
// Where the driver has no memory for another page, those that are not created are withheld: they cannot be taken, and
// the ledger shows it, until a page can be created again.
//
// Free pages stand in one of three lists, each by how long they have been free: those that nothing maps, those that
// some slot still maps, and those that are kept for somebody.
//
// A limit below the budget withholds pages too, and is counted by itself. It may be set below what is held: then no
// page can be taken before as many are free again, and what exists above it is to be evicted and destroyed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "driver.h"
#include "errors.h"

namespace vt {

struct Node;

// Most of what is done to a page misses the cache once: all of it in one line.
struct alignas(64) Page {
  std::uint32_t holders = 0;   // tree nodes and live requests that own it (invariant 3)
  std::uint32_t pins = 0;      // those of them that forbid eviction: live requests and locked nodes
  std::uint32_t recorded = 0;  // bytes, from the page's start, that tree nodes use
  SlotId writer = kNoSlot;     // the one slot that may write past `recorded` (invariant 4)
  std::uint32_t live = 0;      // holders that are live requests
  // The deepest tree node that holds it, and which of a sequence's pages it is there. The nodes that hold a page lie on
  // one path.
  std::uint32_t index = 0;
  Node* deepest = nullptr;
  std::uint64_t chosen = 0;    // the bind or growth that has set its content to be moved, or not to be, last
  std::uint32_t mappings = 0;  // in all slots, where they are counted
  bool created = false;
  bool cleared = false;       // its memory was filled with zeros since it was created
  std::uint8_t list = 0;      // of free pages, that it stands in or stood in last
  PageId previous = kNoPage;  // neighbours in the free list
  PageId next = kNoPage;
  std::uint64_t touched = 0;  // the forward ahead of which the driver was last told to copy or clear it
};
static_assert(sizeof(Page) == 64);

// Not thread-safe: the caller serialises.
class PagePool {
 public:
  // budget: how many pages may exist at one time.
  PagePool(Driver& driver, PageId budget);

  // Makes one page more, free. Throws DriverError; where that is OutOfMemory, all that are not created are withheld.
  // A success ends that. Some page must be left to create, withheld or not.
  PageId create();
  enum class Prefer : std::uint8_t { kUnmapped, kMapped };
  // Of the pages of that kind the one longest free, else of the other, else one that is kept for somebody; there must
  // be one.
  PageId take(Prefer prefer = Prefer::kUnmapped);
  // Takes this very page; false if it is not free.
  bool claim(PageId page);
  // Whether a transaction has taken or claimed the page, and neither held it yet nor given it back.
  bool taken(PageId page) const {
    const Page& it = pages_[page];
    return it.created && it.holders == 0 && it.previous == kNoPage && lists_[it.list].first != page;
  }
  // Keeps a free page for who is to claim it, as long as take() finds others.
  void reserve(PageId page);
  void unreserve(PageId page);
  // Undoes take or claim.
  void give_back(PageId page);

  void hold(PageId page, bool pinned);
  // The last drop frees the page.
  void drop(PageId page, bool pinned);
  // The same of a live request.
  void hold_live(PageId page) {
    hold(page, true);
    ++pages_[page].live;
  }
  void drop_live(PageId page) {
    --pages_[page].live;
    drop(page, true);
  }
  // Makes each page what the other was, content apart: held by whom, or taken. Both are written now.
  void exchange(PageId a, PageId b);
  void pin(PageId page);
  void unpin(PageId page);

  // Gives a free page's memory back to the driver. It must be mapped nowhere.
  void destroy(PageId page);
  // The free pages, list by list: those that nothing maps, those that are mapped, those that are kept for somebody.
  // kNoPage: no more.
  PageId first_free() const { return first_from(kUnmapped); }
  PageId next_free(PageId page) const {
    const Page& it = pages_[page];
    return it.next != kNoPage ? it.next : first_from(it.list + 1);
  }
  bool reserved(PageId page) const { return is_free(page) && pages_[page].list == kReserved; }
  bool is_free(PageId page) const {
    const Page& it = pages_[page];
    return it.created && it.holders == 0 && !taken(page);
  }

  // To be told of every mapping that is made and undone, or of none.
  void count_mapping(PageId page);
  void discount_mapping(PageId page);

  Page& operator[](PageId page) { return pages_[page]; }
  const Page& operator[](PageId page) const { return pages_[page]; }

  void prefetch(PageId page) const { __builtin_prefetch(&pages_[page], 1); }

  // How many pages may exist at one time, from now on; at most the budget.
  void set_limit(PageId pages) { limit_ = pages; }

  PageId budget() const { return static_cast<PageId>(pages_.size()); }
  PageId limit() const { return limit_; }
  PageId created() const { return created_; }
  PageId free() const { return free_; }
  PageId reserved() const { return lists_[kReserved].pages; }
  // The lowest id that was never created, of which those above it are created one by one, unless pages that were
  // destroyed come before: then kNoPage.
  PageId next_new() const { return destroyed_.empty() ? next_new_ : kNoPage; }
  PageId held() const { return held_; }
  PageId pinned() const { return pinned_; }
  // Held pages that no pin protects: evicting every unlocked node frees exactly these.
  PageId evictable() const { return evictable_; }
  // Pages not created that cannot be taken, because there was no memory for one of them.
  PageId withheld() const { return withheld_; }
  // Pages that may be held, as far as is known.
  PageId capacity() const { return std::min(limit_, budget() - withheld_); }
  // Pages not created that can be taken.
  PageId creatable() const { return less(capacity(), created_); }
  // Pages that can be taken now without evicting.
  PageId available() const { return less(capacity(), held_ + taken_); }
  // Pages held above the capacity: as many have to be evicted before one becomes available.
  PageId excess() const { return less(held_ + taken_, capacity()); }
  // Pages more that evicting every unlocked node makes available.
  PageId reclaimable() const { return less(evictable_, excess()); }

 private:
  static PageId less(PageId from, PageId what) { return from > what ? from - what : 0; }
  static constexpr std::uint8_t kUnmapped = 0;
  static constexpr std::uint8_t kMapped = 1;
  static constexpr std::uint8_t kReserved = 2;
  static constexpr std::uint8_t kLists = 3;
  struct List {
    PageId first = kNoPage;
    PageId last = kNoPage;
    PageId pages = 0;
  };
  PageId first_from(int list) const {
    for (; list < kLists; ++list)
      if (lists_[list].first != kNoPage) return lists_[list].first;
    return kNoPage;
  }
  void unlink(PageId page);
  void append(PageId page, std::uint8_t list);
  void make_free(PageId page) {
    append(page, pages_[page].mappings == 0 ? kUnmapped : kMapped);
    ++free_;
  }
  void move_to(std::uint8_t list, PageId page) {
    unlink(page);
    append(page, list);
  }

  Driver& driver_;
  std::vector<Page> pages_;
  PageId next_new_ = 0;            // lowest id that was never created
  std::vector<PageId> destroyed_;  // a heap with the lowest id first, so that page ids stay dense
  List lists_[kLists];
  PageId limit_;
  PageId created_ = 0;
  PageId withheld_ = 0;
  PageId free_ = 0;
  PageId taken_ = 0;
  PageId held_ = 0;
  PageId pinned_ = 0;
  PageId evictable_ = 0;
};

// These are called for every page of every request: in line.

inline void PagePool::unlink(PageId page) {
  Page& it = pages_[page];
  List& list = lists_[it.list];
  (it.previous == kNoPage ? list.first : pages_[it.previous].next) = it.next;
  (it.next == kNoPage ? list.last : pages_[it.next].previous) = it.previous;
  it.previous = it.next = kNoPage;
  --list.pages;
}

inline void PagePool::append(PageId page, std::uint8_t which) {
  Page& it = pages_[page];
  List& list = lists_[which];
  it.list = which;
  it.previous = list.last;
  it.next = kNoPage;
  (list.last == kNoPage ? list.first : pages_[list.last].next) = page;
  list.last = page;
  ++list.pages;
}

inline bool PagePool::claim(PageId page) {
  if (!is_free(page)) return false;
  unlink(page);
  --free_;
  ++taken_;
  return true;
}

inline void PagePool::reserve(PageId page) { move_to(kReserved, page); }

inline void PagePool::unreserve(PageId page) {
  if (reserved(page)) move_to(pages_[page].mappings == 0 ? kUnmapped : kMapped, page);
}

inline PageId PagePool::take(Prefer prefer) {
  PageId page = lists_[prefer == Prefer::kMapped ? kMapped : kUnmapped].first;
  if (page == kNoPage) page = first_free();
  if (page == kNoPage) throw InvariantError("a page was to be taken where none is free");
  claim(page);
  return page;
}

inline void PagePool::give_back(PageId page) {
  --taken_;
  make_free(page);
}

inline void PagePool::count_mapping(PageId page) {
  if (pages_[page].mappings++ == 0 && is_free(page) && pages_[page].list == kUnmapped) move_to(kMapped, page);
}

inline void PagePool::discount_mapping(PageId page) {
  if (--pages_[page].mappings == 0 && is_free(page) && pages_[page].list == kMapped) move_to(kUnmapped, page);
}

inline void PagePool::hold(PageId page, bool pinned) {
  Page& it = pages_[page];
  const bool was_evictable = it.holders > 0 && it.pins == 0;
  if (it.holders++ == 0) {
    --taken_;
    ++held_;
  }
  if (pinned) pinned_ += it.pins++ == 0;
  evictable_ += static_cast<PageId>(it.pins == 0) - static_cast<PageId>(was_evictable);
}

inline void PagePool::drop(PageId page, bool pinned) {
  Page& it = pages_[page];
  if (it.holders == 0 || (pinned && it.pins == 0)) throw InvariantError("a page was dropped more often than held");
  const bool was_evictable = it.pins == 0;
  --it.holders;
  if (pinned) pinned_ -= --it.pins == 0;
  evictable_ += static_cast<PageId>(it.holders > 0 && it.pins == 0) - static_cast<PageId>(was_evictable);
  if (it.holders > 0) return;
  --held_;
  it.recorded = 0;
  it.writer = kNoSlot;
  it.deepest = nullptr;
  make_free(page);
}

inline void PagePool::pin(PageId page) {
  if (pages_[page].pins++ > 0) return;
  ++pinned_;
  --evictable_;
}

inline void PagePool::unpin(PageId page) {
  if (--pages_[page].pins > 0) return;
  --pinned_;
  ++evictable_;
}

}  // namespace vt
