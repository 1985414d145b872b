// SPDX-License-Identifier: Apache-2.0
// Pages of ordinary memory, with true aliasing: one memfd holds all pages, and mmap maps the same page at as many
// addresses as wanted. It makes the whole core, aliasing included, run on any Linux machine.
#pragma once

#include <vector>

#include "driver.h"

namespace vt {

class HostDriver final : public Driver {
 public:
  // page_bytes: a multiple of the system's page size. max_pages: how many pages may ever exist.
  HostDriver(std::size_t page_bytes, PageId max_pages);
  ~HostDriver() override;

  std::string name() const override { return "host"; }
  std::size_t page_bytes() const override { return page_bytes_; }
  int device() const override { return -1; }

  std::uintptr_t reserve(std::size_t bytes) override;
  void create(PageId page) override;
  void release(PageId page) override;
  void map(std::span<const MapOperation> operations) override;
  void unmap(std::uintptr_t address) override;
  void copy(std::uintptr_t destination, PageId source, std::size_t bytes) override;
  void move(std::span<const Move> moves) override;
  std::size_t physical_bytes() const override;
  std::size_t mapping_limit() const override { return mapping_limit_; }

 private:
  void blank(std::uintptr_t address, std::size_t bytes) noexcept;
  char* in_window(PageId page) const { return window_ + static_cast<std::size_t>(page) * page_bytes_; }

  std::size_t page_bytes_;
  PageId max_pages_;
  int file_ = -1;
  char* window_ = nullptr;  // the whole file, mapped once: every page can be reached there, mapped elsewhere or not
  std::uintptr_t range_ = 0;
  std::size_t range_bytes_ = 0;
  std::size_t mapping_limit_ = 0;
};

// The mappings the kernel lets a process have (vm.max_map_count), less those this process has now and a reserve
// for what it will need besides.
std::size_t host_mapping_limit();

}  // namespace vt
