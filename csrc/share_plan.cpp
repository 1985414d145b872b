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

std::int32_t as_int(std::size_t value) { return static_cast<std::int32_t>(value); }

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

// Worker w has the tiles [w * tiles / used, (w + 1) * tiles / used) of the line, as triton_kernels/tiles.py deals them.
std::size_t run_start(std::size_t worker, std::size_t tiles, std::size_t used) { return worker * tiles / used; }
std::size_t worker_of(std::size_t tile, std::size_t tiles, std::size_t used) { return ((tile + 1) * used - 1) / tiles; }

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
    choose(members.size(), levels);
    lay_out(key_.tile, key_.workers);
    if (facts_.places <= limits_.max_places) break;
  }
  write(members, buffer);
}

std::size_t SharePlan::tasks_for(std::size_t members) const { return divide_up(members, limits_.members_per_task); }

std::size_t SharePlan::reads_for(std::size_t members) const { return divide_up(members, limits_.members_per_read); }

// Stretches that neighbours share are nested, like brackets. One is open as long as they share as much.
void SharePlan::find_segments(std::span<const Member> members) {
  open_.clear();
  drops_.clear();
  segments_.clear();
  for (std::size_t i = 1; i <= members.size(); ++i) {
    const std::size_t shared =
        i == members.size() ? 0 : std::min({members[i].shared, members[i - 1].most, members[i].most});
    Open open{i - 1, shared, drops_.size()};
    while (!open_.empty() && open_.back().end > shared) {
      open.first = open_.back().first;
      open.drops = open_.back().drops;
      close(open_.back(), i);
      open_.pop_back();
    }
    if (shared > 0 && (open_.empty() || open_.back().end < shared)) open_.push_back(open);
  }
}

// Finds from where on grouping a segment pays. Read by itself, a token is read once for each task of the segment; else
// by `copies` readers: the tasks of the segments below that are grouped, and every other member. The farther back it
// starts, the fewer these are. What is so saved must outweigh the partial results.
void SharePlan::close(const Open& open, std::size_t last) {
  const auto begin = drops_.begin() + static_cast<std::ptrdiff_t>(open.drops);
  const auto earlier = [](const Drop& a, const Drop& b) { return a.at > b.at; };
  if (!std::is_sorted(begin, drops_.end(), earlier)) std::sort(begin, drops_.end(), earlier);

  Segment segment{open.first, last - open.first, open.end, -1};
  const std::size_t reads = reads_for(segment.count);
  const std::size_t cost = limits_.least_saved * segment.count;
  std::size_t copies = segment.count;
  auto next = begin;
  const auto end = static_cast<std::ptrdiff_t>(segment.end);
  for (; next != drops_.end() && next->at >= end; ++next) copies -= next->fewer;
  auto kept = begin;
  if (copies < segment.count) *kept++ = {end, segment.count - copies, 0};

  std::ptrdiff_t position = end;
  std::size_t saved = 0;  // by reading [position, end) once a task
  for (;;) {
    const std::size_t gain = copies - reads;
    const bool more = next != drops_.end();
    if (saved < cost && gain > 0) {
      const std::size_t tokens = divide_up(cost - saved, gain);
      const std::ptrdiff_t start = position - static_cast<std::ptrdiff_t>(tokens);
      if (start > (more ? next->at : -1)) {
        position = start;
        saved += gain * tokens;
      }
    }
    if (saved >= cost) {
      segment.latest = position;
      break;
    }
    if (!more) break;
    saved += gain * static_cast<std::size_t>(position - next->at) - next->excess;
    position = next->at;
    copies -= next->fewer;
    *kept++ = *next++;
  }
  drops_.erase(kept, drops_.end());
  if (segment.latest >= 0) drops_.push_back({segment.latest, copies - reads, saved - cost});
  segments_.push_back(segment);
}

void SharePlan::choose(std::size_t members, std::size_t levels) {
  tasks_.clear();
  covered_.assign(members, 0);
  levels_.assign(members, 0);
  member_tasks_.assign(members * limits_.max_levels, -1);
  for (auto segment = segments_.rbegin(); segment != segments_.rend(); ++segment) {
    const std::size_t start = covered_[segment->first];
    const std::size_t level = levels_[segment->first];
    if (level == levels || static_cast<std::ptrdiff_t>(start) > segment->latest) continue;
    const std::size_t tasks = tasks_for(segment->count);
    for (std::size_t i = 0; i < tasks; ++i) {
      const std::size_t first = segment->first + segment->count * i / tasks;
      const std::size_t last = segment->first + segment->count * (i + 1) / tasks;
      for (std::size_t member = first; member < last; ++member) {
        covered_[member] = segment->end;
        levels_[member] = level + 1;
        member_tasks_[member * limits_.max_levels + level] = as_int(tasks_.size());
      }
      // All tasks of a segment read the same slot, so that one may find in the cache what another has read.
      tasks_.push_back({segment->first, start, segment->end, first, last - first, 0, 0, 0});
    }
  }
}

void SharePlan::lay_out(std::size_t tile, std::size_t workers) {
  facts_ = Facts{};
  facts_.tasks = tasks_.size();
  for (Task& task : tasks_) {
    facts_.tiles += divide_up(task.end - task.start, tile);
    task.tile_end = facts_.tiles;
    facts_.tokens_read += task.end - task.start;
    facts_.tokens_saved += task.count * (task.end - task.start);
  }
  facts_.tokens_saved -= facts_.tokens_read;
  workers_used_ = std::min(workers, facts_.tiles);
  std::size_t tile_start = 0;
  for (Task& task : tasks_) {
    task.spans = worker_of(task.tile_end - 1, facts_.tiles, workers_used_) -
                 worker_of(tile_start, facts_.tiles, workers_used_) + 1;
    task.first_place = facts_.places;
    facts_.places += task.count * task.spans;
    tile_start = task.tile_end;
  }
}

void SharePlan::write(std::span<const Member> members, std::span<std::int32_t> buffer) const {
  std::int32_t* header = buffer.data();
  std::fill_n(header, Layout::kHeader, 0);
  header[kTasks] = as_int(facts_.tasks);
  header[kTiles] = as_int(facts_.tiles);
  header[kWorkers] = as_int(workers_used_);
  header[kPlaces] = as_int(facts_.places);
  header[kBatch] = as_int(key_.slots.size());
  header[kTile] = as_int(key_.tile);

  std::int32_t* field = buffer.data() + layout_.tasks;
  for (const Task& it : tasks_) {
    for (const std::size_t value : {std::size_t{members[it.member].slot}, it.start, it.end, it.first, it.count,
                                    it.first_place, it.tile_end, it.spans})
      *field++ = as_int(value);
  }
  std::fill(field, buffer.data() + layout_.order, 0);
  for (std::size_t i = tasks_.size(); i < max_tasks_; ++i, field += Layout::kTaskFields)
    field[6] = as_int(facts_.tiles);

  std::int32_t* order = buffer.data() + layout_.order;
  std::int32_t* positions = buffer.data() + layout_.positions;
  std::int32_t* own_starts = buffer.data() + layout_.own_starts;
  std::int32_t* row_tasks = buffer.data() + layout_.row_tasks;
  std::fill_n(positions, limits_.max_batch, -1);
  std::fill_n(own_starts, limits_.max_batch, 0);
  std::fill_n(row_tasks, limits_.max_batch * limits_.max_levels, -1);
  for (std::size_t i = 0; i < members.size(); ++i) {
    const std::size_t row = members[i].row;
    order[i] = as_int(row);
    positions[row] = as_int(i);
    own_starts[row] = as_int(covered_[i]);
    std::copy_n(&member_tasks_[i * limits_.max_levels], levels_[i], row_tasks + row * limits_.max_levels);
    header[kLevels] = std::max(header[kLevels], as_int(levels_[i]));
  }
  std::size_t position = members.size();
  for (std::size_t row = 0; row < limits_.max_batch; ++row) {
    if (positions[row] >= 0) continue;
    order[position] = as_int(row);
    positions[row] = as_int(position++);
  }

  std::int32_t* run = buffer.data() + layout_.runs;
  const auto task_of = [&](std::size_t task, std::size_t tile) {
    while (tasks_[task].tile_end <= tile) ++task;
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
