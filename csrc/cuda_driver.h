// SPDX-License-Identifier: Apache-2.0
// Pages of GPU memory through CUDA's virtual memory management.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "cuda_api.h"
#include "driver.h"
#include "move_kernel.h"

namespace vt {

class CudaDriver final : public Driver {
 public:
  // page_bytes: a multiple of the device's allocation granularity, 2 MiB on every GPU seen; 0 takes the granularity.
  // library: what to load the CUDA driver from, "libcuda.so.1" but in tests.
  // exportable: pages whose handles can be exported as file descriptors, where the device and this machine let them.
  CudaDriver(int device, std::size_t page_bytes, PageId max_pages, const std::string& library, bool exportable);
  ~CudaDriver() override;

  std::string name() const override { return "cuda"; }
  std::size_t page_bytes() const override { return page_bytes_; }
  int device() const override { return ordinal_; }

  std::uintptr_t reserve(std::size_t bytes) override;
  void create(PageId page) override;
  void release(PageId page) override;
  void prepare(PageId page) override;
  bool unprepare(PageId page) override;
  bool prepared(PageId page) const override { return prepared_[page].load(std::memory_order_relaxed); }
  void map(std::span<const MapOperation> operations) override;
  void unmap(std::uintptr_t address) override;
  void copy(std::uintptr_t destination, PageId source, std::size_t bytes) override;
  void clear(std::uintptr_t address) override;
  void move(std::span<const Move> moves) override;
  void ready_to_move(PageId page) override;
  void set_stream(std::uintptr_t stream) override { stream_ = reinterpret_cast<cuda::Stream>(stream); }
  std::size_t physical_bytes() const override { return pages_ * page_bytes_; }

 private:
  class InContext;  // makes the device's primary context current for a scope

  bool supports(int attribute) const;
  void allocate(PageId page);
  void free(PageId page);
  // Whether pages with the handles asked for can really be had: containers may refuse what the device supports.
  bool exports_pages() const;
  std::size_t index(cuda::DevicePointer address) const { return (address - range_) / page_bytes_; }
  cuda::Result map_one(cuda::DevicePointer address, PageId page);
  cuda::Result unmap_one(cuda::DevicePointer address);
  cuda::Result allow_access(cuda::DevicePointer address, std::size_t bytes);
  cuda::DevicePointer window(PageId page) const { return window_ + page * page_bytes_; }
  void map_in_window(PageId page);
  struct Failure {
    const char* call = nullptr;  // none: success
    cuda::Result result = cuda::kSuccess;
    MapOperation operation{};
  };
  // Goes on behind a failure; the first is returned.
  Failure allow_access(std::span<const MapOperation> operations);
  Failure replace(std::span<const MapOperation> operations);

  cuda::Api api_;
  int ordinal_;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
  cuda::AllocationProperties properties_{};
  std::size_t page_bytes_;
  PageId max_pages_;
  std::atomic<std::size_t> pages_ = 0;  // that have memory
  cuda::DevicePointer range_ = 0;
  std::size_t range_bytes_ = 0;
  cuda::Stream stream_ = nullptr;
  std::vector<cuda::AllocationHandle> handles_;    // by page; valid where created
  std::vector<bool> exists_;                       // has memory, and is created
  std::unique_ptr<std::atomic<bool>[]> prepared_;  // has memory, and is not
  std::vector<bool> mapped_;                       // by page of the range
  // Where pages are mapped to be copied from or moved, at page * page_bytes, from the first time on until they are
  // released: what is put on a stream must not depend on a mapping that may change before the stream comes to it.
  cuda::DevicePointer window_ = 0;
  std::vector<bool> in_window_;
  cuda::Module module_ = nullptr;  // of the kernel that moves pages, from the first move on
  cuda::Function move_kernel_ = nullptr;
};

}  // namespace vt
