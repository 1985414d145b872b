// SPDX-License-Identifier: Apache-2.0
#include "play.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace vt {

std::size_t play(KVCache& cache, const std::string& name_space, std::span<const Token> tokens, const Played& how) {
  const std::size_t total = tokens.size();
  if (how.prompt == 0 || how.prompt > total || how.limit > how.prompt || how.chunk == 0)
    throw std::invalid_argument("a request is played with 1 to " + std::to_string(total) +
                                " tokens of prompt, of which at most all are looked up, in chunks of 1 or more");
  const auto [matched_node, matched] = cache.match(name_space, tokens.first(how.limit), total);
  NodeHandle node = matched_node;
  cache.lock(node);
  std::size_t end = std::min(matched + how.chunk, how.prompt);
  const SlotId slot = cache.bind(name_space, node, end, 0, 0).slot;
  for (;;) {
    const KVCache::Recorded recorded = cache.record(slot, tokens.first(end));
    if (end == total) break;
    // What stood there already, with other pages, is not this request's to lock.
    if (!recorded.duplicate) {
      cache.lock(recorded.node);
      cache.unlock(node);
      node = recorded.node;
    }
    end = end < how.prompt ? std::min(end + how.chunk, how.prompt) : total;
    cache.grow({&slot, 1}, {&end, 1}, 0);
  }
  cache.release(slot);
  cache.unlock(node);
  return matched;
}

}  // namespace vt
