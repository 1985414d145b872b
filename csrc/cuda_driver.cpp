// SPDX-License-Identifier: Apache-2.0
#include "cuda_driver.h"

#include <algorithm>
#include <string>

#include "errors.h"

namespace vt {

using cuda::kSuccess;
using cuda::Result;

namespace {

// The default, which is the allocation granularity: all that mapping needs. The page size would have to be a power of
// two, and three granules are a fine page.
constexpr std::size_t kAnyAlignment = 0;

}  // namespace

class CudaDriver::InContext {
 public:
  InContext(const cuda::Api& api, cuda::Context context) : api_(api) {
    api_.check(api_.context_push(context), "cuCtxPushCurrent");
  }
  ~InContext() {
    cuda::Context popped = nullptr;
    api_.context_pop(&popped);
  }
  InContext(const InContext&) = delete;
  InContext& operator=(const InContext&) = delete;

 private:
  const cuda::Api& api_;
};

CudaDriver::CudaDriver(int device, std::size_t page_bytes, PageId max_pages, const std::string& library,
                       bool exportable)
    : api_(library), ordinal_(device), page_bytes_(page_bytes), max_pages_(max_pages) {
  if (max_pages == 0) throw std::invalid_argument("max_pages must be positive");
  api_.check(api_.init(0), "cuInit");
  api_.check(api_.device_get(&device_, device), "cuDeviceGet");
  properties_.type = cuda::kAllocationTypePinned;
  properties_.location = {cuda::kLocationTypeDevice, device_};
  if (!supports(cuda::kAttributeVirtualMemory))
    throw DriverError("cuDeviceGetAttribute", -1,
                      "device " + std::to_string(device) +
                          " has no virtual memory management; serve without --radix-cache-backend vtensor");
  // So that NICs can read and write the pages (GPUDirect).
  properties_.flags.gpu_direct_rdma_capable = supports(cuda::kAttributeGpuDirectRdmaWithVmm);
  std::size_t granularity = 0;
  if (exportable && supports(cuda::kAttributePosixHandles)) {
    properties_.requested_handle_types = cuda::kHandleTypePosixFileDescriptor;
    if (api_.granularity(&granularity, &properties_, 0) != kSuccess)
      properties_.requested_handle_types = cuda::kHandleTypeNone;
  }
  api_.check(api_.granularity(&granularity, &properties_, 0), "cuMemGetAllocationGranularity");
  if (page_bytes_ == 0) page_bytes_ = granularity;
  if (granularity == 0 || page_bytes_ % granularity != 0)
    throw std::invalid_argument("page_bytes must be a multiple of this GPU's allocation granularity, " +
                                std::to_string(granularity) + "; got " + std::to_string(page_bytes_) +
                                ": leave --vtensor-page-bytes out");
  handles_.resize(max_pages);
  exists_.resize(max_pages);
  in_window_.resize(max_pages);
  api_.check(api_.primary_context_retain(&context_, device_), "cuDevicePrimaryCtxRetain");
  if (!exports_pages()) properties_.requested_handle_types = cuda::kHandleTypeNone;
}

bool CudaDriver::supports(int attribute) const {
  int value = 0;
  return api_.device_get_attribute(&value, attribute, device_) == kSuccess && value != 0;
}

bool CudaDriver::exports_pages() const {
  cuda::Context popped = nullptr;
  // Not InContext: an exception would leave the context retained.
  if (properties_.requested_handle_types == cuda::kHandleTypeNone || api_.context_push(context_) != kSuccess)
    return false;
  cuda::AllocationHandle page = 0;
  const Result result = api_.create(&page, page_bytes_, &properties_, 0);
  if (result == kSuccess) api_.release(page);
  api_.context_pop(&popped);
  return result == kSuccess || result == cuda::kOutOfMemory;  // the first page that is needed tells of the latter
}

CudaDriver::~CudaDriver() {
  // At the end of a process the driver may be gone already, so results are not looked at.
  cuda::Context popped = nullptr;
  const bool in_context = api_.context_push(context_) == kSuccess;
  for (std::size_t i = 0; i < mapped_.size(); ++i)
    if (mapped_[i]) api_.unmap(range_ + i * page_bytes_, page_bytes_);
  for (PageId page = 0; page < max_pages_; ++page) {
    if (in_window_[page]) api_.unmap(window(page), page_bytes_);
    if (exists_[page]) api_.release(handles_[page]);
  }
  if (module_ != nullptr) api_.module_unload(module_);
  if (window_ != 0) api_.address_free(window_, page_bytes_ * max_pages_);
  if (range_ != 0) api_.address_free(range_, range_bytes_);
  if (in_context) api_.context_pop(&popped);
  api_.primary_context_release(device_);
}

std::uintptr_t CudaDriver::reserve(std::size_t bytes) {
  if (range_ != 0) throw InvariantError("the range is reserved already");
  const InContext in_context(api_, context_);
  const Result result = api_.address_reserve(&range_, bytes, kAnyAlignment, 0, 0);
  if (result != kSuccess) {
    range_ = 0;
    throw DriverError("cuMemAddressReserve", result,
                      std::to_string(bytes >> 30) +
                          " GiB of GPU addresses cannot be reserved; lower --max-running-requests or --context-length");
  }
  range_bytes_ = bytes;
  mapped_.resize(bytes / page_bytes_);
  return static_cast<std::uintptr_t>(range_);
}

void CudaDriver::create(PageId page) {
  const InContext in_context(api_, context_);
  const Result result = api_.create(&handles_[page], page_bytes_, &properties_, 0);
  if (result == cuda::kOutOfMemory) throw OutOfMemory("cuMemCreate", result, api_.describe(result));
  api_.check(result, "cuMemCreate");
  exists_[page] = true;
  ++created_;
}

void CudaDriver::ready_to_move(PageId page) {
  const InContext in_context(api_, context_);
  map_in_window(page);
}

void CudaDriver::map_in_window(PageId page) {
  if (in_window_[page]) return;
  if (window_ == 0)
    api_.check(api_.address_reserve(&window_, page_bytes_ * max_pages_, kAnyAlignment, 0, 0), "cuMemAddressReserve");
  const char* failed = "cuMemMap";
  Result result = map_one(window(page), page);
  if (result == kSuccess) {
    failed = "cuMemSetAccess";
    result = allow_access(window(page), page_bytes_);
    if (result != kSuccess) api_.unmap(window(page), page_bytes_);
  }
  if (result == cuda::kOutOfMemory) throw OutOfMemory(failed, result, api_.describe(result));
  api_.check(result, failed);
  in_window_[page] = true;
}

void CudaDriver::release(PageId page) {
  const InContext in_context(api_, context_);
  if (in_window_[page]) {
    api_.check(api_.unmap(window(page), page_bytes_), "cuMemUnmap");
    in_window_[page] = false;
  }
  api_.check(api_.release(handles_[page]), "cuMemRelease");
  exists_[page] = false;
  --created_;
}

Result CudaDriver::map_one(cuda::DevicePointer address, PageId page) {
  return api_.map(address, page_bytes_, 0, handles_[page], 0);
}

Result CudaDriver::unmap_one(cuda::DevicePointer address) {
  if (!mapped_[index(address)]) return kSuccess;
  const Result result = api_.unmap(address, page_bytes_);
  if (result == kSuccess) mapped_[index(address)] = false;
  return result;
}

Result CudaDriver::allow_access(cuda::DevicePointer address, std::size_t bytes) {
  const cuda::AccessDescription access{{cuda::kLocationTypeDevice, device_}, cuda::kAccessReadWrite};
  return api_.set_access(address, bytes, &access, 1);
}

// One call sets the access of neighbours.
CudaDriver::Failure CudaDriver::allow_access(std::span<const MapOperation> operations) {
  Failure failure;
  for (std::size_t first = 0; first < operations.size();) {
    std::size_t last = first + 1;
    while (last < operations.size() && operations[last].address == operations[last - 1].address + page_bytes_) ++last;
    const Result result = allow_access(operations[first].address, (last - first) * page_bytes_);
    if (result != kSuccess && failure.call == nullptr) failure = {"cuMemSetAccess", result, operations[first]};
    first = last;
  }
  return failure;
}

// Everything is unmapped before anything is mapped. While a page has a mapping whose access is not set, none of its
// mappings may be unmapped: with gpuDirectRDMACapable, driver 580 then refuses to map that page ever again, anywhere
// (CUDA_ERROR_UNKNOWN; docs/design.md).
CudaDriver::Failure CudaDriver::replace(std::span<const MapOperation> operations) {
  for (const MapOperation& it : operations)
    if (const Result result = unmap_one(it.address); result != kSuccess) return {"cuMemUnmap", result, it};
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const MapOperation& it = operations[i];
    if (const Result result = map_one(it.address, it.page); result != kSuccess) {
      allow_access(operations.first(i));  // they are about to be unmapped
      return {"cuMemMap", result, it};
    }
    mapped_[index(it.address)] = true;
  }
  const Failure failure = allow_access(operations);
  if (failure.call != nullptr) allow_access(operations);  // likewise
  return failure;
}

void CudaDriver::map(std::span<const MapOperation> operations) {
  const InContext in_context(api_, context_);
  const Failure failure = replace(operations);
  if (failure.call == nullptr) return;
  const auto mapped = std::count(mapped_.begin(), mapped_.end(), true);
  for (const MapOperation& operation : operations) unmap_one(operation.address);
  const std::string what = api_.describe(failure.result) + " (page " + std::to_string(failure.operation.page) + " of " +
                           std::to_string(created_) + ", at page index " +
                           std::to_string(index(failure.operation.address)) + " of " + std::to_string(mapped_.size()) +
                           ", of which " + std::to_string(mapped) + " are mapped)";
  // Page tables take memory as well.
  if (failure.result == cuda::kOutOfMemory) throw OutOfMemory(failure.call, failure.result, what);
  throw DriverError(failure.call, failure.result, what);
}

void CudaDriver::unmap(std::uintptr_t address) {
  const InContext in_context(api_, context_);
  api_.check(unmap_one(address), "cuMemUnmap");
}

void CudaDriver::copy(std::uintptr_t destination, PageId source, std::size_t bytes) {
  const InContext in_context(api_, context_);
  map_in_window(source);
  api_.check(api_.copy_async(destination, window(source), bytes, stream_), "cuMemcpyDtoDAsync");
}

void CudaDriver::move(std::span<const Move> moves) {
  const InContext in_context(api_, context_);
  if (move_kernel_ == nullptr) {
    if (module_ == nullptr) api_.check(api_.module_load(&module_, cuda::kMovePtx), "cuModuleLoadData");
    api_.check(api_.module_function(&move_kernel_, module_, cuda::kMoveKernel), "cuModuleGetFunction");
  }
  for (const Move& it : moves) {
    map_in_window(it.to);
    map_in_window(it.from);
  }
  while (!moves.empty()) {
    const auto now = moves.first(std::min(moves.size(), cuda::kMovePairs));
    cuda::MovePairs pairs{};
    for (std::size_t i = 0; i < now.size(); ++i)
      pairs[i] = {window(now[i].to), window(now[i].from) | static_cast<std::uint64_t>(now[i].swap)};
    std::uint64_t bytes = page_bytes_;
    std::array<void*, 2> arguments{&pairs, &bytes};
    api_.check(api_.launch(move_kernel_, cuda::kMoveBlocks, static_cast<unsigned>(now.size()), 1, cuda::kMoveThreads, 1,
                           1, 0, stream_, arguments.data(), nullptr),
               "cuLaunchKernel");
    moves = moves.subspan(now.size());
  }
}

void CudaDriver::clear(std::uintptr_t address) {
  const InContext in_context(api_, context_);
  api_.check(api_.set_async(address, 0, page_bytes_, stream_), "cuMemsetD8Async");
}

}  // namespace vt
