// SPDX-License-Identifier: Apache-2.0
// A driver that one caller and a thread of its own use by turns: the thread makes, one page at a time, what the caller
// will want later. A caller waits for one such call at most, and comes before the next.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "timed_driver.h"

namespace vt {

class DriverWorker final : public Driver {
 public:
  using Ticket = std::uint64_t;
  enum class Priority { kSoon, kLater };

  explicit DriverWorker(std::unique_ptr<TimedDriver> inner) : inner_(std::move(inner)) {}
  ~DriverWorker() override;

  // ---- for the thread

  // To be mapped, in place of what may be mapped there. Nobody else may map or unmap at that address before `settle`.
  Ticket post(const MapOperation& operation, Priority priority);
  // To be made ready, so that create() takes no time. Best effort, as is all that is ahead.
  void post_prepare(PageId page);
  // Cancels those of these jobs that have not begun, and waits for the one under way. Returns of each whether it was
  // done or failed, which left nothing mapped, or nothing if it was cancelled. All are forgotten by this.
  std::vector<std::pair<Ticket, std::optional<bool>>> settle(const std::vector<Ticket>& tickets);
  // Jobs that have ended since the last call, and whether they were done; forgotten by this.
  std::vector<std::pair<Ticket, bool>> take_ended();
  // Forgets what is still to be prepared.
  void cancel_preparing();
  bool any_ended() const { return ended_count_.load(std::memory_order_relaxed) > 0; }
  // Waits until nothing is left to do.
  void drain();

  std::uint64_t calls() const { return inner_->calls(); }
  // Of whichever thread.
  std::uint64_t nanoseconds() const { return inner_->nanoseconds(); }
  // That callers spent in calls of theirs, or waiting for the thread's.
  std::uint64_t waited_nanoseconds() const { return waited_; }

  // ---- for callers

  std::string name() const override { return inner_->name(); }
  std::size_t page_bytes() const override { return inner_->page_bytes(); }
  int device() const override { return inner_->device(); }
  bool takes_time() const override { return inner_->takes_time(); }
  std::uintptr_t reserve(std::size_t bytes) override { return inner_->reserve(bytes); }
  void create(PageId page) override {
    const Turn turn(*this);
    inner_->create(page);
  }
  void release(PageId page) override {
    const Turn turn(*this);
    inner_->release(page);
  }
  void map(std::span<const MapOperation> operations) override {
    const Turn turn(*this);
    inner_->map(operations);
  }
  void unmap(std::uintptr_t address) override {
    const Turn turn(*this);
    inner_->unmap(address);
  }
  void copy(std::uintptr_t destination, PageId source, std::size_t bytes) override {
    const Turn turn(*this);
    inner_->copy(destination, source, bytes);
  }
  void move(std::span<const Move> moves) override {
    const Turn turn(*this);
    inner_->move(moves);
  }
  void clear(std::uintptr_t address) override {
    const Turn turn(*this);
    inner_->clear(address);
  }
  void prepare(PageId page) override {
    const Turn turn(*this);
    inner_->prepare(page);
  }
  bool unprepare(PageId page) override {
    const Turn turn(*this);
    return inner_->unprepare(page);
  }
  bool prepared(PageId page) const override { return inner_->prepared(page); }
  void ready_to_move(PageId page) override {
    const Turn turn(*this);
    inner_->ready_to_move(page);
  }
  void set_stream(std::uintptr_t stream) override { inner_->set_stream(stream); }
  std::size_t physical_bytes() const override { return inner_->physical_bytes(); }
  std::size_t mapping_limit() const override { return inner_->mapping_limit(); }

 private:
  struct Job {
    Ticket ticket;  // 0: a page to prepare
    MapOperation operation;
  };

  // The driver for one call, and the clock of what its caller waits.
  class Turn {
   public:
    explicit Turn(DriverWorker& worker);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    DriverWorker& worker_;
    bool shared_;  // with the thread, once it runs: only a caller starts it
    std::chrono::steady_clock::time_point start_;
  };

  void add(std::deque<Job>& jobs, const Job& job);
  template <typename Condition>
  void wait(std::unique_lock<std::mutex>& lock, Condition condition);
  void run();
  bool work_on(const Job& job);
  bool idle() const { return !running_ && soon_.empty() && later_.empty(); }

  std::unique_ptr<TimedDriver> inner_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool busy_ = false;     // somebody is in a call of the driver
  int waiting_ = 0;       // callers who want to be
  bool running_ = false;  // the thread has a job
  Ticket current_ = 0;    // 0: none, or one that prepares
  bool stopping_ = false;
  Ticket last_ = 0;
  std::deque<Job> soon_;
  std::deque<Job> later_;
  std::unordered_map<Ticket, bool> ended_;
  std::atomic<std::size_t> ended_count_ = 0;
  std::atomic<std::uint64_t> waited_ = 0;
  std::thread thread_;  // from the first job on
};

}  // namespace vt
