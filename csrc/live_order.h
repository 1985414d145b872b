// SPDX-License-Identifier: Apache-2.0
// The slots in use, in an order in which those below any node of the tree stand side by side, and how many tokens each
// shares with the one before it:
//
//     tree                         order   shared
//     system -+- A --- slot 3        3       none (the first)
//             +- B -+- slot 7        7       end of system
//                   +- slot 2        2       end of B
//
// Who shares what can be read off it without a look at the tree: any two slots share the least of the numbers between
// them. Whoever walks up from every slot instead meets all turns of all conversations, a cache miss each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "types.h"

namespace vt {

struct Node;

class LiveOrder {
 public:
  static constexpr std::ptrdiff_t kOtherRoot = -1;  // the slot before is of another namespace, or there is none

  explicit LiveOrder(SlotId slots) : places_(slots) {}

  // A slot comes into use, its tokens being the path to `node`. Walks up to the first node that others use.
  void insert(SlotId slot, Node* node);
  // It was inserted with this node.
  void remove(SlotId slot, Node* node);
  // Its tokens now go on to a node below the one that it was inserted with. Where nobody else is, nothing changes for
  // the others, and the version stays.
  void go_on(SlotId slot, Node* from, Node* node);

  // What was shared is no more all that can be, though nobody came or went.
  void changed() { ++version_; }

  // `next` and `shared` of a slot will be asked for.
  void fetch_ahead(SlotId slot) const { __builtin_prefetch(&places_[slot]); }
  SlotId first() const { return first_; }
  SlotId next(SlotId slot) const { return places_[slot].next; }
  // Tokens that a slot shares with the one before it, or kOtherRoot.
  std::ptrdiff_t shared(SlotId slot) const { return places_[slot].shared; }
  // Another one after every change of what is shared.
  std::uint64_t version() const { return version_; }

 private:
  struct Place {
    SlotId previous = kNoSlot;
    SlotId next = kNoSlot;
    std::ptrdiff_t shared = kOtherRoot;
  };

  void link(SlotId previous, SlotId next);

  std::vector<Place> places_;  // by slot
  SlotId first_ = kNoSlot;
  std::uint64_t version_ = 0;
};

}  // namespace vt
