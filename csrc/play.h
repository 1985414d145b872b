// SPDX-License-Identifier: Apache-2.0
// One request through all that a server asks of its cache, without a server: for replaying traces.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "kv_cache.h"

namespace vt {

// How a request is played: its first `prompt` tokens are there from the start, of which at most `limit` are looked up,
// and are recorded every `chunk` tokens, as chunked prefill does; the rest are its output.
struct Played {
  std::size_t prompt;
  std::size_t limit;
  std::size_t chunk;
};

// Match, lock, bind (which evicts), record chunk by chunk, grow by the output, record, release, unlock. Returns the
// tokens matched. Throws what these throw; the cache is then no longer what it was.
std::size_t play(KVCache& cache, const std::string& name_space, std::span<const Token> tokens, const Played& how);

}  // namespace vt
