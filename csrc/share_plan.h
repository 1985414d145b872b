// SPDX-License-Identifier: Apache-2.0
// Which stretches of KV the requests of a decode batch read together: docs/design.md, "Tree-aware decode", has the
// mathematics and the cost that is minimised.
//
//     rows, in the order of the tree     0    1    2    3    4
//     tokens [0, 4000)                   ---------------------     one task: the system prompt, read once for five
//     [4000, 9000), [4000, 5000)         -----------    ------     two tasks: conversations that were forked
//     the rest                           |    |    |    |    |     each row's own part
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "types.h"

namespace vt {

class SharePlan {
 public:
  struct Limits {
    std::size_t max_batch;
    std::size_t max_workers;
    std::size_t members_per_task;
    std::size_t members_per_read;  // rows for which a stretch is reckoned to be read once; 0: members_per_task
    std::size_t max_levels;
    std::size_t least_saved;  // tokens that a partial result must save
    std::size_t max_places;   // 0: as many as any plan can take

    // Of any plan within the limits. Of k disjoint groups none has less than two members; and a tree over n requests
    // forks less than n times.
    std::size_t tasks_bound() const;
    // A task has a place for each of its members, and once more wherever the line of tiles is cut inside it.
    std::size_t places_bound(std::size_t levels) const;
  };

  // The buffer, in 32-bit integers. Fields of a task: slot, start, end, first, count, first_place, tile_end, spans.
  struct Layout {
    static constexpr std::size_t kHeader = 8, kTaskFields = 8, kRunFields = 4;
    enum Task { kSlot, kStart, kEnd, kFirst, kCount, kFirstPlace, kTileEnd, kSpans };
    std::size_t tasks, order, positions, own_starts, row_tasks, runs, size;
  };
  enum Header { kTasks, kTiles, kWorkers, kPlaces, kBatch, kLevels, kTile };

  // A row of the batch that holds tokens, in the order of LiveOrder. Small, like all that a plan is made of: a step
  // finds little of it in the processor's caches.
  struct Member {
    std::int32_t row;
    SlotId slot;
    std::int32_t shared;  // tokens that it shares with the member before it
    std::int32_t most;    // tokens that may be left to others: the last one is always its own
  };

  struct Facts {
    std::size_t tasks = 0, tiles = 0, places = 0;
    std::size_t tokens_read = 0;   // by the tasks
    std::size_t tokens_saved = 0;  // by them, against every row reading for itself
  };

  // What a plan was made of.
  struct Key {
    std::vector<SlotId> slots;
    std::uint64_t version = 0;
    std::size_t tile = 0, workers = 0;
  };

  SharePlan(const Limits& limits, std::size_t slot_tokens);

  const Limits& limits() const { return limits_; }
  const Layout& layout() const { return layout_; }
  std::size_t max_tasks() const { return max_tasks_; }
  const Facts& facts() const { return facts_; }

  // Throws std::invalid_argument for what the plan was not made for.
  void check(std::size_t batch, std::size_t tile, std::size_t workers, std::size_t buffer) const;
  bool is_of(std::span<const SlotId> slots, std::uint64_t version, std::size_t tile, std::size_t workers) const;
  // Makes the plan. Rows of which there is no member share nothing. Of the buffer, tasks that the plan lacks are left
  // as they were.
  void make(Key key, std::span<const Member> members, std::span<std::int32_t> buffer);

 private:
  // A stretch of the tree above which all of `count` members from `first` on are the same. A stretch that is read in
  // one must start at `latest` or before to be worth its partial results.
  struct Segment {
    std::int32_t first, count, end, latest;
  };
  // A segment not all of whose members are known, and where the drops begin that are of segments below it.
  struct Open {
    std::int32_t first, end;
    std::size_t drops;
    bool mixed;  // these come from several segments
  };
  // Where what is to be read starts at `at` or before, a segment below is grouped: `fewer` copies are read from there
  // on. As tokens are whole, the cost is less by `excess` at once.
  //
  // The drops of one segment stand in a row, the farthest back last. What all up to one of them save is found from sums
  // over the row, up to and with that one; only differences of sums mean anything.
  struct Drop {
    std::int32_t at, fewer, excess;
    std::int64_t sum_fewer, sum_weight;  // of `fewer`, and of fewer * at + excess

    std::int64_t weight() const { return std::int64_t{fewer} * at + excess; }
  };

  std::int32_t tasks_for(std::int32_t members) const;
  std::int32_t reads_for(std::int32_t members) const;
  void find_segments(std::span<const Member> members);
  std::size_t close(const Open& open, std::int32_t last);
  void sort_drops(std::size_t first);
  void put_drop(std::size_t first, std::int32_t at, std::int32_t fewer, std::int32_t excess);
  void choose(std::span<const Member> members, std::int32_t levels, std::span<std::int32_t> buffer);
  void lay_out(std::span<std::int32_t> buffer);
  void write_rows(std::span<const Member> members, std::span<std::int32_t> buffer) const;
  void write_runs(std::span<std::int32_t> buffer) const;

  Limits limits_;
  Layout layout_;
  std::size_t max_tasks_;
  std::size_t slot_tokens_;
  bool made_ = false;
  Key key_;
  Facts facts_;
  std::size_t workers_used_ = 0;
  std::int32_t levels_used_ = 0;
  std::size_t drop_count_ = 0, segment_count_ = 0;
  // Of the plan being made; kept for their memory.
  std::vector<Open> open_;
  std::vector<Drop> drops_;
  std::vector<Segment> segments_;     // children before parents
  std::vector<std::int32_t> levels_;  // of a member: how many tasks cover it
};

}  // namespace vt
