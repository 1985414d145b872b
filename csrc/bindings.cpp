// SPDX-License-Identifier: Apache-2.0
// The Python face of the core. Every method lets go of the GIL before it waits for the core's lock, so that a thread
// that holds one never waits for the other.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <limits>
#include <memory>

#include "cuda_driver.h"
#include "errors.h"
#include "fault_driver.h"
#include "host_driver.h"
#include "kv_cache.h"
#include "null_driver.h"
#include "play.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vt {
namespace {

using Integers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Buffer = nb::ndarray<std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Token ids as SGLang has them: any object with a buffer of 64-bit integers (array('q'), numpy, torch).
class Tokens {
 public:
  Tokens(nb::handle object, std::optional<std::size_t> limit) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_FORMAT | PyBUF_ND) != 0) throw nb::python_error();
    const bool integers =
        view_.itemsize == sizeof(Token) && view_.ndim == 1 && (view_.format[0] == 'q' || view_.format[0] == 'l');
    if (!integers) {
      PyBuffer_Release(&view_);
      throw nb::type_error("token ids must be a one-dimensional buffer of int64, as array('q')");
    }
    size_ = static_cast<std::size_t>(view_.shape[0]);
    if (limit && *limit < size_) size_ = *limit;
  }
  ~Tokens() { PyBuffer_Release(&view_); }
  Tokens(const Tokens&) = delete;
  Tokens& operator=(const Tokens&) = delete;
  std::span<const Token> span() const { return {static_cast<const Token*>(view_.buf), size_}; }

 private:
  Py_buffer view_{};
  std::size_t size_ = 0;
};

// None and every string are namespaces of their own.
std::string name_space_key(const std::optional<std::string>& key) { return key ? "=" + *key : std::string(); }

template <typename To>
std::vector<To> convert(const Integers& values, const char* what) {
  std::vector<To> result(values.shape(0));
  for (std::size_t i = 0; i < result.size(); ++i) {
    const std::int64_t value = values.data()[i];
    if (value < 0 || static_cast<std::uint64_t>(value) > std::numeric_limits<To>::max())
      throw std::invalid_argument(std::string(what) + " out of range: " + std::to_string(value));
    result[i] = static_cast<To>(value);
  }
  return result;
}

nb::dlpack::dtype dtype_of(const std::string& name) {
  using Code = nb::dlpack::dtype_code;
  static const std::unordered_map<std::string, nb::dlpack::dtype> known{
      {"uint8", {static_cast<std::uint8_t>(Code::UInt), 8, 1}},
      {"float16", {static_cast<std::uint8_t>(Code::Float), 16, 1}},
      {"bfloat16", {static_cast<std::uint8_t>(Code::Bfloat), 16, 1}},
      {"float32", {static_cast<std::uint8_t>(Code::Float), 32, 1}},
      {"float64", {static_cast<std::uint8_t>(Code::Float), 64, 1}},
  };
  const auto found = known.find(name);
  if (found == known.end()) throw std::invalid_argument("no such dtype: " + name);
  return found->second;
}

// What every binding does: without the GIL.
template <typename Function>
auto unlocked(Function function) {
  const nb::gil_scoped_release release;
  return function();
}

class PyCache {
 public:
  PyCache(const std::string& driver, std::size_t page_bytes, std::size_t token_bytes, SlotId slots,
          std::size_t slot_tokens, PageId budget_pages, int device, const std::string& cuda_library,
          std::size_t mapping_limit, bool exportable_pages, bool inject_faults, std::size_t block_tokens,
          bool move_pages, bool map_ahead, std::size_t copy_from_pages) {
    if (token_bytes == 0) throw std::invalid_argument("token_bytes must be positive");
    if (slots < 2) throw std::invalid_argument("slots must be at least 2: slot 0 is padding");
    if (budget_pages == 0 || budget_pages == std::numeric_limits<PageId>::max())
      throw std::invalid_argument("budget_pages must be positive and less than 2**32 - 1");
    if (slot_tokens == 0) throw std::invalid_argument("slot_tokens must be positive");
    unlocked([&] {
      std::unique_ptr<Driver> made;
      if (driver == "host")
        made = std::make_unique<HostDriver>(page_bytes, budget_pages + 1);
      else if (driver == "cuda")
        made = std::make_unique<CudaDriver>(device, page_bytes, budget_pages + 1, cuda_library, exportable_pages);
      else if (driver == "none")
        made = std::make_unique<NullDriver>(page_bytes);
      else
        throw std::invalid_argument("driver must be 'host', 'cuda' or 'none', not '" + driver + "'");
      if (inject_faults) {
        auto faults = std::make_unique<FaultDriver>(std::move(made));
        faults_ = faults.get();
        made = std::move(faults);
      }
      const Geometry geometry{made->page_bytes(), token_bytes};
      cache_ = std::make_unique<KVCache>(std::move(made), geometry, slots, slot_tokens, budget_pages, mapping_limit,
                                         block_tokens, move_pages, map_ahead, copy_from_pages);
    });
  }

  // Unmapping and releasing everything takes a while.
  ~PyCache() {
    unlocked([&] { cache_.reset(); });
  }

  KVCache& operator*() { return *cache_; }
  KVCache* operator->() { return cache_.get(); }
  FaultDriver& faults() {
    if (faults_ == nullptr) throw std::invalid_argument("faults can be injected only with inject_faults=True");
    return *faults_;
  }

 private:
  std::unique_ptr<KVCache> cache_;
  FaultDriver* faults_ = nullptr;
};

class PyPlan {
 public:
  PyPlan(PyCache& cache, std::size_t max_batch, std::size_t max_workers, std::size_t members_per_task,
         std::size_t members_per_read, std::size_t max_levels, std::size_t least_saved, std::size_t max_places)
      : cache_(*cache),
        plan_({max_batch, max_workers, members_per_task, members_per_read, max_levels, least_saved, max_places},
              cache->slot_tokens()) {}

  bool update(const Integers& slots, const Buffer& buffer, std::size_t tile, std::size_t workers) {
    const auto ids = convert<SlotId>(slots, "slot");
    return unlocked([&] { return cache_.plan_shares(plan_, ids, tile, workers, {buffer.data(), buffer.shape(0)}); });
  }
  SharePlan::Facts facts() const {
    return unlocked([&] { return cache_.facts(plan_); });
  }
  const SharePlan* operator->() const { return &plan_; }

 private:
  KVCache& cache_;
  SharePlan plan_;
};

nb::dict as_dict(const SharePlan::Facts& it) {
  nb::dict d;
  d["tasks"] = it.tasks;
  d["tiles"] = it.tiles;
  d["places"] = it.places;
  d["tokens_read"] = it.tokens_read;
  d["tokens_saved"] = it.tokens_saved;
  return d;
}

nb::dict as_dict(const Counters& it) {
  nb::dict d;
  d["binds"] = it.binds;
  d["tokens_matched"] = it.tokens_matched;
  d["tokens_adopted"] = it.tokens_adopted;
  d["tokens_aliased"] = it.tokens_aliased;
  d["tokens_copied"] = it.tokens_copied;
  d["pages_created"] = it.pages_created;
  d["pages_released"] = it.pages_released;
  d["creations_failed"] = it.creations_failed;
  d["pages_aliased"] = it.pages_aliased;
  d["pages_adopted"] = it.pages_adopted;
  d["pages_reused"] = it.pages_reused;
  d["pages_mapped"] = it.pages_mapped;
  d["pages_unmapped"] = it.pages_unmapped;
  d["guards_mapped"] = it.guards_mapped;
  d["pages_mapped_ahead"] = it.pages_mapped_ahead;
  d["pages_moved"] = it.pages_moved;
  d["pages_copied"] = it.pages_copied;
  d["tails_extended"] = it.tails_extended;
  d["tails_copied"] = it.tails_copied;
  d["nodes_evicted"] = it.nodes_evicted;
  d["tokens_evicted"] = it.tokens_evicted;
  d["slots_shed"] = it.slots_shed;
  d["driver_calls"] = it.driver_calls;
  d["driver_ns"] = it.driver_ns;
  d["driver_wait_ns"] = it.driver_wait_ns;
  return d;
}

nb::dict as_dict(const RequestCosts& it) {
  nb::dict d;
  d["pages_adopted"] = it.pages_adopted;
  d["pages_aliased"] = it.pages_aliased;
  d["pages_moved"] = it.pages_moved;
  d["pages_copied"] = it.pages_copied;
  d["pages_reused"] = it.pages_reused;
  d["pages_mapped"] = it.pages_mapped;
  d["pages_unmapped"] = it.pages_unmapped;
  d["tail_copied"] = it.tail_copied;
  d["driver_wait_ns"] = it.driver_wait_ns;
  return d;
}

nb::dict as_dict(const Usage& it) {
  nb::dict d;
  d["budget_pages"] = it.budget;
  d["limit_pages"] = it.limit;
  d["created_pages"] = it.created;
  d["free_pages"] = it.free;
  d["held_pages"] = it.held;
  d["evictable_pages"] = it.evictable;
  d["withheld_pages"] = it.withheld;
  d["slots"] = it.slots;
  d["live_slots"] = it.slots_live;
  d["nodes"] = it.nodes;
  d["tree_tokens"] = it.tree_tokens;
  d["live_tokens"] = it.live_tokens;
  d["mapping_runs"] = it.mapping_runs;
  return d;
}

nb::bytes as_bytes(const std::vector<BlockId>& ids) { return nb::bytes(ids.data(), ids.size() * sizeof(BlockId)); }

std::vector<BlockId> as_blocks(const nb::bytes& bytes) {
  if (bytes.size() % sizeof(BlockId) != 0) throw std::invalid_argument("ids of blocks have 32 bytes each");
  std::vector<BlockId> ids(bytes.size() / sizeof(BlockId));
  if (!ids.empty()) std::memcpy(ids.data(), bytes.c_str(), bytes.size());
  return ids;
}

nb::list as_list(const std::vector<RadixTree::Busy>& busy) {
  nb::list list;
  for (const RadixTree::Busy& it : busy) {
    nb::object name_space = nb::none();
    if (!it.name_space.empty()) name_space = nb::cast(it.name_space.substr(1));  // see name_space_key
    list.append(nb::make_tuple(name_space, it.start, it.end, it.hits, it.first));
  }
  return list;
}

const char* tail_name(KVCache::Tail tail) {
  switch (tail) {
    case KVCache::Tail::kExtended:
      return "extended";
    case KVCache::Tail::kCopied:
      return "copied";
    default:
      return "none";
  }
}

nb::ndarray<nb::array_api> make_tensor(nb::handle self, PyCache& cache, std::size_t offset,
                                       const std::vector<std::size_t>& shape, const std::vector<std::int64_t>& strides,
                                       const std::string& dtype) {
  if (shape.size() != strides.size()) throw std::invalid_argument("shape and strides differ in length");
  if (cache->driver().name() == "none") throw std::invalid_argument("driver 'none' has no memory to look at");
  const nb::dlpack::dtype type = dtype_of(dtype);
  const std::size_t range = cache->slot_bytes() * cache->slots();
  // Whole elements from the offset on. Every dimension's reach is compared before it is taken off, so that no sum or
  // product wraps around.
  std::size_t left = offset > range ? 0 : (range - offset) / (type.bits / 8u);
  bool inside = left > 0;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 0 || strides[i] < 0) throw std::invalid_argument("shape must be positive, strides not negative");
    const std::size_t steps = shape[i] - 1;
    const auto stride = static_cast<std::size_t>(strides[i]);
    inside = inside && (stride == 0 || steps <= (left - 1) / stride);
    if (inside) left -= steps * stride;
  }
  if (!inside) throw std::invalid_argument("the tensor reaches past the arena's " + std::to_string(range) + " bytes");
  const int device = cache->driver().device();
  return nb::ndarray<nb::array_api>(reinterpret_cast<void*>(cache->base() + offset), shape.size(), shape.data(), self,
                                    strides.data(), type, device < 0 ? nb::device::cpu::value : nb::device::cuda::value,
                                    device < 0 ? 0 : device);
}

}  // namespace
}  // namespace vt

NB_MODULE(_core, m) {
  using namespace vt;
  m.doc() = "Virtual tensors: pages, mappings and the radix tree over them. vt_sglang/_core.pyi documents it.";
  nb::set_leak_warnings(false);  // a server's cache lives until its process ends
  const nb::exception<DriverError> driver_error(m, "DriverError", PyExc_RuntimeError);
  nb::exception<OutOfMemory>(m, "OutOfMemory", driver_error);
  nb::exception<OutOfPages>(m, "OutOfPages", PyExc_RuntimeError);
  nb::exception<SlotsBusy>(m, "SlotsBusy", PyExc_RuntimeError);
  nb::exception<InvariantError>(m, "InvariantError", PyExc_AssertionError);
  m.def("host_mapping_limit", &host_mapping_limit);
  m.def(
      "slot_bytes",
      [](std::size_t page_bytes, std::size_t token_bytes, std::size_t tokens) {
        return slot_bytes_for({page_bytes, token_bytes}, tokens);
      },
      "page_bytes"_a, "token_bytes"_a, "tokens"_a);

  nb::class_<PyCache>(m, "KVCache")
      .def(nb::init<const std::string&, std::size_t, std::size_t, SlotId, std::size_t, PageId, int, const std::string&,
                    std::size_t, bool, bool, std::size_t, bool, bool, std::size_t>(),
           nb::kw_only(), "driver"_a, "page_bytes"_a, "token_bytes"_a, "slots"_a, "slot_tokens"_a, "budget_pages"_a,
           "device"_a = 0, "cuda_library"_a = "libcuda.so.1", "mapping_limit"_a = 0, "exportable_pages"_a = false,
           "inject_faults"_a = false, "block_tokens"_a = 0, "move_pages"_a = false, "map_ahead"_a = false,
           "copy_from_pages"_a = 256)
      .def(
          "match",
          [](PyCache& it, const std::optional<std::string>& key, nb::handle tokens, std::optional<std::size_t> limit,
             std::size_t total_tokens) {
            const Tokens ids(tokens, limit);
            const std::string name_space = name_space_key(key);
            const auto match = unlocked([&] { return it->match(name_space, ids.span(), total_tokens); });
            return nb::make_tuple(match.node, match.tokens);
          },
          "namespace"_a.none(), "tokens"_a, "limit"_a = nb::none(), "total_tokens"_a = 0)
      .def(
          "lock", [](PyCache& it, NodeHandle node) { unlocked([&] { it->lock(node); }); }, "node"_a)
      .def(
          "unlock", [](PyCache& it, NodeHandle node) { unlocked([&] { it->unlock(node); }); }, "node"_a)
      .def(
          "bind",
          [](PyCache& it, const std::optional<std::string>& key, NodeHandle node, std::size_t tokens,
             std::size_t guard_tokens, std::size_t spare_pages) {
            const std::string name_space = name_space_key(key);
            const auto bound = unlocked([&] { return it->bind(name_space, node, tokens, guard_tokens, spare_pages); });
            return nb::make_tuple(bound.slot, tail_name(bound.tail), bound.pages_aliased, bound.pages_mapped);
          },
          "namespace"_a.none(), "node"_a, "tokens"_a, "guard_tokens"_a = 0, "spare_pages"_a = 0)
      .def(
          "grow",
          [](PyCache& it, const Integers& slots, const Integers& tokens, std::size_t guard_tokens) {
            const auto ids = convert<SlotId>(slots, "slot");
            const auto counts = convert<std::size_t>(tokens, "token count");
            unlocked([&] { it->grow(ids, counts, guard_tokens); });
          },
          "slots"_a, "tokens"_a, "guard_tokens"_a = 0)
      .def(
          "pages_to_grow",
          [](PyCache& it, const Integers& slots, const Integers& tokens) {
            const auto ids = convert<SlotId>(slots, "slot");
            const auto counts = convert<std::size_t>(tokens, "token count");
            return unlocked([&] { return it->pages_to_grow(ids, counts); });
          },
          "slots"_a, "tokens"_a)
      .def(
          "record",
          [](PyCache& it, SlotId slot, nb::handle tokens, std::optional<std::size_t> limit) {
            const Tokens ids(tokens, limit);
            const auto recorded = unlocked([&] { return it->record(slot, ids.span()); });
            return nb::make_tuple(recorded.node, recorded.duplicate, recorded.added);
          },
          "slot"_a, "tokens"_a, "limit"_a = nb::none())
      .def(
          "play",
          [](PyCache& it, const std::optional<std::string>& key, nb::handle tokens, std::size_t total,
             std::size_t prompt, std::size_t limit, std::size_t chunk) {
            const Tokens ids(tokens, total);
            const std::string name_space = name_space_key(key);
            return unlocked([&] { return play(*it, name_space, ids.span(), {prompt, limit, chunk}); });
          },
          "namespace"_a.none(), "tokens"_a, "total"_a, "prompt"_a, "limit"_a, "chunk"_a)
      .def(
          "new_blocks",
          [](PyCache& it, NodeHandle node) {
            const auto blocks = unlocked([&] { return it->new_blocks(node); });
            nb::object parent = nb::none();
            if (blocks.parent) parent = as_bytes({*blocks.parent});
            return nb::make_tuple(blocks.start, parent);
          },
          "node"_a)
      .def(
          "set_blocks",
          [](PyCache& it, NodeHandle node, const nb::bytes& ids) {
            const auto blocks = as_blocks(ids);
            unlocked([&] { it->set_blocks(node, blocks); });
          },
          "node"_a, "ids"_a)
      .def("take_removed_blocks",
           [](PyCache& it) { return as_bytes(unlocked([&] { return it->take_removed_blocks(); })); })
      .def("blocks", [](PyCache& it) { return as_bytes(unlocked([&] { return it->blocks(); })); })
      .def(
          "busiest",
          [](PyCache& it, std::size_t count) { return as_list(unlocked([&] { return it->busiest(count); })); },
          "count"_a)
      .def(
          "release", [](PyCache& it, SlotId slot) { unlocked([&] { it->release(slot); }); }, "slot"_a)
      .def(
          "begin_forward",
          [](PyCache& it, const Integers& slots, bool reads_guards) {
            const auto ids = convert<SlotId>(slots, "slot");
            return unlocked([&] { return it->begin_forward(ids, reads_guards); });
          },
          "slots"_a, "reads_guards"_a = false)
      .def(
          "complete_forward",
          [](PyCache& it, std::uint64_t forward) { unlocked([&] { it->complete_forward(forward); }); }, "forward"_a)
      .def(
          "evict", [](PyCache& it, std::size_t pages) { return unlocked([&] { return it->evict(pages); }); }, "pages"_a)
      .def(
          "evict_tokens",
          [](PyCache& it, std::size_t tokens) { return unlocked([&] { return it->evict_tokens(tokens); }); },
          "tokens"_a)
      .def(
          "trim",
          [](PyCache& it, std::size_t keep, std::optional<std::size_t> most_calls, bool settled) {
            const std::size_t most = most_calls.value_or(std::numeric_limits<std::size_t>::max());
            return unlocked([&] { return it->trim(keep, most, settled); });
          },
          "keep"_a = 0, "most_calls"_a = nb::none(), "settled"_a = true)
      .def(
          "set_limit", [](PyCache& it, std::size_t pages) { unlocked([&] { it->set_limit(pages); }); }, "pages"_a)
      .def(
          "shrink",
          [](PyCache& it, std::size_t calls, bool settled) {
            return unlocked([&] { return it->shrink(calls, settled); });
          },
          "most_calls"_a, "settled"_a = false)
      .def("mappable_pages", [](PyCache& it) { return unlocked([&] { return it->mappable_pages(); }); })
      .def(
          "make_room", [](PyCache& it, std::size_t pages) { return unlocked([&] { return it->make_room(pages); }); },
          "pages"_a)
      .def(
          "create_ahead",
          [](PyCache& it, std::size_t pages, bool retry) { unlocked([&] { it->create_ahead(pages, retry); }); },
          "pages"_a, "retry"_a = false)
      .def(
          "prepare",
          [](PyCache& it, NodeHandle node, std::size_t least_pages, std::size_t spare_pages) {
            return unlocked([&] { return it->prepare(node, least_pages, spare_pages); });
          },
          "node"_a, "least_pages"_a, "spare_pages"_a = 0)
      .def("finish_ahead", [](PyCache& it) { unlocked([&] { it->finish_ahead(); }); })
      .def("clear", [](PyCache& it) { unlocked([&] { it->clear(); }); })
      .def("check", [](PyCache& it) { unlocked([&] { it->check(); }); })
      .def("usage", [](PyCache& it) { return as_dict(unlocked([&] { return it->usage(); })); })
      .def("counters", [](PyCache& it) { return as_dict(unlocked([&] { return it->counters(); })); })
      .def("physical_bytes", [](PyCache& it) { return unlocked([&] { return it->physical_bytes(); }); })
      .def("available_tokens", [](PyCache& it) { return unlocked([&] { return it->available_tokens(); }); })
      .def("evictable_tokens", [](PyCache& it) { return unlocked([&] { return it->evictable_tokens(); }); })
      .def("protected_tokens", [](PyCache& it) { return unlocked([&] { return it->protected_tokens(); }); })
      .def("idle_slots", [](PyCache& it) { return unlocked([&] { return it->idle_slots(); }); })
      .def("deliverable_pages", [](PyCache& it) { return unlocked([&] { return it->deliverable_pages(); }); })
      .def(
          "node_tokens", [](PyCache& it, NodeHandle node) { return unlocked([&] { return it->node_tokens(node); }); },
          "node"_a)
      .def(
          "costs", [](PyCache& it, SlotId slot) { return as_dict(unlocked([&] { return it->costs(slot); })); },
          "slot"_a)
      .def(
          "slot_pages", [](PyCache& it, SlotId slot) { return unlocked([&] { return it->slot_pages(slot); }); },
          "slot"_a)
      .def(
          "path_pages", [](PyCache& it, NodeHandle node) { return unlocked([&] { return it->path_pages(node); }); },
          "node"_a)
      .def(
          "set_stream", [](PyCache& it, std::uintptr_t stream) { unlocked([&] { it->set_stream(stream); }); },
          "stream"_a)
      .def(
          "inject_fault",
          [](PyCache& it, const std::string& operation, long successes) { it.faults().inject(operation, successes); },
          "operation"_a, "successes"_a = 0)
      .def(
          "limit_memory", [](PyCache& it, std::size_t pages) { it.faults().limit_memory(pages); }, "pages"_a)
      .def("clear_faults", [](PyCache& it) { it.faults().clear_faults(); })
      .def(
          "tensor",
          [](nb::handle self, std::size_t offset, const std::vector<std::size_t>& shape,
             const std::vector<std::int64_t>& strides, const std::string& dtype) {
            return make_tensor(self, nb::cast<PyCache&>(self), offset, shape, strides, dtype);
          },
          "offset"_a, "shape"_a, "strides"_a, "dtype"_a)
      .def_prop_ro("driver", [](PyCache& it) { return it->driver().name(); })
      .def_prop_ro("page_bytes", [](PyCache& it) { return it->geometry().page_bytes; })
      .def_prop_ro("token_bytes", [](PyCache& it) { return it->geometry().token_bytes; })
      .def_prop_ro("slots", [](PyCache& it) { return it->slots(); })
      .def_prop_ro("slot_tokens", [](PyCache& it) { return it->slot_tokens(); })
      .def_prop_ro("copy_from_pages", [](PyCache& it) { return it->copy_from_pages(); })
      .def_prop_ro("block_tokens", [](PyCache& it) { return it->block_tokens(); })
      .def_prop_ro("slot_bytes", [](PyCache& it) { return it->slot_bytes(); })
      .def_prop_ro("total_tokens", [](PyCache& it) { return it->total_tokens(); })
      .def_prop_ro("base", [](PyCache& it) { return it->base(); });

  nb::class_<PyPlan>(m, "SharePlan")
      .def(nb::init<PyCache&, std::size_t, std::size_t, std::size_t, std::size_t, std::size_t, std::size_t,
                    std::size_t>(),
           nb::keep_alive<1, 2>(), "cache"_a, nb::kw_only(), "max_batch"_a, "max_workers"_a, "members_per_task"_a,
           "members_per_read"_a = 0, "max_levels"_a = 8, "least_saved"_a = 128, "max_places"_a = 0)
      .def("update", &PyPlan::update, "slots"_a, "buffer"_a.noconvert(), "tile"_a, "workers"_a)
      .def("facts", [](const PyPlan& it) { return as_dict(it.facts()); })
      .def_prop_ro("size", [](const PyPlan& it) { return it->layout().size; })
      .def_prop_ro("tasks_at", [](const PyPlan& it) { return it->layout().tasks; })
      .def_prop_ro("order_at", [](const PyPlan& it) { return it->layout().order; })
      .def_prop_ro("positions_at", [](const PyPlan& it) { return it->layout().positions; })
      .def_prop_ro("own_starts_at", [](const PyPlan& it) { return it->layout().own_starts; })
      .def_prop_ro("row_tasks_at", [](const PyPlan& it) { return it->layout().row_tasks; })
      .def_prop_ro("runs_at", [](const PyPlan& it) { return it->layout().runs; })
      .def_prop_ro("max_tasks", [](const PyPlan& it) { return it->max_tasks(); })
      .def_prop_ro("max_places", [](const PyPlan& it) { return it->limits().max_places; });
}
