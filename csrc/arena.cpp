// SPDX-License-Identifier: Apache-2.0
#include "arena.h"

#include <numeric>
#include <stdexcept>
#include <string>

#include "errors.h"

namespace vt {
namespace {

std::size_t range_bytes(std::size_t slot_bytes, SlotId slots) {
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(slot_bytes, slots, &bytes))
    throw std::invalid_argument("no addresses suffice for " + std::to_string(slots) + " slots of " +
                                std::to_string(slot_bytes) + " bytes");
  return bytes;
}

}  // namespace

std::size_t slot_bytes_for(const Geometry& geometry, std::size_t tokens) {
  if (geometry.page_bytes == 0 || geometry.token_bytes == 0)
    throw std::invalid_argument("page_bytes and token_bytes must be positive");
  std::size_t unit = 0;
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(geometry.page_bytes / std::gcd(geometry.page_bytes, geometry.token_bytes),
                             geometry.token_bytes, &unit) ||
      __builtin_mul_overflow(tokens, geometry.token_bytes, &bytes) || __builtin_add_overflow(bytes, unit - 1, &bytes))
    throw std::invalid_argument("no addresses suffice for a slot of " + std::to_string(tokens) + " tokens of " +
                                std::to_string(geometry.token_bytes) + " bytes in pages of " +
                                std::to_string(geometry.page_bytes));
  return bytes / unit * unit;
}

Arena::Arena(Driver& driver, const Geometry& geometry, SlotId slots, std::size_t slot_tokens, std::size_t mapping_limit,
             PagePool* counted)
    : driver_(driver),
      counted_(counted),
      geometry_(geometry),
      slot_bytes_(slot_bytes_for(geometry, slot_tokens)),
      mapping_limit_(mapping_limit),
      base_(driver.reserve(range_bytes(slot_bytes_, slots))),
      slot_runs_(slots),
      maps_(slots) {}

void Arena::map(std::span<const Change> changes) {
  operations_.clear();
  std::uint64_t replaced = 0;
  for (const Change& change : changes) {
    replaced += mapped(change.slot, change.index) != kNoPage;
    operations_.push_back({address(change.slot, change.index), change.page});
  }
  try {
    driver_.map(operations_);
  } catch (const DriverError&) {
    for (const Change& change : changes) set(change.slot, change.index, kNoPage);
    throw;
  }
  for (const Change& change : changes) set(change.slot, change.index, change.page);
  pages_mapped += changes.size();
  pages_unmapped += replaced;
}

void Arena::note(const Change& change) {
  pages_unmapped += mapped(change.slot, change.index) != kNoPage;
  pages_mapped += change.page != kNoPage;
  set(change.slot, change.index, change.page);
}

void Arena::unmap(SlotId slot, std::size_t first) {
  for (std::size_t index = extent(slot); index-- > first;)
    if (mapped(slot, index) != kNoPage) unmap_index(slot, index);
}

void Arena::unmap_index(SlotId slot, std::size_t index) {
  driver_.unmap(address(slot, index));
  ++pages_unmapped;
  set(slot, index, kNoPage);
}

std::size_t Arena::runs_after(std::span<const Change> changes) {
  std::vector<PageId> before;
  before.reserve(changes.size());
  for (const Change& change : changes) {
    before.push_back(mapped(change.slot, change.index));
    set(change.slot, change.index, change.page);
  }
  const std::size_t runs = runs_;
  for (std::size_t i = changes.size(); i-- > 0;) set(changes[i].slot, changes[i].index, before[i]);
  return runs;
}

void Arena::set(SlotId slot, std::size_t index, PageId page) {
  std::vector<PageId>& map = maps_[slot];
  if (index >= map.size()) {
    if (page == kNoPage) return;
    map.resize(index + 1, kNoPage);
  }
  const PageId previous = index == 0 ? kNoPage : map[index - 1];
  const PageId next = index + 1 < map.size() ? map[index + 1] : kNoPage;
  const auto begun = [&](PageId it) { return std::size_t{begins_run(previous, it)} + begins_run(it, next); };
  const std::size_t change = begun(page) - begun(map[index]);
  mappings_ += std::size_t{page != kNoPage} - std::size_t{map[index] != kNoPage};
  if (counted_ != nullptr) {
    if (map[index] != kNoPage) counted_->discount_mapping(map[index]);
    if (page != kNoPage) counted_->count_mapping(page);
  }
  map[index] = page;
  slot_runs_[slot] += change;
  runs_ += change;
  if (page == kNoPage)
    while (!map.empty() && map.back() == kNoPage) map.pop_back();
}

}  // namespace vt
