// SPDX-License-Identifier: Apache-2.0
#include "live_order.h"

#include <algorithm>

#include "radix_tree.h"

namespace vt {

void LiveOrder::link(SlotId previous, SlotId next) {
  (previous == kNoSlot ? first_ : places_[previous].next) = next;
  if (next != kNoSlot) places_[next].previous = previous;
}

void LiveOrder::insert(SlotId slot, Node* node) {
  ++version_;
  for (; node != nullptr && node->first_live == kNoSlot; node = node->parent) node->first_live = slot;
  // In front of all that are below the node where it parts from them, and so outside of every child's.
  const SlotId next = node == nullptr ? first_ : node->first_live;
  Place& it = places_[slot];
  it = Place{};
  if (next != kNoSlot) {
    it.shared = places_[next].shared;
    places_[next].shared = node == nullptr ? kOtherRoot : static_cast<std::ptrdiff_t>(node->end);
    link(places_[next].previous, slot);
  } else {
    link(kNoSlot, slot);
  }
  link(slot, next);
  for (; node != nullptr && node->first_live == next; node = node->parent) node->first_live = slot;
}

void LiveOrder::remove(SlotId slot, Node* node) {
  ++version_;
  const Place it = places_[slot];
  const std::ptrdiff_t shared = it.next == kNoSlot ? kOtherRoot : places_[it.next].shared;
  for (; node != nullptr && node->first_live == slot; node = node->parent)
    node->first_live = shared >= static_cast<std::ptrdiff_t>(node->end) ? it.next : kNoSlot;
  link(it.previous, it.next);
  if (it.next != kNoSlot) places_[it.next].shared = std::min(it.shared, shared);
  places_[slot] = Place{};
}

void LiveOrder::go_on(SlotId slot, Node* from, Node* node) {
  const Node* used = node;
  while (used != from && used->first_live == kNoSlot) used = used->parent;
  if (used == from) {
    for (; node != from; node = node->parent) node->first_live = slot;
  } else {
    remove(slot, from);
    insert(slot, node);
  }
}

}  // namespace vt
