// SPDX-License-Identifier: Apache-2.0
// A node's children by their first token. Most nodes have one child or none, and a root may have tens of thousands:
// the first is kept in place, more in an open-addressed table, so that a look-up and a removal touch one or two cache
// lines. Evicting is bound by them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "types.h"

namespace vt {

struct Node;

class ChildMap {
 public:
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  Node* find(Token token) const {
    if (capacity_ == 0) return size_ == 1 && only_.token == token ? only_.node : nullptr;
    for (std::size_t i = home(token);; i = next(i)) {
      if (table_[i].node == nullptr || table_[i].token == token) return table_[i].node;
    }
  }

  // Adds a child, or replaces the one of that token.
  void put(Token token, Node* node) {
    if (capacity_ == 0) {
      if (size_ == 0 || only_.token == token) {
        only_ = {token, node};
        size_ = 1;
        return;
      }
      grow();
    } else if (2 * (size_ + 1) > capacity_) {
      grow();
    }
    place(token, node);
  }

  void erase(Token token) {
    if (capacity_ == 0) {
      size_ -= size_ == 1 && only_.token == token;
      return;
    }
    std::size_t hole = home(token);
    while (table_[hole].node != nullptr && table_[hole].token != token) hole = next(hole);
    if (table_[hole].node == nullptr) return;
    --size_;
    // Close the gap: an entry moves back unless its home lies after the hole.
    for (std::size_t i = next(hole); table_[i].node != nullptr; i = next(i)) {
      const std::size_t from_home = (i - home(table_[i].token)) & (capacity_ - 1);
      if (from_home < ((i - hole) & (capacity_ - 1))) continue;
      table_[hole] = table_[i];
      hole = i;
    }
    table_[hole].node = nullptr;
  }

  template <typename Visit>
  void for_each(Visit visit) const {
    if (capacity_ == 0 && size_ == 1) visit(only_.token, only_.node);
    for (std::size_t i = 0; i < capacity_; ++i)
      if (table_[i].node != nullptr) visit(table_[i].token, table_[i].node);
  }

  // Where a look-up of this token will begin, for prefetching; null if it needs no memory of its own.
  const void* place_of(Token token) const { return capacity_ == 0 ? nullptr : &table_[home(token)]; }

 private:
  struct Entry {
    Token token = 0;
    Node* node = nullptr;
  };

  std::size_t home(Token token) const {
    // Fibonacci hashing: neighbouring tokens fall far apart.
    return static_cast<std::size_t>(static_cast<std::uint64_t>(token) * 0x9E3779B97F4A7C15u >> shift_);
  }
  std::size_t next(std::size_t i) const { return (i + 1) & (capacity_ - 1); }

  void place(Token token, Node* node) {
    std::size_t i = home(token);
    while (table_[i].node != nullptr && table_[i].token != token) i = next(i);
    size_ += table_[i].node == nullptr;
    table_[i] = {token, node};
  }

  void grow() {
    const std::size_t old_capacity = capacity_;
    const std::unique_ptr<Entry[]> old = std::move(table_);
    capacity_ = old_capacity == 0 ? 8 : 2 * old_capacity;
    shift_ = old_capacity == 0 ? 61 : shift_ - 1;
    table_ = std::make_unique<Entry[]>(capacity_);
    const std::size_t inline_children = old_capacity == 0 ? size_ : 0;
    size_ = 0;
    if (inline_children == 1) place(only_.token, only_.node);
    for (std::size_t i = 0; i < old_capacity; ++i)
      if (old[i].node != nullptr) place(old[i].token, old[i].node);
  }

  std::size_t size_ = 0;
  std::size_t capacity_ = 0;  // of the table: 0, or a power of two
  unsigned shift_ = 0;        // 64 - log2(capacity)
  Entry only_;
  std::unique_ptr<Entry[]> table_;
};

}  // namespace vt
