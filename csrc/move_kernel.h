// SPDX-License-Identifier: Apache-2.0
// The kernel that moves pages' contents, in PTX, which the driver compiles for whichever GPU it meets: the core is
// built without a CUDA toolkit. One launch serves many pages. (A copy by cuMemcpyDtoDAsync takes 7.5 us of the caller's
// time a page and reaches a fifth of the memory's bandwidth.)
#pragma once

#include <array>
#include <cstdint>

namespace vt::cuda {

// The kernel's first argument, by value: addresses of pages. Where the lowest bit of `from` is set, both are to swap
// their contents. Block (x, y) takes part x of pair y.
struct MovePair {
  std::uint64_t to;
  std::uint64_t from;
};
inline constexpr std::size_t kMovePairs = 128;
using MovePairs = std::array<MovePair, kMovePairs>;

inline constexpr unsigned kMoveThreads = 512;
inline constexpr unsigned kMoveBlocks = 32;  // a page: 4 pages fill a GPU

// The second argument: bytes of a page, a multiple of 16.
inline constexpr const char* kMoveKernel = "move_pages";
inline constexpr const char* kMovePtx = R"(
.version 7.0
.target sm_70
.address_size 64

.visible .entry move_pages(.param .align 8 .b8 pairs[2048], .param .u64 bytes)
{
  .reg .pred %done, %swaps;
  .reg .b32 %block, %threads, %thread, %blocks, %n;
  .reg .b64 %pair, %offset, %to, %from, %flag, %at, %end, %step, %to_at, %from_at;
  .reg .b32 %a<4>, %b<4>;

  mov.u32 %n, %ctaid.y;
  mul.wide.u32 %offset, %n, 16;
  mov.b64 %pair, pairs;
  add.s64 %pair, %pair, %offset;
  ld.param.u64 %to, [%pair];
  ld.param.u64 %from, [%pair+8];
  ld.param.u64 %end, [bytes];
  and.b64 %flag, %from, 1;
  setp.ne.u64 %swaps, %flag, 0;
  sub.s64 %from, %from, %flag;

  mov.u32 %block, %ctaid.x;
  mov.u32 %threads, %ntid.x;
  mov.u32 %thread, %tid.x;
  mad.lo.s32 %n, %block, %threads, %thread;
  mul.wide.u32 %at, %n, 16;
  mov.u32 %blocks, %nctaid.x;
  mul.lo.s32 %n, %blocks, %threads;
  mul.wide.u32 %step, %n, 16;
next:
  setp.ge.u64 %done, %at, %end;
  @%done bra finish;
  add.s64 %to_at, %to, %at;
  add.s64 %from_at, %from, %at;
  ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%from_at];
  @!%swaps bra store;
  ld.global.v4.b32 {%b0, %b1, %b2, %b3}, [%to_at];
  st.global.v4.b32 [%from_at], {%b0, %b1, %b2, %b3};
store:
  st.global.v4.b32 [%to_at], {%a0, %a1, %a2, %a3};
  add.s64 %at, %at, %step;
  bra next;
finish:
  ret;
}
)";

}  // namespace vt::cuda
