// SPDX-License-Identifier: Apache-2.0
#include "share_plan.h"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string>

namespace vt {
namespace {

std::size_t divide_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }
// Of numbers that are not negative. In 32 bits, which takes a processor much less time, and most that is divided fits.
std::int32_t divide_up(std::int32_t a, std::int32_t b) {
  const auto by = static_cast<std::uint32_t>(b);
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(a) + by - 1) / by);
}
std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  if ((a | b) <= std::numeric_limits<std::int32_t>::max())
    return divide_up(static_cast<std::int32_t>(a), static_cast<std::int32_t>(b));
  return (a + b - 1) / b;
}

std::int32_t as_int(std::size_t value) { return static_cast<std::int32_t>(value); }
std::size_t as_size(std::int32_t value) { return static_cast<std::size_t>(value); }

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

// Worker w has the tiles [w * tiles / used, (w + 1) * tiles / used) of the line, as triton_kernels/tiles.py deals them.
std::size_t run_start(std::size_t worker, std::size_t tiles, std::size_t used) { return worker * tiles / used; }

}  // namespace

std::size_t SharePlan::Limits::tasks_bound() const {
  return std::min(max_levels * (max_batch / 2), max_batch - 1) + max_levels * max_batch / members_per_task;
}

std::size_t SharePlan::Limits::places_bound(std::size_t levels) const {
  return max_batch * levels + (max_workers - 1) * std::min(members_per_task, max_batch);
}

SharePlan::SharePlan(const Limits& limits, std::size_t slot_tokens) : limits_(limits), slot_tokens_(slot_tokens) {
  constexpr std::size_t kMost = 1 << 16;  // of each, so that no product wraps around
  const auto check_limit = [](const char* name, std::size_t value, std::size_t least) {
    require(value >= least && value <= kMost, std::string(name) + " must be " + std::to_string(least) + " to " +
                                                  std::to_string(kMost) + ", not " + std::to_string(value));
  };
  check_limit("max_batch", limits.max_batch, 1);
  check_limit("max_workers", limits.max_workers, 1);
  check_limit("members_per_task", limits.members_per_task, 2);
  if (limits_.members_per_read == 0) limits_.members_per_read = limits.members_per_task;
  check_limit("members_per_read", limits_.members_per_read, limits.members_per_task);
  check_limit("max_levels", limits.max_levels, 1);
  require(limits.least_saved >= 1 && limits.least_saved <= std::numeric_limits<std::int32_t>::max(),
          "least_saved must be positive and less than 2**31, not " + std::to_string(limits.least_saved));
  require(slot_tokens <= std::numeric_limits<std::int32_t>::max(),
          "slots of " + std::to_string(slot_tokens) + " tokens are too long for a plan in 32 bits");
  if (limits_.max_places == 0) limits_.max_places = limits_.places_bound(limits_.max_levels);
  require(limits_.max_places >= limits_.places_bound(1),
          "max_places must be at least " + std::to_string(limits_.places_bound(1)) + ", what one level takes, not " +
              std::to_string(limits_.max_places));
  max_tasks_ = limits_.tasks_bound();
  layout_.tasks = Layout::kHeader;
  layout_.order = layout_.tasks + max_tasks_ * Layout::kTaskFields;
  layout_.positions = layout_.order + limits_.max_batch;
  layout_.own_starts = layout_.positions + limits_.max_batch;
  layout_.row_tasks = layout_.own_starts + limits_.max_batch;
  layout_.runs = layout_.row_tasks + limits_.max_batch * limits_.max_levels;
  layout_.size = layout_.runs + limits_.max_workers * Layout::kRunFields;
}

void SharePlan::check(std::size_t batch, std::size_t tile, std::size_t workers, std::size_t buffer) const {
  require(batch <= limits_.max_batch,
          std::to_string(batch) + " requests in a plan made for " + std::to_string(limits_.max_batch));
  require(workers >= 1 && workers <= limits_.max_workers, "a plan made for 1 to " +
                                                              std::to_string(limits_.max_workers) +
                                                              " workers is asked for " + std::to_string(workers));
  require(tile >= 1 && max_tasks_ * divide_up(slot_tokens_, tile) <= std::numeric_limits<std::int32_t>::max(),
          "tiles of " + std::to_string(tile) + " tokens");
  require(buffer == layout_.size,
          "the buffer has " + std::to_string(buffer) + " integers, and the plan " + std::to_string(layout_.size));
}

bool SharePlan::is_of(std::span<const SlotId> slots, std::uint64_t version, std::size_t tile,
                      std::size_t workers) const {
  return made_ && key_.version == version && key_.tile == tile && key_.workers == workers &&
         std::equal(slots.begin(), slots.end(), key_.slots.begin(), key_.slots.end());
}

void SharePlan::make(Key key, std::span<const Member> members, std::span<std::int32_t> buffer) {
  key_ = std::move(key);
  made_ = true;
  find_segments(members);
  // Where there are not places enough the deepest tasks go: they have the fewest members. One level always fits.
  for (std::size_t levels = limits_.max_levels;; --levels) {
    choose(members, as_int(levels), buffer);
    lay_out(buffer);
    if (facts_.places <= limits_.max_places) break;
  }
  write_rows(members, buffer);
  write_runs(buffer);
}

std::int32_t SharePlan::tasks_for(std::int32_t members) const {
  return divide_up(members, as_int(limits_.members_per_task));
}

std::int32_t SharePlan::reads_for(std::int32_t members) const {
  return divide_up(members, as_int(limits_.members_per_read));
}

// Stretches that neighbours share are nested, like brackets. One is open as long as they share as much.
void SharePlan::find_segments(std::span<const Member> members) {
  // Each segment parts two neighbours that no other one parts, and has one drop at most. What is kept is written field
  // by field, in place: copies of small structs just made are what the time would go to.
  if (const std::size_t most = members.size(); segments_.size() < most) {
    open_.resize(most);
    drops_.resize(most);
    segments_.resize(most);
  }
  drop_count_ = segment_count_ = 0;
  std::size_t depth = 0;
  const std::int32_t count = as_int(members.size());
  for (std::int32_t i = 1; i <= count; ++i) {
    const Member& before = members[as_size(i - 1)];
    const std::int32_t shared =
        i == count ? 0 : std::min({members[as_size(i)].shared, before.most, members[as_size(i)].most});
    std::int32_t first = i - 1;
    std::size_t drops = drop_count_;
    while (depth > 0 && open_[depth - 1].end > shared) {
      const Open& below = open_[--depth];
      first = below.first;
      drops = close(below, i);
      if (depth == 0 || open_[depth - 1].end < shared) continue;
      // What is open around it goes on, with its drops, and with others if it had any before.
      Open& around = open_[depth - 1];
      if (around.drops == below.drops)
        around.drops = drops;
      else
        around.mixed = true;
    }
    if (shared > 0 && (depth == 0 || open_[depth - 1].end < shared)) {
      Open& open = open_[depth++];
      open.first = first;
      open.end = shared;
      open.drops = drops;
      open.mixed = false;
    }
  }
}

// Finds from where on grouping a segment pays. Read by itself, a token is read once for each task of the segment; else
// by `copies` readers: the tasks of the segments below that are grouped, and every other member. The farther back it
// starts, the fewer these are. What is so saved must outweigh the partial results. Returns where the drops begin that
// are left for the segment around it.
std::size_t SharePlan::close(const Open& open, std::int32_t last) {
  if (open.mixed) sort_drops(open.drops);
  const std::int32_t count = last - open.first, end = open.end;
  const std::int64_t reads = reads_for(count);
  const std::int64_t cost = static_cast<std::int64_t>(limits_.least_saved) * count;

  // Drops at its end or farther on are one drop at its end, in the last one's place.
  std::size_t first = open.drops;
  std::int32_t merged = 0;
  for (; first < drop_count_ && drops_[first].at >= end; ++first) {
    merged += drops_[first].fewer;
    drops_[first].fewer = drops_[first].excess = 0;
  }
  const std::size_t next = first;
  if (next > open.drops) {
    Drop& drop = drops_[--first];
    drop.at = end;
    drop.fewer = merged;
  }
  std::int64_t gain = count - merged - reads;

  // What is saved by reading from the place of a drop on, that drop counted in. It only grows along the drops.
  const std::int64_t gain_before = gain;
  const std::int64_t fewer_before = next < drop_count_ ? drops_[next].sum_fewer - drops_[next].fewer : 0;
  const std::int64_t weight_before = next < drop_count_ ? drops_[next].sum_weight - drops_[next].weight() : 0;
  const auto saved_at = [&](const Drop& it) {
    return gain_before * (end - it.at) - (it.sum_weight - weight_before - it.at * (it.sum_fewer - fewer_before));
  };
  const auto begin = drops_.begin();
  const auto enough =
      std::partition_point(begin + static_cast<std::ptrdiff_t>(next), begin + static_cast<std::ptrdiff_t>(drop_count_),
                           [&](const Drop& it) { return saved_at(it) < cost; });
  std::size_t kept = static_cast<std::size_t>(enough - begin);
  const bool more = kept < drop_count_;
  std::int64_t position = end, saved = 0;
  if (kept > next) {
    const Drop& passed = drops_[kept - 1];
    position = passed.at;
    saved = saved_at(passed);
    gain -= passed.sum_fewer - fewer_before;
  }
  std::int64_t latest = -1;
  if (gain > 0) {
    const std::int64_t tokens = divide_up(cost - saved, gain);
    if (position - tokens > (more ? drops_[kept].at : -1)) {
      latest = position - tokens;
      saved += gain * tokens;
    }
  }
  if (latest < 0 && more) {
    latest = drops_[kept].at;
    saved = saved_at(drops_[kept]);
    gain -= drops_[kept].fewer;
    ++kept;
  }
  drop_count_ = kept;
  if (latest >= 0) {
    put_drop(first, static_cast<std::int32_t>(latest), static_cast<std::int32_t>(gain),
             static_cast<std::int32_t>(saved - cost));
  }
  Segment& segment = segments_[segment_count_++];
  segment.first = open.first;
  segment.count = count;
  segment.end = end;
  segment.latest = static_cast<std::int32_t>(latest);
  return first;
}

// Of several segments; each one's are in order. What a segment merged has left places without a drop.
void SharePlan::sort_drops(std::size_t first) {
  const auto begin = drops_.begin() + static_cast<std::ptrdiff_t>(first);
  const auto end = drops_.begin() + static_cast<std::ptrdiff_t>(drop_count_);
  const auto in_order = [](const Drop& a, const Drop& b) { return a.at > b.at; };
  if (!std::is_sorted(begin, end, in_order)) std::sort(begin, end, in_order);
  drop_count_ = first;
  for (auto it = begin; it != end; ++it) {
    const std::int32_t at = it->at, fewer = it->fewer, excess = it->excess;
    if (fewer != 0 || excess != 0) put_drop(first, at, fewer, excess);
  }
}

// Puts a drop behind those from `first` on, which are no farther back. Two at one place are one: only together they
// tell what is saved there.
void SharePlan::put_drop(std::size_t first, std::int32_t at, std::int32_t fewer, std::int32_t excess) {
  if (drop_count_ > first && drops_[drop_count_ - 1].at == at) {
    Drop& last = drops_[drop_count_ - 1];
    last.sum_weight -= last.weight();
    last.fewer += fewer;
    last.excess += excess;
    last.sum_fewer += fewer;
    last.sum_weight += last.weight();
    return;
  }
  Drop& drop = drops_[drop_count_];
  drop.at = at;
  drop.fewer = fewer;
  drop.excess = excess;
  const bool alone = drop_count_ == first;
  drop.sum_fewer = (alone ? 0 : drops_[drop_count_ - 1].sum_fewer) + fewer;
  drop.sum_weight = (alone ? 0 : drops_[drop_count_ - 1].sum_weight) + drop.weight();
  ++drop_count_;
}

// Writes the tasks, but for where their results go, and of each row its tasks and how far they cover it.
void SharePlan::choose(std::span<const Member> members, std::int32_t levels, std::span<std::int32_t> buffer) {
  std::int32_t* const tasks = buffer.data() + layout_.tasks;
  std::int32_t* const own_starts = buffer.data() + layout_.own_starts;
  std::int32_t* const row_tasks = buffer.data() + layout_.row_tasks;
  std::fill_n(own_starts, limits_.max_batch, 0);
  std::fill_n(row_tasks, limits_.max_batch * limits_.max_levels, -1);
  levels_.assign(members.size(), 0);
  levels_used_ = 0;
  facts_ = Facts{};
  for (std::size_t left = segment_count_; left > 0; --left) {
    const Segment* const segment = &segments_[left - 1];
    const Member& its_first = members[as_size(segment->first)];
    const std::int32_t start = own_starts[its_first.row];
    const std::int32_t level = levels_[as_size(segment->first)];
    if (level == levels || start > segment->latest) continue;
    levels_used_ = std::max(levels_used_, level + 1);
    const std::int32_t count = tasks_for(segment->count);
    for (std::int32_t i = 0; i < count; ++i) {
      const auto behind = [&](std::int64_t task) {
        if (task == count) return segment->first + segment->count;
        return task == 0 ? segment->first : segment->first + static_cast<std::int32_t>(segment->count * task / count);
      };
      const std::int32_t first = behind(i), last = behind(i + 1);
      const std::int32_t task = as_int(facts_.tasks++);
      for (std::int32_t at = first; at < last; ++at) {
        const std::size_t row = as_size(members[as_size(at)].row);
        own_starts[row] = segment->end;
        levels_[as_size(at)] = level + 1;
        row_tasks[row * limits_.max_levels + as_size(level)] = task;
      }
      // All tasks of a segment read the same slot, so that one may find in the cache what another has read.
      std::int32_t* const it = tasks + as_size(task) * Layout::kTaskFields;
      it[Layout::kSlot] = static_cast<std::int32_t>(its_first.slot);
      it[Layout::kStart] = start;
      it[Layout::kEnd] = segment->end;
      it[Layout::kFirst] = first;
      it[Layout::kCount] = last - first;
    }
  }
}

void SharePlan::lay_out(std::span<std::int32_t> buffer) {
  std::int32_t* const begin = buffer.data() + layout_.tasks;
  const std::int32_t* const end = begin + facts_.tasks * Layout::kTaskFields;
  const std::int32_t tile = as_int(std::min(key_.tile, slot_tokens_));
  for (std::int32_t* it = begin; it != end; it += Layout::kTaskFields) {
    const std::int32_t tokens = it[Layout::kEnd] - it[Layout::kStart];
    facts_.tiles += as_size(divide_up(tokens, tile));
    it[Layout::kTileEnd] = as_int(facts_.tiles);
    facts_.tokens_read += as_size(tokens);
    facts_.tokens_saved += as_size(it[Layout::kCount] - 1) * as_size(tokens);
  }
  workers_used_ = std::min(key_.workers, facts_.tiles);
  if (workers_used_ == 0) return;
  // The worker in whose run the next task's first tile is, and where the next worker's run starts.
  std::size_t worker = 0, behind = run_start(1, facts_.tiles, workers_used_);
  const auto go_to = [&](std::size_t tile_index) {
    while (behind <= tile_index) behind = run_start(++worker + 1, facts_.tiles, workers_used_);
  };
  for (std::int32_t* it = begin; it != end; it += Layout::kTaskFields) {
    const std::size_t tile_end = as_size(it[Layout::kTileEnd]), first = worker;
    go_to(tile_end - 1);
    const std::size_t spans = worker - first + 1;
    if (tile_end < facts_.tiles) go_to(tile_end);
    it[Layout::kSpans] = as_int(spans);
    it[Layout::kFirstPlace] = as_int(facts_.places);
    facts_.places += as_size(it[Layout::kCount]) * spans;
  }
}

void SharePlan::write_rows(std::span<const Member> members, std::span<std::int32_t> buffer) const {
  std::int32_t* header = buffer.data();
  std::fill_n(header, Layout::kHeader, 0);
  header[kTasks] = as_int(facts_.tasks);
  header[kTiles] = as_int(facts_.tiles);
  header[kWorkers] = as_int(workers_used_);
  header[kPlaces] = as_int(facts_.places);
  header[kBatch] = as_int(key_.slots.size());
  header[kLevels] = levels_used_;
  header[kTile] = as_int(key_.tile);

  std::int32_t* order = buffer.data() + layout_.order;
  std::int32_t* positions = buffer.data() + layout_.positions;
  std::fill_n(positions, limits_.max_batch, -1);
  std::int32_t position = 0;
  for (const Member& member : members) {
    order[position] = member.row;
    positions[member.row] = position++;
  }
  for (std::size_t row = 0; row < limits_.max_batch; ++row) {
    if (positions[row] >= 0) continue;
    order[position] = as_int(row);
    positions[row] = position++;
  }
}

void SharePlan::write_runs(std::span<std::int32_t> buffer) const {
  std::int32_t* run = buffer.data() + layout_.runs;
  const std::int32_t* const tile_ends = buffer.data() + layout_.tasks + Layout::kTileEnd;
  const auto task_of = [&](std::size_t task, std::size_t tile) {
    while (as_size(tile_ends[task * Layout::kTaskFields]) <= tile) ++task;
    return task;
  };
  std::size_t task = 0;
  for (std::size_t worker = 0; worker < limits_.max_workers; ++worker, run += Layout::kRunFields) {
    if (worker >= workers_used_) {
      std::copy_n(std::array{0, -1, 0, 0}.begin(), Layout::kRunFields, run);
      continue;
    }
    const std::size_t start = run_start(worker, facts_.tiles, workers_used_);
    const std::size_t end = run_start(worker + 1, facts_.tiles, workers_used_);
    task = task_of(task, start);
    run[0] = as_int(task);
    run[1] = as_int(task_of(task, end - 1));
    run[2] = as_int(start);
    run[3] = as_int(end);
  }
}

}  // namespace vt
