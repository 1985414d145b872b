// SPDX-License-Identifier: Apache-2.0
// What a driver is called for, and how long its calls take. Reading the clock twice takes some 50 ns, a call to a real
// driver a microsecond at least.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "driver.h"

namespace vt {

class TimedDriver final : public Driver {
 public:
  explicit TimedDriver(std::unique_ptr<Driver> inner) : inner_(std::move(inner)), takes_time_(inner_->takes_time()) {}

  // Since the start. A page is a call of its own, also in a batch; failed calls count. What is only put on a stream is
  // none: copying, clearing, moving.
  std::uint64_t calls() const { return calls_; }
  std::uint64_t nanoseconds() const { return nanoseconds_; }

  std::string name() const override { return inner_->name(); }
  std::size_t page_bytes() const override { return inner_->page_bytes(); }
  int device() const override { return inner_->device(); }
  std::uintptr_t reserve(std::size_t bytes) override { return inner_->reserve(bytes); }
  void create(PageId page) override {
    const Timer timer(*this, 1);
    inner_->create(page);
  }
  void release(PageId page) override {
    const Timer timer(*this, 1);
    inner_->release(page);
  }
  void map(std::span<const MapOperation> operations) override {
    const Timer timer(*this, operations.size());
    inner_->map(operations);
  }
  void unmap(std::uintptr_t address) override {
    const Timer timer(*this, 1);
    inner_->unmap(address);
  }
  void copy(std::uintptr_t destination, PageId source, std::size_t bytes) override {
    const Timer timer(*this, 0);
    inner_->copy(destination, source, bytes);
  }
  void clear(std::uintptr_t address) override {
    const Timer timer(*this, 0);
    inner_->clear(address);
  }
  void move(std::span<const Move> moves) override {
    const Timer timer(*this, 0);
    inner_->move(moves);
  }
  void ready_to_move(PageId page) override {
    const Timer timer(*this, 1);
    inner_->ready_to_move(page);
  }
  void set_stream(std::uintptr_t stream) override { inner_->set_stream(stream); }
  std::size_t physical_bytes() const override { return inner_->physical_bytes(); }
  std::size_t mapping_limit() const override { return inner_->mapping_limit(); }

 private:
  using Clock = std::chrono::steady_clock;

  class Timer {
   public:
    Timer(TimedDriver& driver, std::size_t calls) : driver_(driver) {
      driver.calls_ += calls;
      if (driver.takes_time_) start_ = Clock::now();
    }
    ~Timer() {
      if (!driver_.takes_time_) return;
      const auto spent = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_);
      driver_.nanoseconds_ += static_cast<std::uint64_t>(spent.count());
    }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

   private:
    TimedDriver& driver_;
    Clock::time_point start_;
  };

  std::unique_ptr<Driver> inner_;
  bool takes_time_;
  std::uint64_t calls_ = 0;
  std::uint64_t nanoseconds_ = 0;
};

}  // namespace vt
