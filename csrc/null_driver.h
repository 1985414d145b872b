// SPDX-License-Identifier: Apache-2.0
// A driver of nothing: pages without memory at addresses that nobody reserved. The tree, the pages and the mappings
// are as with any other driver, so that a cache of any size can be simulated anywhere; nothing may be read or written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "driver.h"

namespace vt {

class NullDriver final : public Driver {
 public:
  explicit NullDriver(std::size_t page_bytes) : page_bytes_(page_bytes) {
    if (page_bytes == 0) throw std::invalid_argument("page_bytes must be positive");
  }

  std::string name() const override { return "none"; }
  std::size_t page_bytes() const override { return page_bytes_; }
  int device() const override { return -1; }
  bool takes_time() const override { return false; }
  std::uintptr_t reserve(std::size_t /*bytes*/) override { return 0; }
  void create(PageId /*page*/) override {}
  void release(PageId /*page*/) override {}
  void map(std::span<const MapOperation> /*operations*/) override {}
  void unmap(std::uintptr_t /*address*/) override {}
  void copy(std::uintptr_t /*destination*/, PageId /*source*/, std::size_t /*bytes*/) override {}
  void move(std::span<const Move> /*moves*/) override {}
  std::size_t physical_bytes() const override { return 0; }

 private:
  std::size_t page_bytes_;
};

}  // namespace vt
