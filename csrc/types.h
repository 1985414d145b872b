// SPDX-License-Identifier: Apache-2.0
// Words shared by every part of the core. docs/design.md defines them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace vt {

using PageId = std::uint32_t;
using SlotId = std::uint32_t;
using Token = std::int64_t;  // SGLang keeps token ids in array('q')

inline constexpr PageId kNoPage = std::numeric_limits<PageId>::max();
inline constexpr SlotId kNoSlot = std::numeric_limits<SlotId>::max();
inline constexpr SlotId kPaddingSlot = 0;  // stands for rows of no request; always live

// How token positions fall on pages. A sequence's byte b lies in its page b / page_bytes, so page i of every
// sequence covers the same bytes of that sequence (invariant 1) and no sharing ever shifts data. The token size
// need not divide the page size: a token may straddle two pages.
struct Geometry {
  std::size_t page_bytes = 0;
  std::size_t token_bytes = 0;

  std::size_t pages_for(std::size_t tokens) const { return (tokens * token_bytes + page_bytes - 1) / page_bytes; }
  std::size_t page_of(std::size_t token) const { return token * token_bytes / page_bytes; }
  // Bytes of the last page that a prefix of this many tokens occupies; 0 when it ends on a page border.
  std::size_t tail_bytes(std::size_t tokens) const { return tokens * token_bytes % page_bytes; }
  // Whole tokens that this many pages hold.
  std::size_t tokens_in(std::size_t pages) const { return pages * page_bytes / token_bytes; }
};

}  // namespace vt
