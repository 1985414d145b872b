// SPDX-License-Identifier: Apache-2.0
#include "cuda_api.h"

#include <dlfcn.h>

#include "errors.h"

namespace vt::cuda {
namespace {

template <typename Function>
void look_up(void* library, Function& function, const char* name) {
  void* symbol = ::dlsym(library, name);
  if (symbol == nullptr)
    throw DriverError(name, -1,
                      "this CUDA driver lacks the entry point; install an NVIDIA driver for CUDA 11.2 or newer");
  function = reinterpret_cast<Function>(symbol);
}

// What can be done about an error, whichever call met it; "" where that is not known.
const char* advice(Result result) {
  if (result == kOutOfMemory)
    return "; nvidia-smi says who has the GPU's memory: free some, or lower --mem-fraction-static";
  if (result == kNoDevice || result == kInvalidDevice)
    return "; nvidia-smi lists the GPUs, of which CUDA_VISIBLE_DEVICES may hide some: choose another --base-gpu-id";
  if (result >= kIllegalAddress && result <= kLaunchFailed)
    return "; a kernel failed before, on which this process cannot go on: start it again, with CUDA_LAUNCH_BLOCKING=1 "
           "to find the kernel";
  return "";
}

}  // namespace

Api::Api(const std::string& library) {
  // Never closed: other parts of the process use the same driver until it ends.
  void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = ::dlerror();
    throw DriverError("dlopen", -1,
                      std::string(reason ? reason : library) +
                          "; no CUDA driver is installed here: install NVIDIA's, or serve with --device cpu");
  }
  look_up(handle, init, "cuInit");
  look_up(handle, get_error_name, "cuGetErrorName");
  look_up(handle, get_error_string, "cuGetErrorString");
  look_up(handle, device_get, "cuDeviceGet");
  look_up(handle, device_get_attribute, "cuDeviceGetAttribute");
  look_up(handle, primary_context_retain, "cuDevicePrimaryCtxRetain");
  look_up(handle, primary_context_release, "cuDevicePrimaryCtxRelease_v2");
  look_up(handle, context_push, "cuCtxPushCurrent_v2");
  look_up(handle, context_pop, "cuCtxPopCurrent_v2");
  look_up(handle, granularity, "cuMemGetAllocationGranularity");
  look_up(handle, address_reserve, "cuMemAddressReserve");
  look_up(handle, address_free, "cuMemAddressFree");
  look_up(handle, create, "cuMemCreate");
  look_up(handle, release, "cuMemRelease");
  look_up(handle, map, "cuMemMap");
  look_up(handle, unmap, "cuMemUnmap");
  look_up(handle, set_access, "cuMemSetAccess");
  look_up(handle, copy_async, "cuMemcpyDtoDAsync_v2");
  look_up(handle, set_async, "cuMemsetD8Async");
  look_up(handle, module_load, "cuModuleLoadData");
  look_up(handle, module_unload, "cuModuleUnload");
  look_up(handle, module_function, "cuModuleGetFunction");
  look_up(handle, launch, "cuLaunchKernel");
}

std::string Api::describe(Result result) const {
  const char* name = nullptr;
  const char* text = nullptr;
  get_error_name(result, &name);
  get_error_string(result, &text);
  return std::string(name ? name : "CUDA error " + std::to_string(result)) + (text ? ", " : "") + (text ? text : "") +
         advice(result);
}

void Api::check(Result result, const char* operation) const {
  if (result != kSuccess) throw DriverError(operation, result, describe(result));
}

}  // namespace vt::cuda
