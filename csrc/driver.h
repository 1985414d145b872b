// SPDX-License-Identifier: Apache-2.0
// The one interface behind which physical pages, address ranges and mappings are made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include "types.h"

namespace vt {

struct MapOperation {
  std::uintptr_t address;  // page-aligned, inside the reserved range
  PageId page;             // a created page
};

// That a page's whole content is to go to another one, or that both are to swap theirs.
struct Move {
  PageId to;
  PageId from;
  bool swap;
};

// Not thread-safe: the caller serialises. Every failure is a DriverError.
class Driver {
 public:
  Driver() = default;
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;
  virtual ~Driver() = default;

  virtual std::string name() const = 0;
  virtual std::size_t page_bytes() const = 0;
  // -1 for memory of the host, else the CUDA device's ordinal.
  virtual int device() const = 0;

  // Whether its calls take time that is worth measuring.
  virtual bool takes_time() const { return true; }

  // Reserves one range of addresses, once. Freed, with all that is mapped in it, by the destructor.
  virtual std::uintptr_t reserve(std::size_t bytes) = 0;

  // Takes the page's physical memory, or gives it back. A page is released only when it is mapped nowhere. create
  // throws OutOfMemory where there is none left for the page.
  virtual void create(PageId page) = 0;
  virtual void release(PageId page) = 0;
  // Takes memory for a page that does not exist yet, so that creating it takes no time; nothing if it exists. It counts
  // as physical memory, and is given back by unprepare, if the page still does not exist: then true.
  virtual void prepare(PageId /*page*/) {}
  virtual bool unprepare(PageId /*page*/) { return false; }
  // Whether creating it takes no time. May be asked at any time, and be out of date.
  virtual bool prepared(PageId /*page*/) const { return false; }

  // Maps pages, in place of what is mapped there now. On failure every address of the batch is left unmapped; it is
  // OutOfMemory where there is none for what the mapping itself takes.
  virtual void map(std::span<const MapOperation> operations) = 0;
  // Unmaps the page at this address. One at a time, so that it is known what a failure left mapped. An address that
  // maps nothing is passed over.
  virtual void unmap(std::uintptr_t address) = 0;

  // Copies a page's first bytes to a mapped address: in the order of the stream that set_stream named (CUDA), or
  // before returning (host). The source need not be mapped anywhere.
  virtual void copy(std::uintptr_t destination, PageId source, std::size_t bytes) = 0;
  // Moves the contents of created pages, in the same order as copies; no page is named twice.
  virtual void move(std::span<const Move> moves) = 0;
  // Does ahead what the first move of a created page would have to do besides.
  virtual void ready_to_move(PageId /*page*/) {}
  virtual void set_stream(std::uintptr_t /*stream*/) {}
  // Fills a newly created page, mapped at this address, with zeros, in the same order as copies. Memory of the host
  // comes as zeros.
  virtual void clear(std::uintptr_t /*address*/) {}

  // Bytes of physical memory that the system says the created pages occupy now. May be asked at any time.
  virtual std::size_t physical_bytes() const = 0;

  // How many separate runs of pages, and gaps after them, there may be at one time.
  virtual std::size_t mapping_limit() const { return std::numeric_limits<std::size_t>::max(); }
};

}  // namespace vt
