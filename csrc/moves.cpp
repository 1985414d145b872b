// SPDX-License-Identifier: Apache-2.0
// Contents of pages are moved and copied, so that mappings can stay (docs/design.md, "Moving" and "Copying").
#include "errors.h"
#include "kv_cache.h"

namespace vt {
namespace {

// Idle slots that are looked at for one that a long prefix can be copied to: a microsecond for a thousand pages each.
constexpr int kSlotsLookedAt = 8;

}  // namespace

// ---- moving

// Whether a page's content may go to another page without loss to a slot other than this one.
bool KVCache::movable(PageId page, SlotId slot) const {
  if (!tree_.is_cached_only(page)) return false;
  const Page& it = pool_[page];
  if (it.mappings == std::uint32_t{arena_.mapped(slot, it.index) == page}) return true;  // no other slot maps it
  // After two rounds of all slots in use a conversation is not expected to go on where it was.
  return !tree_.awaited(page, slot, 2 * (slots_.size() - unmapped_.size()));
}

// Whether the slot maps another page there, and that one can be had: it is free, or its content can go elsewhere.
bool KVCache::can_copy_here(SlotId slot, std::size_t index, PageId page) const {
  const PageId mapped = arena_.mapped(slot, index);
  if (mapped == kNoPage || mapped == page) return false;
  return pool_.is_free(mapped) || (pool_[mapped].chosen != choices_ && movable(mapped, slot));
}

// Whether a page of the path bound to can come to where the slot maps another page already.
bool KVCache::can_move_here(SlotId slot, std::size_t index, PageId page) const {
  return movable(page, slot) && can_copy_here(slot, index, page);
}

// Plans that, where it is so. False where not.
bool KVCache::plan_move_here(SlotId slot, std::size_t index, PageId page) {
  if (!can_move_here(slot, index, page)) return false;
  const PageId mapped = arena_.mapped(slot, index);
  if (pool_.claim(mapped)) {
    scratch_.planned.push_back({{mapped, page, false}, true, index});
    return true;
  }
  pool_[mapped].chosen = choices_;
  scratch_.planned.push_back({{mapped, page, true}, true, index});
  return true;
}

// Ahead of the moves, of which some may be under way when one fails.
void KVCache::touch_all(std::span<const Move> moves) {
  for (const Move& it : moves) {
    touch(it.to);
    touch(it.from);
  }
}

// Makes the moves that are planned. Returns how many of them are of the path.
std::size_t KVCache::make_moves(std::vector<Fresh>& fresh, std::vector<PageId>& path) {
  if (scratch_.planned.empty()) return 0;
  scratch_.moves.clear();
  for (const Planned& it : scratch_.planned) scratch_.moves.push_back(it.move);
  touch_all(scratch_.moves);
  try {
    driver_->move(scratch_.moves);
  } catch (const DriverError&) {
    give_back(fresh);
    for (const Planned& it : scratch_.planned)
      if (it.of_path && !it.move.swap) pool_.give_back(it.move.to);
    throw;
  }
  std::size_t of_path = 0;
  for (const auto& [move, is_of_path, at] : scratch_.planned) {
    tree_.exchange(move.to, move.from);
    counters_.pages_moved += move.swap ? 2 : 1;
    of_path += is_of_path;
    if (!is_of_path) {
      fresh[at].page = move.from;
    } else {
      path[at] = move.to;
      if (!move.swap) pool_.give_back(move.from);
    }
  }
  return of_path;
}

// A path's pages stay, or are moved to where the slot maps one: they make way for nothing.
void KVCache::begin_choice(std::span<const PageId> path) {
  ++choices_;
  if (!move_pages_) return;
  for (const PageId page : path) pool_[page].chosen = choices_;
}

// ---- copying what others hold

// How many copies may be made beside so many fresh pages. Only of pages that exist and nobody needs: neither evicting
// nor creating pages is what copying is to cost.
std::size_t KVCache::most_copies(std::size_t fresh, std::size_t spare_pages) const {
  if (!move_pages_) return 0;
  const std::size_t unused = pool_.free() - std::min<std::size_t>(pool_.free(), pool_.reserved() + fresh);
  return std::min(unused, spare_pages / 2);
}

// Of a prefix, the pages that binding this slot maps, if so many may be copied.
std::size_t KVCache::pages_to_map(SlotId slot, std::span<const PageId> prefix, std::size_t copies) const {
  std::size_t mapped = 0;
  for (std::size_t index = 0; index < prefix.size(); ++index) {
    if (arena_.mapped(slot, index) == prefix[index] || can_move_here(slot, index, prefix[index])) continue;
    if (copies > 0 && can_copy_here(slot, index, prefix[index]))
      --copies;
    else
      ++mapped;
  }
  return mapped;
}

// A long prefix that a request holds can be had without mapping all of it in a slot that maps other pages in its place.
SlotId KVCache::choose_slot_to_copy_to(SlotId slot, std::span<const PageId> prefix, std::size_t copies) const {
  if (copies < copy_from_pages_ || prefix.size() < copy_from_pages_) return slot;
  std::size_t least = pages_to_map(slot, prefix, copies);
  int looked_at = 0;
  for (auto it = idle_.begin(); it != idle_.end() && least >= copy_from_pages_ && looked_at < kSlotsLookedAt; ++it) {
    if (2 * arena_.extent(*it) < prefix.size()) continue;
    ++looked_at;
    if (const std::size_t mapped = pages_to_map(*it, prefix, copies); 2 * mapped < least) {
      least = mapped;
      slot = *it;
    }
  }
  return slot;
}

// Chooses what of a prefix is copied. A mapping takes the driver some twenty times as long as a copy takes the device,
// but a copy is a page more that is held: so it has to be many. Returns how many.
std::size_t KVCache::plan_copies(SlotId slot, std::span<const PageId> prefix, std::size_t copies) {
  scratch_.copied.clear();
  if (copies < copy_from_pages_ || prefix.size() < copy_from_pages_) return 0;
  scratch_.copied.resize(prefix.size());
  std::size_t planned = 0;
  for (std::size_t index = 0; index < prefix.size() && planned < copies; ++index) {
    if (arena_.mapped(slot, index) == prefix[index] || can_move_here(slot, index, prefix[index])) continue;
    if (!can_copy_here(slot, index, prefix[index])) continue;
    scratch_.copied[index] = true;
    ++planned;
  }
  if (planned >= copy_from_pages_) return planned;
  scratch_.copied.clear();
  return 0;
}

// Puts the path's contents to the pages that were taken for copies of them.
void KVCache::copy_prefix(std::span<const Fresh> copies, std::span<const PageId> path) {
  scratch_.moves.clear();
  for (const Fresh& it : copies) scratch_.moves.push_back({it.page, path[it.index], false});
  touch_all(scratch_.moves);
  driver_->move(scratch_.moves);
}

}  // namespace vt
