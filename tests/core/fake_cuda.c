// SPDX-License-Identifier: Apache-2.0
// A CUDA driver for tests: the entry points of csrc/cuda_api.h over a memfd and mmap. Device memory is host memory, so
// a test can read it; everything else is as strict as the real driver, or stricter where that shows a mistake:
//
//   - every memory call needs a current context (the real driver does not always ask for one)
//   - a mapping is of a whole handle, at offset 0, on reserved addresses where nothing is mapped
//   - memory can be touched only after its access was set, which must cover whole, adjoining mappings
//   - only whole mappings are unmapped, and no gaps (the real driver passes over gaps)
//   - a handle is released once, and as csrc/driver.h promises, when it is mapped nowhere
//   - none of a handle's mappings is unmapped while another one's access is not set (driver 580 never maps such a
//   handle
//     again if it was made for GPUDirect)
//   - addresses are freed as they were reserved, when nothing is mapped in them
//
// What broke a rule is kept in fake_cuda_complaint(). The functions named fake_cuda_* are for the tests.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/falloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef FAKE_CUDA_GRANULARITY
#  define FAKE_CUDA_GRANULARITY 4096
#endif

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  NOT_SUPPORTED = 801
};
enum { DEVICES = 2, MOST = 65536, DEEPEST = 16 };

typedef unsigned long long Address;
typedef struct {
  int type, id;
} Location;
typedef struct {
  int type, requested_handle_types;
  Location location;
  void* win32_handle_metadata;
  struct {
    unsigned char compression, rdma;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
} Properties;
typedef struct {
  Location location;
  int flags;
} Access;

// ---- state

typedef struct {
  size_t bytes;
  int created, mappings, rdma, exportable, inaccessible;
} Handle;  // its memory: at index * HANDLE_SPACE in the file
typedef struct {
  Address start;
  size_t bytes;
} Reservation;
typedef struct {
  Address start;
  size_t bytes;
  int handle, accessible;
} Mapping;

static const size_t kHandleSpace = (size_t)1 << 24;
static int file = -1, initialized, retained[DEVICES];

// Attributes of both devices.
enum { VIRTUAL_MEMORY = 102, POSIX_HANDLES = 103, RDMA = 110, ATTRIBUTES = 128 };
static int supported[ATTRIBUTES] = {[VIRTUAL_MEMORY] = 1};

static Handle handles[MOST];
static Reservation reservations[MOST];
static Mapping mappings[MOST];
static int handle_count, reservation_count, mapping_count;
static __thread int contexts[DEEPEST];
static __thread int context_depth;
static char complaint[256];
static long memory_left = -1;  // handles that can be created; -1: any number

static struct {
  const char* name;
  long calls, successes_left;
  int code;
} kinds[] = {{"cuInit", 0, -1, 0},
             {"cuDeviceGet", 0, -1, 0},
             {"cuDevicePrimaryCtxRetain", 0, -1, 0},
             {"cuDevicePrimaryCtxRelease", 0, -1, 0},
             {"cuCtxPushCurrent", 0, -1, 0},
             {"cuCtxPopCurrent", 0, -1, 0},
             {"cuMemGetAllocationGranularity", 0, -1, 0},
             {"cuMemAddressReserve", 0, -1, 0},
             {"cuMemAddressFree", 0, -1, 0},
             {"cuMemCreate", 0, -1, 0},
             {"cuMemRelease", 0, -1, 0},
             {"cuMemMap", 0, -1, 0},
             {"cuMemUnmap", 0, -1, 0},
             {"cuMemSetAccess", 0, -1, 0},
             {"cuMemcpyDtoDAsync", 0, -1, 0},
             {"cuMemsetD8Async", 0, -1, 0},
             {"cuModuleLoadData", 0, -1, 0},
             {"cuModuleUnload", 0, -1, 0},
             {"cuModuleGetFunction", 0, -1, 0},
             {"cuLaunchKernel", 0, -1, 0}};
enum { KINDS = sizeof kinds / sizeof *kinds };
static _Atomic(const void*) held;  // the kind of calls that wait
static _Atomic int waiting;
static _Atomic int let_through;      // calls of that kind that need not wait any more
static _Atomic unsigned delay;       // most microseconds that a call waits
static _Thread_local int is_exempt;  // calls of this thread never wait

static void wait_in(const void* kind) {
  for (int milliseconds = 0; held == kind && milliseconds < 40000; ++milliseconds) {
    if (let_through > 0) {  // only one call of a cache waits at a time
      --let_through;
      break;
    }
    waiting = 1;
    usleep(1000);
  }
  waiting = 0;
  if (delay > 0) {
    static _Atomic unsigned draws;
    usleep((++draws * 2654435761u >> 8) % (delay + 1));
  }
}

// Counts the call, and makes it fail if it is its turn.
static int begin(const char* name) {
  for (int i = 0; i < KINDS; ++i) {
    if (strcmp(kinds[i].name, name) != 0) continue;
    ++kinds[i].calls;
    if (!is_exempt) wait_in(&kinds[i]);
    if (kinds[i].successes_left < 0 || kinds[i].successes_left-- > 0) return SUCCESS;
    return kinds[i].code;
  }
  return INVALID_VALUE;
}

static int wrong(int code, const char* what) {
  if (complaint[0] == '\0') snprintf(complaint, sizeof complaint, "%s", what);
  return code;
}

#define BEGIN(name)                   \
  do {                                \
    const int code = begin(name);     \
    if (code != SUCCESS) return code; \
  } while (0)
#define NEED(holds, what)                            \
  do {                                               \
    if (!(holds)) return wrong(INVALID_VALUE, what); \
  } while (0)
#define NEED_CONTEXT(name)                                                            \
  do {                                                                                \
    if (context_depth == 0) return wrong(INVALID_CONTEXT, name " without a context"); \
  } while (0)

static void* at(Address address) { return (void*)(uintptr_t)address; }

static int blank(Address address, size_t bytes) {
  return mmap(at(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) !=
         MAP_FAILED;
}

static int inside_reservation(Address start, size_t bytes) {
  for (int i = 0; i < reservation_count; ++i)
    if (start >= reservations[i].start && start + bytes <= reservations[i].start + reservations[i].bytes) return 1;
  return 0;
}

// The mapping that begins here, or NULL. Mappings are kept in order of their addresses.
static Mapping* mapping_at(Address start) {
  int low = 0, high = mapping_count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (mappings[middle].start < start)
      low = middle + 1;
    else
      high = middle;
  }
  return low < mapping_count && mappings[low].start == start ? &mappings[low] : NULL;
}

static int anything_mapped(Address start, size_t bytes) {
  for (int i = 0; i < mapping_count; ++i)
    if (mappings[i].start < start + bytes && mappings[i].start + mappings[i].bytes > start) return 1;
  return 0;
}

// Whether whole, adjoining mappings make up these addresses.
static int whole_mappings(Address start, size_t bytes) {
  const Address end = start + bytes;
  while (start < end) {
    const Mapping* mapping = mapping_at(start);
    if (mapping == NULL) return 0;
    start += mapping->bytes;
  }
  return start == end && bytes > 0;
}

static int readable(Address start, size_t bytes) {
  for (int i = 0; i < mapping_count; ++i)
    if (start >= mappings[i].start && start < mappings[i].start + mappings[i].bytes) {
      if (!mappings[i].accessible) return 0;
      const size_t here = (size_t)(mappings[i].start + mappings[i].bytes - start);
      return here >= bytes || readable(start + here, bytes - here);
    }
  return 0;
}

static void give_memory_back(int handle) {
  fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(handle * kHandleSpace),
            (off_t)handles[handle].bytes);
}

// ---- the driver

int cuInit(unsigned flags) {
  BEGIN("cuInit");
  NEED(flags == 0, "cuInit with flags");
  if (file < 0) file = memfd_create("fake-cuda", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, (off_t)(kHandleSpace * MOST)) != 0) return OUT_OF_MEMORY;
  initialized = 1;
  return SUCCESS;
}

int cuGetErrorName(int code, const char** name) {
  *name = code == SUCCESS           ? "CUDA_SUCCESS"
          : code == INVALID_VALUE   ? "CUDA_ERROR_INVALID_VALUE"
          : code == OUT_OF_MEMORY   ? "CUDA_ERROR_OUT_OF_MEMORY"
          : code == NOT_INITIALIZED ? "CUDA_ERROR_NOT_INITIALIZED"
          : code == INVALID_DEVICE  ? "CUDA_ERROR_INVALID_DEVICE"
          : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
          : code == NOT_SUPPORTED   ? "CUDA_ERROR_NOT_SUPPORTED"
                                    : NULL;
  return *name ? SUCCESS : INVALID_VALUE;
}

int cuGetErrorString(int code, const char** text) {
  *text = code == OUT_OF_MEMORY ? "out of memory" : code == INVALID_VALUE ? "invalid argument" : NULL;
  return *text ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGet(int* device, int ordinal) {
  BEGIN("cuDeviceGet");
  if (!initialized) return NOT_INITIALIZED;
  if (ordinal < 0 || ordinal >= DEVICES) return INVALID_DEVICE;
  *device = ordinal;
  return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (device < 0 || device >= DEVICES) return INVALID_DEVICE;
  if (attribute < 0 || attribute >= ATTRIBUTES) return INVALID_VALUE;
  *value = supported[attribute];
  return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  BEGIN("cuDevicePrimaryCtxRetain");
  if (device < 0 || device >= DEVICES) return INVALID_DEVICE;
  ++retained[device];
  *context = &retained[device];
  return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  BEGIN("cuDevicePrimaryCtxRelease");
  NEED(device >= 0 && device < DEVICES && retained[device] > 0, "a context released more often than retained");
  --retained[device];
  return SUCCESS;
}

int cuCtxPushCurrent_v2(void* context) {
  BEGIN("cuCtxPushCurrent");
  const ptrdiff_t device = (int*)context - retained;
  if (device < 0 || device >= DEVICES || retained[device] == 0) return wrong(INVALID_CONTEXT, "no such context");
  NEED(context_depth < DEEPEST, "contexts are pushed and not popped");
  contexts[context_depth++] = (int)device;
  return SUCCESS;
}

int cuCtxPopCurrent_v2(void** context) {
  BEGIN("cuCtxPopCurrent");
  NEED_CONTEXT("cuCtxPopCurrent");
  *context = &retained[contexts[--context_depth]];
  return SUCCESS;
}

static int valid(const Properties* it) {
  return it->type == 1 && it->location.type == 1 && it->location.id >= 0 && it->location.id < DEVICES &&
         it->requested_handle_types <= supported[POSIX_HANDLES] && it->flags.rdma <= supported[RDMA] &&
         it->win32_handle_metadata == NULL && it->flags.compression == 0;
}

int cuMemGetAllocationGranularity(size_t* bytes, const Properties* properties, int option) {
  BEGIN("cuMemGetAllocationGranularity");
  NEED(valid(properties) && option == 0, "granularity of improper properties");
  *bytes = FAKE_CUDA_GRANULARITY;
  return SUCCESS;
}

int cuMemAddressReserve(Address* start, size_t bytes, size_t alignment, Address wanted, unsigned long long flags) {
  BEGIN("cuMemAddressReserve");
  NEED_CONTEXT("cuMemAddressReserve");
  NEED(bytes > 0 && bytes % FAKE_CUDA_GRANULARITY == 0, "a reservation of improper size");
  NEED((alignment & (alignment - 1)) == 0, "an alignment that is no power of two");
  NEED(wanted == 0 && flags == 0, "a reservation with flags or at an address");
  if (reservation_count == MOST) return OUT_OF_MEMORY;
  void* raw = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return OUT_OF_MEMORY;
  *start = (Address)(uintptr_t)raw;
  reservations[reservation_count++] = (Reservation){*start, bytes};
  return SUCCESS;
}

int cuMemAddressFree(Address start, size_t bytes) {
  BEGIN("cuMemAddressFree");
  NEED_CONTEXT("cuMemAddressFree");
  for (int i = 0; i < reservation_count; ++i) {
    if (reservations[i].start != start || reservations[i].bytes != bytes) continue;
    NEED(!anything_mapped(start, bytes), "addresses freed while something is mapped there");
    munmap(at(start), bytes);
    reservations[i] = reservations[--reservation_count];
    return SUCCESS;
  }
  return wrong(INVALID_VALUE, "addresses freed that were not reserved so");
}

// What new memory holds is not defined.
static int fill_with_garbage(int index, size_t bytes) {
  void* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)(index * kHandleSpace));
  if (memory == MAP_FAILED) return 0;
  memset(memory, 0xA5, bytes);
  munmap(memory, bytes);
  return 1;
}

int cuMemCreate(Address* handle, size_t bytes, const Properties* properties, unsigned long long flags) {
  BEGIN("cuMemCreate");
  NEED_CONTEXT("cuMemCreate");
  NEED(valid(properties) && flags == 0, "memory of improper properties");
  NEED(bytes > 0 && bytes % FAKE_CUDA_GRANULARITY == 0 && bytes <= kHandleSpace, "memory of improper size");
  int free = 0;
  while (free < handle_count && (handles[free].created || handles[free].mappings > 0)) ++free;
  if (memory_left == 0) return OUT_OF_MEMORY;
  if (free == MOST || fallocate(file, 0, (off_t)(free * kHandleSpace), (off_t)bytes) != 0) return OUT_OF_MEMORY;
  if (free == handle_count) ++handle_count;
  if (!fill_with_garbage(free, bytes)) return OUT_OF_MEMORY;
  handles[free] = (Handle){bytes, 1, 0, properties->flags.rdma, properties->requested_handle_types, 0};
  if (memory_left > 0) --memory_left;
  *handle = (Address)free + 1000;  // 0 would be a handle that a test takes for none
  return SUCCESS;
}

static Handle* handle_of(Address handle) {
  return handle >= 1000 && handle - 1000 < (Address)handle_count && handles[handle - 1000].created
             ? &handles[handle - 1000]
             : NULL;
}

int cuMemRelease(Address handle) {
  BEGIN("cuMemRelease");
  NEED_CONTEXT("cuMemRelease");
  Handle* it = handle_of(handle);
  NEED(it != NULL, "a handle released that does not exist");
  if (it->mappings > 0) wrong(SUCCESS, "a handle released that is still mapped");  // allowed, but not to the core
  it->created = 0;
  if (memory_left >= 0) ++memory_left;
  if (it->mappings == 0) give_memory_back((int)(it - handles));
  return SUCCESS;
}

int cuMemMap(Address start, size_t bytes, size_t offset, Address handle, unsigned long long flags) {
  BEGIN("cuMemMap");
  NEED_CONTEXT("cuMemMap");
  Handle* it = handle_of(handle);
  NEED(it != NULL, "a handle mapped that does not exist");
  if (offset != 0 || bytes != it->bytes) return wrong(NOT_SUPPORTED, "part of a handle mapped");
  NEED(flags == 0 && start % FAKE_CUDA_GRANULARITY == 0, "a mapping at an improper address");
  NEED(inside_reservation(start, bytes), "a mapping on addresses that are not reserved");
  NEED(!anything_mapped(start, bytes), "a mapping over a mapping");
  if (mapping_count == MOST) return OUT_OF_MEMORY;
  const int index = (int)(it - handles);
  if (mmap(at(start), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, file, (off_t)(index * kHandleSpace)) == MAP_FAILED)
    return OUT_OF_MEMORY;
  int place = mapping_count++;
  for (; place > 0 && mappings[place - 1].start > start; --place) mappings[place] = mappings[place - 1];
  mappings[place] = (Mapping){start, bytes, index, 0};
  ++it->mappings;
  ++it->inaccessible;
  return SUCCESS;
}

int cuMemUnmap(Address start, size_t bytes) {
  BEGIN("cuMemUnmap");
  NEED_CONTEXT("cuMemUnmap");
  NEED(whole_mappings(start, bytes), "something else than whole mappings unmapped");
  if (!blank(start, bytes)) return OUT_OF_MEMORY;
  for (const Address end = start + bytes; start < end;) {
    Mapping* it = mapping_at(start);
    start += it->bytes;
    Handle* handle = &handles[it->handle];
    if (!it->accessible) --handle->inaccessible;
    if (handle->inaccessible > 0) wrong(SUCCESS, "a handle unmapped while it is mapped elsewhere without access");
    if (--handle->mappings == 0 && !handle->created) give_memory_back(it->handle);
    memmove(it, it + 1, (size_t)(&mappings[mapping_count--] - (it + 1)) * sizeof *it);
  }
  return SUCCESS;
}

#ifndef FAKE_CUDA_OLD
int cuMemSetAccess(Address start, size_t bytes, const Access* access, size_t count) {
  BEGIN("cuMemSetAccess");
  NEED_CONTEXT("cuMemSetAccess");
  NEED(count == 1 && access->location.type == 1 && access->flags == 3, "an improper access");
  NEED(access->location.id >= 0 && access->location.id < DEVICES, "access for no device");
  NEED(whole_mappings(start, bytes), "access to something else than whole mappings");
  if (mprotect(at(start), bytes, PROT_READ | PROT_WRITE) != 0) return OUT_OF_MEMORY;
  for (const Address end = start + bytes; start < end;) {
    Mapping* it = mapping_at(start);
    if (!it->accessible) --handles[it->handle].inaccessible;
    it->accessible = 1;
    start += it->bytes;
  }
  return SUCCESS;
}
#endif

int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) {
  (void)stream;
  BEGIN("cuMemcpyDtoDAsync");
  NEED_CONTEXT("cuMemcpyDtoDAsync");
  NEED(bytes > 0 && readable(from, bytes) && readable(to, bytes), "a copy of memory that cannot be accessed");
  memmove(at(to), at(from), bytes);
  return SUCCESS;
}

int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void* stream) {
  (void)stream;
  BEGIN("cuMemsetD8Async");
  NEED_CONTEXT("cuMemsetD8Async");
  NEED(bytes > 0 && readable(to, bytes), "memory set that cannot be accessed");
  memset(at(to), value, bytes);
  return SUCCESS;
}

// The one module that is loaded here holds the one kernel that moves pages, and that is what a launch does.
static int module, function;

int cuModuleLoadData(void** loaded, const void* image) {
  BEGIN("cuModuleLoadData");
  NEED_CONTEXT("cuModuleLoadData");
  NEED(strstr(image, ".entry move_pages(") != NULL, "a module without the kernel");
  *loaded = &module;
  return SUCCESS;
}

int cuModuleUnload(void* loaded) {
  BEGIN("cuModuleUnload");
  NEED_CONTEXT("cuModuleUnload");
  NEED(loaded == &module, "a module that was not loaded");
  return SUCCESS;
}

int cuModuleGetFunction(void** found, void* loaded, const char* name) {
  BEGIN("cuModuleGetFunction");
  NEED_CONTEXT("cuModuleGetFunction");
  NEED(loaded == &module && strcmp(name, "move_pages") == 0, "a function that is not in the module");
  *found = &function;
  return SUCCESS;
}

int cuLaunchKernel(void* launched, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** arguments,
                   void** extra) {
  (void)stream;
  BEGIN("cuLaunchKernel");
  NEED_CONTEXT("cuLaunchKernel");
  NEED(launched == &function && extra == NULL && shared_bytes == 0, "a launch of another kernel");
  NEED(grid_x > 0 && grid_y > 0 && grid_y <= 128 && grid_z == 1, "a grid that cannot be");
  NEED(block_x > 0 && block_x <= 1024 && block_y == 1 && block_z == 1, "a block that cannot be");
  const Address(*pairs)[2] = arguments[0];
  const size_t bytes = *(const unsigned long long*)arguments[1];
  NEED(bytes > 0 && bytes % 16 == 0, "bytes that are not moved 16 at a time");
  char* kept = malloc(bytes);
  for (unsigned i = 0; i < grid_y; ++i) {
    const Address to = pairs[i][0], from = pairs[i][1] & ~1ull;
    NEED(to != from && to % 16 == 0 && from % 16 == 0, "a page that is moved to itself, or lies askew");
    NEED(readable(from, bytes) && readable(to, bytes), "memory moved that cannot be accessed");
    memcpy(kept, at(to), bytes);
    memcpy(at(to), at(from), bytes);
    if (pairs[i][1] & 1) memcpy(at(from), kept, bytes);
  }
  free(kept);
  return SUCCESS;
}

// ---- for the tests

// How often an entry point was called.
long fake_cuda_calls(const char* name) {
  for (int i = 0; i < KINDS; ++i)
    if (strcmp(kinds[i].name, name) == 0) return kinds[i].calls;
  return -1;
}

// Lets the call after so many successful ones return this code, once. 0, or -1 if there is no such entry point.
int fake_cuda_fail(const char* name, long successes, int code) {
  for (int i = 0; i < KINDS; ++i)
    if (strcmp(kinds[i].name, name) == 0) {
      kinds[i].successes_left = successes;
      kinds[i].code = code;
      return 0;
    }
  return -1;
}

void fake_cuda_clear_failures(void) {
  for (int i = 0; i < KINDS; ++i) kinds[i].successes_left = -1;
  memory_left = -1;
}

// The device has memory for so many more handles, and for those that are released.
void fake_cuda_limit_memory(long handles_left) { memory_left = handles_left; }

// Lets every call of this kind wait, but no longer than 40 seconds, until no kind is held: NULL.
void fake_cuda_hold(const char* name) {
  held = NULL;
  let_through = 0;
  for (int i = 0; name != NULL && i < KINDS; ++i)
    if (strcmp(kinds[i].name, name) == 0) held = &kinds[i];
}

int fake_cuda_waiting(void) { return waiting; }

// Lets so many calls of the kind that is held through, the one that waits first.
void fake_cuda_let_through(int calls) { let_through = calls; }

// Lets every call wait for some time up to this, in microseconds.
void fake_cuda_delay(unsigned most) { delay = most; }

// Whether calls of the calling thread go on at once, whatever is held or delayed.
void fake_cuda_exempt(int value) { is_exempt = value; }

// What exists now.
int fake_cuda_count(const char* what) {
  int count = 0;
  if (strcmp(what, "mappings") == 0) return mapping_count;
  if (strcmp(what, "reservations") == 0) return reservation_count;
  if (strcmp(what, "contexts") == 0) return retained[0] + retained[1];
  if (strcmp(what, "pushed contexts") == 0) return context_depth;
  const int rdma = strcmp(what, "rdma handles") == 0, exportable = strcmp(what, "exportable handles") == 0;
  for (int i = 0; i < handle_count; ++i)
    count += handles[i].created && (!rdma || handles[i].rdma) && (!exportable || handles[i].exportable);
  return count;
}

// The first rule that was broken, or "".
const char* fake_cuda_complaint(void) { return complaint; }

// What the devices support: an attribute of CUdevice_attribute.
void fake_cuda_support(int attribute, int value) { supported[attribute] = value; }

// Forgets calls, failures and complaints.
void fake_cuda_reset(void) {
  for (int i = 0; i < KINDS; ++i) {
    kinds[i].calls = 0;
    kinds[i].successes_left = -1;
  }
  fake_cuda_hold(NULL);
  delay = 0;
  complaint[0] = '\0';
  memset(supported, 0, sizeof supported);
  supported[VIRTUAL_MEMORY] = 1;
  memory_left = -1;
  held = NULL;
}
