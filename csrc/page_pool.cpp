// SPDX-License-Identifier: Apache-2.0
#include "page_pool.h"

#include <algorithm>
#include <functional>

#include "errors.h"

namespace vt {

PagePool::PagePool(Driver& driver, PageId budget) : driver_(driver), pages_(budget), limit_(budget) {}

void PagePool::create() {
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
  append(page);
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

}  // namespace vt
