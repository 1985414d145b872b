// SPDX-License-Identifier: Apache-2.0
#include "page_pool.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "errors.h"

namespace vt {

PagePool::PagePool(Driver& driver, PageId budget) : driver_(driver), pages_(budget), limit_(budget) {}

PageId PagePool::create() {
  if (created_ == budget()) throw InvariantError("every page is created already");
  const PageId page = destroyed_.empty() ? next_new_ : destroyed_.front();
  try {
    driver_.create(page);
  } catch (const OutOfMemory&) {
    withheld_ = budget() - created_;
    throw;
  }
  if (destroyed_.empty()) {
    ++next_new_;
  } else {
    std::pop_heap(destroyed_.begin(), destroyed_.end(), std::greater<>());
    destroyed_.pop_back();
  }
  pages_[page].created = true;
  ++created_;
  withheld_ = 0;
  make_free(page);
  return page;
}

void PagePool::destroy(PageId page) {
  driver_.release(page);
  unlink(page);
  pages_[page] = Page{};
  --free_;
  --created_;
  destroyed_.push_back(page);
  std::push_heap(destroyed_.begin(), destroyed_.end(), std::greater<>());
}

void PagePool::exchange(PageId a, PageId b) {
  Page& one = pages_[a];
  Page& other = pages_[b];
  std::swap(one.holders, other.holders);
  std::swap(one.pins, other.pins);
  std::swap(one.recorded, other.recorded);
  std::swap(one.writer, other.writer);
  std::swap(one.live, other.live);
  std::swap(one.deepest, other.deepest);
  std::swap(one.index, other.index);
  one.cleared = other.cleared = true;
}

}  // namespace vt
