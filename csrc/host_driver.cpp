// SPDX-License-Identifier: Apache-2.0
#include "host_driver.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "errors.h"

namespace vt {
namespace {

constexpr int kReserveFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

[[noreturn]] void fail(const char* operation, int code) {
  const std::string reason = std::strerror(code);
  if (code == ENOSPC || code == ENOMEM)
    throw OutOfMemory(operation, code,
                      reason +
                          " (the machine has no memory left for another page: lower --max-total-tokens or "
                          "--mem-fraction-static)");
  throw DriverError(operation, code, reason);
}

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

std::size_t host_mapping_limit() {
  std::size_t allowed = 65530;  // the kernel's default
  std::ifstream("/proc/sys/vm/max_map_count") >> allowed;
  std::ifstream maps("/proc/self/maps");
  std::size_t used = 0;
  for (std::string line; std::getline(maps, line);) ++used;
  // PyTorch, its thread pools and the allocator go on mapping memory after this count.
  const std::size_t others = used + std::max<std::size_t>(4096, allowed / 8);
  return allowed > others ? allowed - others : 0;
}

HostDriver::HostDriver(std::size_t page_bytes, PageId max_pages) : page_bytes_(page_bytes), max_pages_(max_pages) {
  const auto system = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  if (page_bytes == 0 || page_bytes % system != 0)
    throw std::invalid_argument("page_bytes must be a positive multiple of the system's page size, " +
                                std::to_string(system) + "; got " + std::to_string(page_bytes));
  if (max_pages == 0) throw std::invalid_argument("max_pages must be positive");
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(page_bytes, max_pages, &bytes) || bytes > std::numeric_limits<off_t>::max())
    throw std::invalid_argument("no file holds " + std::to_string(max_pages) + " pages of " +
                                std::to_string(page_bytes) + " bytes");
  file_ = ::memfd_create("vt-sglang", MFD_CLOEXEC);
  if (file_ < 0) fail("memfd_create", errno);
  // The file is sparse: a page takes memory when create() allocates its blocks.
  if (::ftruncate(file_, static_cast<off_t>(bytes)) != 0) {
    const int code = errno;
    ::close(file_);
    fail("ftruncate", code);
  }
  void* window = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_, 0);
  if (window == MAP_FAILED) {
    const int code = errno;
    ::close(file_);
    fail("mmap", code);
  }
  window_ = static_cast<char*>(window);
  mapping_limit_ = host_mapping_limit();
}

HostDriver::~HostDriver() {
  if (range_ != 0) ::munmap(pointer(range_), range_bytes_);
  ::munmap(window_, page_bytes_ * max_pages_);
  ::close(file_);
}

std::uintptr_t HostDriver::reserve(std::size_t bytes) {
  if (range_ != 0) throw InvariantError("the range is reserved already");
  // Page-aligned to the driver's page, so that large pages of the kernel can back it.
  void* raw = ::mmap(nullptr, bytes + page_bytes_, PROT_NONE, kReserveFlags, -1, 0);
  if (raw == MAP_FAILED) {
    const int code = errno;
    throw DriverError("mmap", code,
                      std::string(std::strerror(code)) + ": " + std::to_string(bytes >> 30) +
                          " GiB of addresses cannot be reserved; lower --max-running-requests or --context-length");
  }
  const auto start = reinterpret_cast<std::uintptr_t>(raw);
  range_ = (start + page_bytes_ - 1) / page_bytes_ * page_bytes_;
  range_bytes_ = bytes;
  if (range_ > start) ::munmap(raw, range_ - start);
  ::munmap(pointer(range_ + bytes), start + page_bytes_ - range_);
  return range_;
}

void HostDriver::create(PageId page) {
  const auto offset = static_cast<off_t>(page_bytes_ * page);
  // Allocated now and not at the first touch: a machine that is out of memory says so here, and not by SIGBUS.
  while (::fallocate(file_, 0, offset, static_cast<off_t>(page_bytes_)) != 0) {
    if (errno == EINTR) continue;
    const int code = errno;
    ::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(page_bytes_));
    fail("fallocate", code);
  }
}

void HostDriver::release(PageId page) {
  const auto offset = static_cast<off_t>(page_bytes_ * page);
  while (::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(page_bytes_)) != 0)
    if (errno != EINTR) fail("fallocate", errno);
}

void HostDriver::map(std::span<const MapOperation> operations) {
  for (std::size_t first = 0; first < operations.size();) {
    std::size_t last = first + 1;  // neighbours in both the range and the file become one mapping
    while (last < operations.size() && operations[last].page == operations[last - 1].page + 1 &&
           operations[last].address == operations[last - 1].address + page_bytes_)
      ++last;
    const MapOperation& head = operations[first];
    void* made = ::mmap(pointer(head.address), (last - first) * page_bytes_, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_FIXED | MAP_POPULATE, file_, static_cast<off_t>(page_bytes_ * head.page));
    if (made == MAP_FAILED) {
      const int code = errno;
      for (const MapOperation& operation : operations) blank(operation.address, page_bytes_);
      throw DriverError("mmap", code, std::strerror(code));
    }
    first = last;
  }
}

void HostDriver::unmap(std::uintptr_t address) { blank(address, page_bytes_); }

// Back to a reserved, inaccessible address. MAP_FIXED over an existing range fails only for lack of kernel memory or
// of mappings; the address then keeps the page, which is harmless, as no one reads a stale mapping (invariant 2).
void HostDriver::blank(std::uintptr_t address, std::size_t bytes) noexcept {
  ::mmap(pointer(address), bytes, PROT_NONE, kReserveFlags | MAP_FIXED, -1, 0);
}

void HostDriver::copy(std::uintptr_t destination, PageId source, std::size_t bytes) {
  std::memcpy(pointer(destination), in_window(source), bytes);
}

void HostDriver::move(std::span<const Move> moves) {
  for (const Move& it : moves) {
    if (it.swap)
      std::swap_ranges(in_window(it.to), in_window(it.to) + page_bytes_, in_window(it.from));
    else
      std::memcpy(in_window(it.to), in_window(it.from), page_bytes_);
  }
}

std::size_t HostDriver::physical_bytes() const {
  struct stat status{};
  if (::fstat(file_, &status) != 0) fail("fstat", errno);
  return static_cast<std::size_t>(status.st_blocks) * 512;
}

}  // namespace vt
