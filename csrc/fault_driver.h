// SPDX-License-Identifier: Apache-2.0
// A driver that fails on demand, so that tests can show that every failure leaves the core as it was. What is to fail
// may be said while another thread makes a call.
#pragma once

#include <array>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "driver.h"
#include "errors.h"

namespace vt {

class FaultDriver final : public Driver {
 public:
  explicit FaultDriver(std::unique_ptr<Driver> inner) : inner_(std::move(inner)) {}

  // The call of this kind ("create", "release", "map", "unmap", "copy", "clear" or "move") after `successes` more of it
  // fails, once.
  void inject(const std::string& operation, long successes) {
    const std::lock_guard lock(mutex_);
    countdown_.at(index(operation)) = successes;
  }
  // Creating a page fails for lack of memory while so many pages exist.
  void limit_memory(std::size_t pages) {
    const std::lock_guard lock(mutex_);
    memory_ = pages;
  }
  void clear_faults() {
    const std::lock_guard lock(mutex_);
    countdown_.fill(kNever);
    memory_ = kEndless;
  }

  std::string name() const override { return inner_->name(); }
  std::size_t page_bytes() const override { return inner_->page_bytes(); }
  int device() const override { return inner_->device(); }
  std::uintptr_t reserve(std::size_t bytes) override { return inner_->reserve(bytes); }
  void create(PageId page) override {
    fail_or_pass("create");
    check_memory();
    inner_->create(page);
    const std::lock_guard lock(mutex_);
    ++created_;
  }
  void prepare(PageId page) override {
    fail_or_pass("create");
    check_memory();
    inner_->prepare(page);
  }
  bool unprepare(PageId page) override { return inner_->unprepare(page); }
  bool prepared(PageId page) const override { return inner_->prepared(page); }
  void release(PageId page) override {
    fail_or_pass("release");
    inner_->release(page);
    const std::lock_guard lock(mutex_);
    --created_;
  }
  void map(std::span<const MapOperation> operations) override {
    try {
      fail_or_pass("map");
    } catch (const DriverError&) {  // as the contract says: nothing of the batch stays mapped
      for (const MapOperation& operation : operations) inner_->unmap(operation.address);
      throw;
    }
    inner_->map(operations);
  }
  void unmap(std::uintptr_t address) override {
    fail_or_pass("unmap");
    inner_->unmap(address);
  }
  void copy(std::uintptr_t destination, PageId source, std::size_t bytes) override {
    fail_or_pass("copy");
    inner_->copy(destination, source, bytes);
  }
  void clear(std::uintptr_t address) override {
    fail_or_pass("clear");
    inner_->clear(address);
  }
  void move(std::span<const Move> moves) override {
    fail_or_pass("move");
    inner_->move(moves);
  }
  void ready_to_move(PageId page) override { inner_->ready_to_move(page); }
  void set_stream(std::uintptr_t stream) override { inner_->set_stream(stream); }
  std::size_t physical_bytes() const override { return inner_->physical_bytes(); }
  std::size_t mapping_limit() const override { return inner_->mapping_limit(); }

 private:
  static constexpr long kNever = -1;
  static constexpr std::size_t kEndless = std::numeric_limits<std::size_t>::max();

  static std::size_t index(const std::string& operation) {
    static const std::array<std::string, 7> kinds{"create", "release", "map", "unmap", "copy", "clear", "move"};
    for (std::size_t i = 0; i < kinds.size(); ++i)
      if (kinds[i] == operation) return i;
    throw std::invalid_argument("no such driver operation: " + operation);
  }
  void check_memory() {
    const std::lock_guard lock(mutex_);
    if (created_ >= memory_) throw OutOfMemory("create", -1, "injected lack of memory");
  }
  void fail_or_pass(const char* operation) {
    const std::lock_guard lock(mutex_);
    long& left = countdown_[index(operation)];
    if (left == kNever) return;
    if (left-- == 0) throw DriverError(operation, -1, "injected");
  }

  std::unique_ptr<Driver> inner_;
  std::mutex mutex_;
  std::size_t memory_ = kEndless;  // pages
  std::size_t created_ = 0;
  std::array<long, 7> countdown_{kNever, kNever, kNever, kNever, kNever, kNever, kNever};
};

}  // namespace vt
