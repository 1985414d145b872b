// SPDX-License-Identifier: Apache-2.0
#include "arena.h"

#include <numeric>

#include "errors.h"

namespace vt {

std::size_t slot_bytes_for(const Geometry& geometry, std::size_t tokens) {
  const std::size_t unit = std::lcm(geometry.page_bytes, geometry.token_bytes);
  return (tokens * geometry.token_bytes + unit - 1) / unit * unit;
}

Arena::Arena(Driver& driver, const Geometry& geometry, SlotId slots, std::size_t slot_tokens,
             std::size_t mapping_limit)
    : driver_(driver),
      geometry_(geometry),
      slot_bytes_(slot_bytes_for(geometry, slot_tokens)),
      mapping_limit_(mapping_limit),
      base_(driver.reserve(slot_bytes_ * slots)),
      maps_(slots) {}

void Arena::map(std::span<const Change> changes) {
  std::vector<MapOperation> operations;
  operations.reserve(changes.size());
  std::uint64_t replaced = 0;
  for (const Change& change : changes) {
    replaced += mapped(change.slot, change.index) != kNoPage;
    operations.push_back({address(change.slot, change.index), change.page});
  }
  try {
    driver_.map(operations);
  } catch (const DriverError&) {
    for (const Change& change : changes) set(change.slot, change.index, kNoPage);
    throw;
  }
  for (const Change& change : changes) set(change.slot, change.index, change.page);
  pages_mapped += changes.size();
  pages_unmapped += replaced;
}

void Arena::unmap(SlotId slot, std::size_t first) {
  std::vector<std::uintptr_t> addresses;
  for (std::size_t index = first; index < extent(slot); ++index)
    if (maps_[slot][index] != kNoPage) addresses.push_back(address(slot, index));
  if (addresses.empty()) return;
  driver_.unmap(addresses);
  pages_unmapped += addresses.size();
  for (std::size_t index = extent(slot); index-- > first;) set(slot, index, kNoPage);
}

void Arena::unmap_index(SlotId slot, std::size_t index) {
  const std::uintptr_t at = address(slot, index);
  driver_.unmap(std::span(&at, 1));
  ++pages_unmapped;
  set(slot, index, kNoPage);
}

bool Arena::begins_run(SlotId slot, std::size_t index) const {
  const PageId page = mapped(slot, index);
  if (page == kNoPage) return false;
  if (index == 0) return true;
  const PageId before = mapped(slot, index - 1);
  return before == kNoPage || before + 1 != page;
}

void Arena::set(SlotId slot, std::size_t index, PageId page) {
  std::vector<PageId>& map = maps_[slot];
  if (index >= map.size()) {
    if (page == kNoPage) return;
    map.resize(index + 1, kNoPage);
  }
  runs_ -= static_cast<std::size_t>(begins_run(slot, index)) + begins_run(slot, index + 1);
  map[index] = page;
  runs_ += static_cast<std::size_t>(begins_run(slot, index)) + begins_run(slot, index + 1);
  while (!map.empty() && map.back() == kNoPage) map.pop_back();
}

}  // namespace vt
