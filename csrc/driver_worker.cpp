// SPDX-License-Identifier: Apache-2.0
#include "driver_worker.h"

#include <unordered_set>

#include "errors.h"

namespace vt {

DriverWorker::~DriverWorker() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

DriverWorker::Turn::Turn(DriverWorker& worker) : worker_(worker), shared_(worker.thread_.joinable()) {
  if (worker_.inner_->takes_time()) start_ = std::chrono::steady_clock::now();
  if (!shared_) return;
  std::unique_lock lock(worker_.mutex_);
  ++worker_.waiting_;
  worker_.changed_.wait(lock, [&] { return !worker_.busy_; });
  --worker_.waiting_;
  worker_.busy_ = true;
}

DriverWorker::Turn::~Turn() {
  if (shared_) {
    {
      const std::lock_guard lock(worker_.mutex_);
      worker_.busy_ = false;
    }
    worker_.changed_.notify_all();
  }
  if (!worker_.inner_->takes_time()) return;
  const auto spent = std::chrono::steady_clock::now() - start_;
  worker_.waited_ += static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count());
}

void DriverWorker::add(std::deque<Job>& jobs, const Job& job) {
  {
    const std::lock_guard lock(mutex_);
    jobs.push_back(job);
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  }
  changed_.notify_all();
}

DriverWorker::Ticket DriverWorker::post(const MapOperation& operation, Priority priority) {
  const Ticket ticket = ++last_;
  add(priority == Priority::kSoon ? soon_ : later_, {ticket, operation});
  return ticket;
}

void DriverWorker::post_prepare(PageId page) { add(soon_, {0, {0, page}}); }

// As a caller, who is held up by it.
template <typename Condition>
void DriverWorker::wait(std::unique_lock<std::mutex>& lock, Condition condition) {
  if (condition()) return;
  const auto start = std::chrono::steady_clock::now();
  changed_.wait(lock, condition);
  const auto spent = std::chrono::steady_clock::now() - start;
  waited_ += static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count());
}

std::vector<std::pair<DriverWorker::Ticket, std::optional<bool>>> DriverWorker::settle(
    const std::vector<Ticket>& tickets) {
  const std::unordered_set<Ticket> named(tickets.begin(), tickets.end());
  std::unique_lock lock(mutex_);
  for (std::deque<Job>* jobs : {&soon_, &later_})
    std::erase_if(*jobs, [&](const Job& job) { return named.contains(job.ticket); });
  wait(lock, [&] { return !named.contains(current_); });
  std::vector<std::pair<Ticket, std::optional<bool>>> settled;
  for (const Ticket ticket : tickets) {
    const auto ended = ended_.find(ticket);
    if (ended == ended_.end()) {
      settled.emplace_back(ticket, std::nullopt);
      continue;
    }
    settled.emplace_back(ticket, ended->second);
    ended_.erase(ended);
  }
  ended_count_ = ended_.size();
  return settled;
}

void DriverWorker::cancel_preparing() {
  std::unique_lock lock(mutex_);
  std::erase_if(soon_, [](const Job& job) { return job.ticket == 0; });
  wait(lock, [&] { return !running_ || current_ != 0; });
}

std::vector<std::pair<DriverWorker::Ticket, bool>> DriverWorker::take_ended() {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<Ticket, bool>> ended(ended_.begin(), ended_.end());
  ended_.clear();
  ended_count_ = 0;
  return ended;
}

void DriverWorker::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return idle(); });
}

void DriverWorker::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || (!busy_ && waiting_ == 0 && !(soon_.empty() && later_.empty())); });
    if (stopping_) return;
    std::deque<Job>& jobs = soon_.empty() ? later_ : soon_;
    const Job job = jobs.front();
    jobs.pop_front();
    running_ = busy_ = true;
    current_ = job.ticket;
    lock.unlock();
    const bool done = work_on(job);
    lock.lock();
    running_ = busy_ = false;
    current_ = 0;
    if (job.ticket != 0) {
      ended_.emplace(job.ticket, done);
      ended_count_ = ended_.size();
    }
    changed_.notify_all();
  }
}

bool DriverWorker::work_on(const Job& job) {
  try {
    if (job.ticket == 0)
      inner_->prepare(job.operation.page);
    else
      inner_->map({&job.operation, 1});
    return true;
  } catch (const DriverError&) {  // whoever needs it makes the call himself, and meets the error
    return false;
  }
}

}  // namespace vt
