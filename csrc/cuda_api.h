// SPDX-License-Identifier: Apache-2.0
// The few entry points of the CUDA driver that the core calls, looked up in libcuda at run time, so that it builds
// where there is no CUDA toolkit and loads where there is no driver. The declarations follow the CUDA driver API
// reference (virtual memory management); their layouts are part of its binary interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace vt::cuda {

using Result = int;  // CUresult
using Device = int;
using Context = struct ContextTag*;
using Stream = struct StreamTag*;
using Module = struct ModuleTag*;
using Function = struct FunctionTag*;
using DevicePointer = unsigned long long;
using AllocationHandle = unsigned long long;

inline constexpr Result kSuccess = 0;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNoDevice = 100;
inline constexpr Result kInvalidDevice = 101;
inline constexpr Result kIllegalAddress = 700;
inline constexpr Result kLaunchFailed = 719;
inline constexpr int kAllocationTypePinned = 1;
inline constexpr int kLocationTypeDevice = 1;
inline constexpr int kAccessReadWrite = 3;
inline constexpr int kHandleTypeNone = 0;
inline constexpr int kHandleTypePosixFileDescriptor = 1;

// CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, _HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED and
// _GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED.
inline constexpr int kAttributeVirtualMemory = 102;
inline constexpr int kAttributePosixHandles = 103;
inline constexpr int kAttributeGpuDirectRdmaWithVmm = 110;

struct Location {
  int type;
  int id;
};

struct AllocationProperties {  // CUmemAllocationProp
  int type;
  int requested_handle_types;
  Location location;
  void* win32_handle_metadata;
  struct {
    unsigned char compression_type;
    unsigned char gpu_direct_rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
};
static_assert(sizeof(AllocationProperties) == 32);

struct AccessDescription {  // CUmemAccessDesc
  Location location;
  int flags;
};
static_assert(sizeof(AccessDescription) == 12);

struct Api {
  // library: a path or a name that dlopen takes. Throws DriverError if it or an entry point is missing.
  explicit Api(const std::string& library);

  Result (*init)(unsigned) = nullptr;
  Result (*get_error_name)(Result, const char**) = nullptr;
  Result (*get_error_string)(Result, const char**) = nullptr;
  Result (*device_get)(Device*, int) = nullptr;
  Result (*device_get_attribute)(int*, int, Device) = nullptr;
  Result (*primary_context_retain)(Context*, Device) = nullptr;
  Result (*primary_context_release)(Device) = nullptr;
  Result (*context_push)(Context) = nullptr;
  Result (*context_pop)(Context*) = nullptr;
  Result (*granularity)(std::size_t*, const AllocationProperties*, int) = nullptr;
  Result (*address_reserve)(DevicePointer*, std::size_t, std::size_t, DevicePointer, unsigned long long) = nullptr;
  Result (*address_free)(DevicePointer, std::size_t) = nullptr;
  Result (*create)(AllocationHandle*, std::size_t, const AllocationProperties*, unsigned long long) = nullptr;
  Result (*release)(AllocationHandle) = nullptr;
  Result (*map)(DevicePointer, std::size_t, std::size_t, AllocationHandle, unsigned long long) = nullptr;
  Result (*unmap)(DevicePointer, std::size_t) = nullptr;
  Result (*set_access)(DevicePointer, std::size_t, const AccessDescription*, std::size_t) = nullptr;
  Result (*copy_async)(DevicePointer, DevicePointer, std::size_t, Stream) = nullptr;
  Result (*set_async)(DevicePointer, unsigned char, std::size_t, Stream) = nullptr;
  Result (*module_load)(Module*, const void*) = nullptr;
  Result (*module_unload)(Module) = nullptr;
  Result (*module_function)(Function*, Module, const char*) = nullptr;
  Result (*launch)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**,
                   void**) = nullptr;

  // The CUDA error's name and text, and what can be done about it.
  std::string describe(Result result) const;
  // Throws DriverError, saying that, unless result is success.
  void check(Result result, const char* operation) const;
};

}  // namespace vt::cuda
