// A CUDA runtime and driver whose kernels do nothing, for tests without a GPU.
//
// Preloaded, it makes torch believe in one H200. Real are torch's dispatch, its checks of devices, its caching
// allocator, streams, `torch.cuda.set_sync_debug_mode`, fused optimizers and Lightning. Memory of the device is memory
// of the host that is mapped on demand, so that 140 GB can be allocated. What kernels should have written is garbage:
// the library tells which kernels start, how much memory they need and when the host waits, never what they compute.
//
// Functions of CUDA's libraries that are not defined here return 0 (success); `stub_library.py` writes these, and lets
// those that start kernels call `cuda_stub_launch`.

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr size_t MEMORY = 150'000'000'000;
constexpr int MULTIPROCESSORS = 132, SHARED_MEMORY = 232'448;

std::atomic<unsigned long long> launches{0};
std::atomic<unsigned long long> handles{4096};
std::mutex guard;

std::map<char*, size_t>& blocks() {
  static auto* all = new std::map<char*, size_t>();  // never destroyed: torch frees memory at exit
  return *all;
}

cudaError_t ok() { return cudaSuccess; }

cudaError_t launch() {
  ++launches;
  return cudaSuccess;
}

template <typename Handle>
cudaError_t make(Handle* handle) {
  *handle = reinterpret_cast<Handle>(handles += 8);
  return cudaSuccess;
}

bool on_device(const void* pointer) {
  std::lock_guard<std::mutex> lock(guard);
  auto* address = static_cast<char*>(const_cast<void*>(pointer));
  auto next = blocks().upper_bound(address);
  if (next == blocks().begin()) return false;
  auto block = std::prev(next);
  return address < block->first + block->second;
}

int attribute(cudaDeviceAttr name) {
  switch (name) {
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49'152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return SHARED_MEMORY;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMultiProcessorCount: return MULTIPROCESSORS;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrComputeCapabilityMinor: return 0;
    case cudaDevAttrMaxGridDimX: return 2'147'483'647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return 65'535;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65'536;
    case cudaDevAttrL2CacheSize: return 62'914'560;
    default: return 1;
  }
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
thread_local Configuration configuration;
thread_local int current_device = 0;

}  // namespace

extern "C" {

// ---- counting -------------------------------------------------------------------------------------------------------

unsigned long long cuda_stub_launches() { return launches; }
int cuda_stub_launch() { return launch(); }

// ---- kernels --------------------------------------------------------------------------------------------------------

void** __cudaRegisterFatBinary(void*) {
  static void* handle[4];
  return handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return launch(); }
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) { return launch(); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) { return launch(); }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = 49'152;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

// ---- the device -----------------------------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "H200 whose kernels do nothing");
  properties->totalGlobalMem = MEMORY;
  properties->sharedMemPerBlock = 49'152;
  properties->sharedMemPerMultiprocessor = properties->sharedMemPerBlockOptin = SHARED_MEMORY;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65'536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 2'147'483'647;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65'535;
  properties->totalConstMem = 65'536;
  properties->major = 9;
  properties->textureAlignment = 512;
  properties->multiProcessorCount = MULTIPROCESSORS;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->l2CacheSize = 62'914'560;
  properties->concurrentKernels = properties->unifiedAddressing = properties->managedMemory = 1;
  properties->memoryPoolsSupported = properties->canMapHostMemory = 1;
  properties->memPitch = 2'147'483'647;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  *value = attribute(name);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int) {
  strncpy(id, "0000:01:00.0", length);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) { return make(pool); }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "error of the stub"; }
const char* cudaGetErrorName(cudaError_t) { return "stub"; }

// ---- memory ---------------------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  bytes = (bytes + 4095) / 4096 * 4096;
  void* block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED) return cudaErrorMemoryAllocation;
  std::lock_guard<std::mutex> lock(guard);
  blocks()[static_cast<char*>(block)] = bytes;
  *pointer = block;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  std::lock_guard<std::mutex> lock(guard);
  auto block = blocks().find(static_cast<char*>(pointer));
  if (block != blocks().end()) {
    munmap(pointer, block->second);
    blocks().erase(block);
  }
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }
cudaError_t cudaFreeHost(void* pointer) {
  free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *free_bytes = *total = MEMORY;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  memset(attributes, 0, sizeof *attributes);
  bool device = on_device(pointer);
  attributes->type = device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->devicePointer = device ? const_cast<void*>(pointer) : nullptr;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  memcpy(target, source, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  if (kind == cudaMemcpyDeviceToDevice) return launch();  // garbage stays garbage
  // Results are garbage; zeros are valid indices, and keep code that reads results on the host from going astray.
  if (kind == cudaMemcpyDeviceToHost) memset(target, 0, bytes);
  else memcpy(target, source, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void*, int, size_t) { return ok(); }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return launch(); }
cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return ok(); }
cudaError_t cudaGetSymbolAddress(void** pointer, const void*) {
  static char symbol[1 << 16];
  *pointer = symbol;
  return cudaSuccess;
}

// ---- streams and events ---------------------------------------------------------------------------------------------

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return make(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return make(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return make(stream); }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t*,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return ok(); }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return make(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return make(event); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}

// ---- the driver, for Triton and torch's own use ---------------------------------------------------------------------

int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int index) { return *device = index, 0; }
int cuDeviceGetAttribute(int* value, int name, int) { return *value = attribute(static_cast<cudaDeviceAttr>(name)), 0; }
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = reinterpret_cast<void*>(16), 0; }
int cuCtxGetCurrent(void** context) { return *context = reinterpret_cast<void*>(16), 0; }
int cuCtxGetDevice(int* device) { return *device = 0, 0; }
int cuCtxGetLimit(size_t* value, int) { return *value = 0, 0; }
int cuDriverGetVersion(int* version) { return *version = CUDART_VERSION, 0; }
int cuGetErrorString(int, const char** text) { return *text = "error of the stub", 0; }
int cuModuleLoadData(void** module, const void*) { return *module = reinterpret_cast<void*>(16), 0; }
int cuModuleGetFunction(void** function, void*, const char*) { return *function = reinterpret_cast<void*>(16), 0; }
int cuFuncGetAttribute(int* value, int name, void*) { return *value = name == 0 ? 1024 : 0, 0; }
int cuPointerGetAttribute(void* value, int, unsigned long long pointer) {
  *static_cast<unsigned long long*>(value) = pointer;
  return 0;
}
int cuStreamIsCapturing(void*, int* status) { return *status = 0, 0; }
int cuLaunchKernel() { return launch(); }
int cuLaunchKernelEx() { return launch(); }
int cuLaunchCooperativeKernel() { return launch(); }

int nothing(...) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(nothing);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// ---- cuBLAS and cuDNN -----------------------------------------------------------------------------------------------

int cublasCreate_v2(void** handle) { return *handle = malloc(64), 0; }
int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0, 0; }
int cublasGetMathMode(void*, int* mode) { return *mode = 0, 0; }
size_t cublasLtGetVersion() { return 130'000; }
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* found, int* count) {
  memset(found, 0, 96);
  return *count = 1, 0;
}

int cudnnCreate(void** handle) { return *handle = malloc(64), 0; }
size_t cudnnGetCudartVersion() { return CUDART_VERSION; }
const char* cudnnGetErrorString(int) { return "error of the stub"; }
#define DESCRIPTOR(name) \
  int name(void** descriptor) { return *descriptor = malloc(256), 0; }
DESCRIPTOR(cudnnCreateTensorDescriptor)
DESCRIPTOR(cudnnCreateFilterDescriptor)
DESCRIPTOR(cudnnCreateConvolutionDescriptor)
DESCRIPTOR(cudnnCreateActivationDescriptor)
DESCRIPTOR(cudnnCreatePoolingDescriptor)
DESCRIPTOR(cudnnCreateDropoutDescriptor)

struct Algorithm {  // cudnnConvolutionFwdAlgoPerf_t and its likes
  int algorithm, status;
  float time;
  size_t memory;
  int deterministic, math, reserved[3];
};
#define ALGORITHM(name)                                                                    \
  int name(void*, void*, void*, void*, void*, int, int* count, Algorithm* found) {         \
    return *found = {1, 0, 0, 0, 1, 3, {}}, *count = 1, 0;                                 \
  }
ALGORITHM(cudnnGetConvolutionForwardAlgorithm_v7)
ALGORITHM(cudnnGetConvolutionBackwardDataAlgorithm_v7)
ALGORITHM(cudnnGetConvolutionBackwardFilterAlgorithm_v7)
#define SEARCH(name)                                                                                    \
  int name(void*, void*, void*, void*, void*, void*, void*, void*, int, int* count, Algorithm* found) { \
    return *found = {1, 0, 0, 0, 1, 3, {}}, *count = 1, 0;                                              \
  }
SEARCH(cudnnFindConvolutionForwardAlgorithmEx)
SEARCH(cudnnFindConvolutionBackwardDataAlgorithmEx)
SEARCH(cudnnFindConvolutionBackwardFilterAlgorithmEx)
#define WORKSPACE(name) \
  int name(void*, void*, void*, void*, void*, int, size_t* bytes) { return *bytes = 0, 0; }
WORKSPACE(cudnnGetConvolutionForwardWorkspaceSize)
WORKSPACE(cudnnGetConvolutionBackwardDataWorkspaceSize)
WORKSPACE(cudnnGetConvolutionBackwardFilterWorkspaceSize)
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void*, int, int, void*, void*, void*, void*, void*,
                                                             size_t* bytes) {
  return *bytes = 0, 0;
}
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void*, int, int, void*, void*, void*, void*, void*, void*, void*,
                                                      size_t* bytes) {
  return *bytes = 0, 0;
}
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void*, int, int, void*, void*, size_t* bytes) {
  return *bytes = 0, 0;
}

}  // extern "C"
