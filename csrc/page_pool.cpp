// SPDX-License-Identifier: Apache-2.0
#include "page_pool.h"

#include <algorithm>
#include <functional>

#include "errors.h"

namespace vt {

PagePool::PagePool(Driver& driver, PageId budget) : driver_(driver), pages_(budget), uncreated_(budget) {
  for (PageId page = 0; page < budget; ++page) uncreated_[page] = page;  // ascending order is a valid heap
}

void PagePool::create() {
  if (uncreated_.empty()) throw InvariantError("every page is created already");
  const PageId page = uncreated_.front();
  try {
    driver_.create(page);
  } catch (const OutOfMemory&) {
    withheld_ = static_cast<PageId>(uncreated_.size());
    throw;
  }
  std::pop_heap(uncreated_.begin(), uncreated_.end(), std::greater<>());
  uncreated_.pop_back();
  pages_[page].created = true;
  ++created_;
  withheld_ = 0;
  append(page);
}

PageId PagePool::take() {
  const PageId page = free_head_;
  if (page == kNoPage) throw InvariantError("a page was to be taken where none is free");
  claim(page);
  return page;
}

bool PagePool::claim(PageId page) {
  if (!pages_[page].created || pages_[page].holders != 0 || taken(page)) return false;
  unlink(page);
  --free_;
  ++taken_;
  return true;
}

void PagePool::give_back(PageId page) {
  --taken_;
  append(page);
}

void PagePool::hold(PageId page, bool pinned) {
  Page& it = pages_[page];
  const bool was_evictable = it.holders > 0 && it.pins == 0;
  if (it.holders++ == 0) {
    --taken_;
    ++held_;
  }
  if (pinned) pinned_ += it.pins++ == 0;
  evictable_ += static_cast<PageId>(it.pins == 0) - static_cast<PageId>(was_evictable);
}

void PagePool::drop(PageId page, bool pinned) {
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
  append(page);
}

void PagePool::pin(PageId page) {
  if (pages_[page].pins++ > 0) return;
  ++pinned_;
  --evictable_;
}

void PagePool::unpin(PageId page) {
  if (--pages_[page].pins > 0) return;
  --pinned_;
  ++evictable_;
}

void PagePool::destroy(PageId page) {
  driver_.release(page);
  unlink(page);
  pages_[page] = Page{};
  --free_;
  --created_;
  uncreated_.push_back(page);
  std::push_heap(uncreated_.begin(), uncreated_.end(), std::greater<>());
}

void PagePool::unlink(PageId page) {
  Page& it = pages_[page];
  (it.previous == kNoPage ? free_head_ : pages_[it.previous].next) = it.next;
  (it.next == kNoPage ? free_tail_ : pages_[it.next].previous) = it.previous;
  it.previous = it.next = kNoPage;
}

void PagePool::append(PageId page) {
  Page& it = pages_[page];
  it.previous = free_tail_;
  it.next = kNoPage;
  (free_tail_ == kNoPage ? free_head_ : pages_[free_tail_].next) = page;
  free_tail_ = page;
  ++free_;
}

}  // namespace vt
