// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace vt {

// A call of the memory driver failed. What was begun has been rolled back.
class DriverError : public std::runtime_error {
 public:
  DriverError(std::string operation, int code, std::string reason)
      : std::runtime_error(operation + " failed: " + reason), operation_(std::move(operation)), code_(code) {}
  const std::string& operation() const { return operation_; }
  int code() const { return code_; }

 private:
  std::string operation_;
  int code_;
};

// There is no memory for another page, whatever the budget allows: others have taken it.
class OutOfMemory : public DriverError {
 public:
  using DriverError::DriverError;
};

// Fewer pages are free or evictable than a bind or a growth needs. Nothing was changed.
class OutOfPages : public std::runtime_error {
 public:
  OutOfPages(std::size_t needed, std::size_t deliverable)
      : std::runtime_error("out of pages: " + std::to_string(needed) + " needed, " + std::to_string(deliverable) +
                           " free or evictable") {}
};

// Every idle slot is still used by a forward that has not been completed.
class SlotsBusy : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A rule that the core promises to keep does not hold: a bug, here or in how the core is called.
class InvariantError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

}  // namespace vt
