// SPDX-License-Identifier: Apache-2.0
// The virtual tensors: one reserved range of addresses, cut into slots of equal length, and what is mapped in each.
// A mapping holds nothing and outlives the request for which it was made.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "driver.h"
#include "page_pool.h"
#include "types.h"

namespace vt {

// Which page is to back page `index` of a slot.
struct Change {
  SlotId slot;
  std::uint32_t index;
  PageId page;
};

class Arena {
 public:
  // slot_tokens: tokens that a slot must hold at least; rounded up so that slots begin on page borders and the
  // slot's length is a whole number of tokens (a token's index is then slot * slot_tokens() + position).
  // counted: told of every mapping, if not null.
  Arena(Driver& driver, const Geometry& geometry, SlotId slots, std::size_t slot_tokens, std::size_t mapping_limit,
        PagePool* counted);

  std::uintptr_t base() const { return base_; }
  SlotId slots() const { return static_cast<SlotId>(maps_.size()); }
  std::size_t slot_tokens() const { return slot_bytes_ / geometry_.token_bytes; }
  std::size_t slot_bytes() const { return slot_bytes_; }
  std::size_t slot_pages() const { return slot_bytes_ / geometry_.page_bytes; }
  std::uintptr_t address(SlotId slot, std::size_t index) const {
    return base_ + slot * slot_bytes_ + index * geometry_.page_bytes;
  }

  PageId mapped(SlotId slot, std::size_t index) const {
    return index < maps_[slot].size() ? maps_[slot][index] : kNoPage;
  }
  // By page index, up to the last that the slot maps.
  std::span<const PageId> mapped(SlotId slot) const { return maps_[slot]; }
  // One past the last page index that a slot maps.
  std::size_t extent(SlotId slot) const { return maps_[slot].size(); }

  // Makes all changes in one batch. On failure (DriverError) the changed indices map nothing.
  void map(std::span<const Change> changes);
  // Notes what somebody else has mapped there; kNoPage: undone, or failed to replace.
  void note(const Change& change);
  // Unmaps a slot's pages from index `first` on.
  void unmap(SlotId slot, std::size_t first);
  // Unmaps one page index.
  void unmap_index(SlotId slot, std::size_t index);

  // Page indices that map a page, in all slots.
  std::size_t mappings() const { return mappings_; }

  // What the kernel needs a mapping of its own for, now and after these changes: every run of pages that follow one
  // another, and every gap after one. And how many of them the driver can keep.
  std::size_t runs() const { return runs_; }
  std::size_t runs(SlotId slot) const { return slot_runs_[slot]; }
  std::size_t runs_after(std::span<const Change> changes);
  std::size_t mapping_limit() const { return mapping_limit_; }

  std::uint64_t pages_mapped = 0;  // since the start
  std::uint64_t pages_unmapped = 0;

 private:
  void set(SlotId slot, std::size_t index, PageId page);
  // Whether a page, or a gap, that follows this one needs a mapping of its own.
  static bool begins_run(PageId before, PageId page) {
    if (page == kNoPage) return before != kNoPage;
    return before == kNoPage || before + 1 != page;
  }

  Driver& driver_;
  PagePool* counted_;
  Geometry geometry_;
  std::size_t slot_bytes_;
  std::size_t mapping_limit_;
  std::uintptr_t base_;
  std::size_t mappings_ = 0;
  std::size_t runs_ = 0;
  std::vector<std::size_t> slot_runs_;     // their sum is runs_
  std::vector<std::vector<PageId>> maps_;  // by slot, by page index
  std::vector<MapOperation> operations_;   // of the batch under way; kept for its memory
};

// The bytes of a slot that holds `tokens` tokens: a common multiple of the page and the token size.
std::size_t slot_bytes_for(const Geometry& geometry, std::size_t tokens);

}  // namespace vt
