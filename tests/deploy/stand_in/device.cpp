// A CUDA device and TensorRT played by this process: the device's memory is the host's, and a kernel is its twin on the
// host. The calls are written to standard error where STAND_IN_CALLS is set, an engine takes STAND_IN_MS milliseconds,
// and STAND_IN_INTEGRATED makes it a GPU that shares the CPU's memory.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "ovsdino/preprocess.h"
#include "ovsdino/upsample_argmax.h"

namespace {

constexpr int64_t kPatch = 4;
constexpr double kScale = 4.0;

cudaError_t told(const char* call) {
  if (std::getenv("STAND_IN_CALLS") != nullptr) std::fprintf(stderr, "call %s\n", call);
  return cudaSuccess;
}

// A graph is the engine that was launched while it was recorded.
bool recording = false;
nvinfer1::IExecutionContext* recorded = nullptr;

bool integrated() { return std::getenv("STAND_IN_INTEGRATED") != nullptr; }

bool is(const char* name, const char* other) { return std::strcmp(name, other) == 0; }

}  // namespace

extern "C" {

cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrIntegrated ? integrated() : attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 7;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaMalloc(void** memory, size_t size) { return *memory = std::malloc(size), told("malloc"); }
cudaError_t cudaMallocHost(void** memory, size_t size) { return *memory = std::malloc(size), told("malloc-host"); }
cudaError_t cudaHostAlloc(void** memory, size_t size, unsigned flags) {
  return *memory = std::malloc(size), told(flags == cudaHostAllocMapped ? "malloc-mapped" : "malloc-other");
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) { return *device = host, cudaSuccess; }
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaFreeHost(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t) {
  std::memcpy(to, from, size);
  return told(kind == cudaMemcpyHostToDevice ? "up" : "down");
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return told("synchronize"); }
cudaError_t cudaEventCreate(cudaEvent_t*) { return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 1.0f, cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return recording = true, cudaSuccess; }
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  recording = false;
  return *graph = reinterpret_cast<cudaGraph_t>(recorded), cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* launched, cudaGraph_t graph, unsigned long long) {
  return *launched = reinterpret_cast<cudaGraphExec_t>(graph), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  reinterpret_cast<nvinfer1::IExecutionContext*>(graph)->enqueueV3(stream);
  return told("launch");
}
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }

int32_t getInferLibMajorVersion() noexcept { return 10; }
int32_t getInferLibMinorVersion() noexcept { return 3; }
int32_t getInferLibPatchVersion() noexcept { return 0; }

}  // extern "C"

namespace ovsdino {

void preprocess_cuda(const Preprocess& op, void*) { preprocess_host(op); }
void upsample_argmax_cuda(const UpsampleArgmax& op, void*) { upsample_argmax_cpu(op, 1); }

}  // namespace ovsdino

namespace nvinfer1 {

bool IExecutionContext::setInputShape(char const* name, Dims const& dims) noexcept {
  (is(name, "image") ? image_ : text_) = dims;
  return true;
}

Dims IExecutionContext::getTensorShape(char const*) const noexcept {
  return Dims4(1, text_.d[0], image_.d[2] / kPatch, image_.d[3] / kPatch);
}

bool IExecutionContext::setTensorAddress(char const* name, void* data) noexcept {
  (is(name, "image") ? image_data_ : is(name, "text") ? text_data_ : logits_data_) = data;
  return true;
}

bool IExecutionContext::enqueueV3(cudaStream_t) noexcept {
  recorded = this;
  if (recording) return true;
  const char* const ms = std::getenv("STAND_IN_MS");
  if (ms != nullptr) std::this_thread::sleep_for(std::chrono::milliseconds(std::stoi(ms)));
  const int64_t height = image_.d[2], width = image_.d[3], columns = text_.d[1];
  const auto *image = static_cast<const float*>(image_data_), *text = static_cast<const float*>(text_data_);
  auto* logits = static_cast<float*>(logits_data_);
  for (int64_t k = 0; k < text_.d[0]; ++k) {
    for (int64_t y = 0; y < height / kPatch; ++y) {
      for (int64_t x = 0; x < width / kPatch; ++x) {
        double sum = 0.0;
        for (int64_t i = 0; i < columns * kPatch * kPatch; ++i) {
          const int64_t c = i / (kPatch * kPatch), row = kPatch * y + i / kPatch % kPatch,
                        column = kPatch * x + i % kPatch;
          sum += text[columns * k + c] * image[(c * height + row) * width + column] / (kPatch * kPatch);
        }
        *logits++ = static_cast<float>(kScale * sum);
      }
    }
  }
  return true;
}

int32_t ICudaEngine::getNbIOTensors() const noexcept { return 3; }
char const* ICudaEngine::getIOTensorName(int32_t index) const noexcept {
  static const char* const names[] = {"image", "text", "logits"};
  return names[index];
}
DataType ICudaEngine::getTensorDataType(char const*) const noexcept { return DataType::kFLOAT; }
IExecutionContext* ICudaEngine::createExecutionContext() noexcept { return new IExecutionContext; }
#ifdef TRT_MAJOR_RTX
bool IRuntimeConfig::setDynamicShapesKernelSpecializationStrategy(
    DynamicShapesKernelSpecializationStrategy strategy) noexcept {
  return strategy == DynamicShapesKernelSpecializationStrategy::kEAGER;
}
IRuntimeConfig* ICudaEngine::createRuntimeConfig() noexcept { return new IRuntimeConfig; }
IExecutionContext* ICudaEngine::createExecutionContext(IRuntimeConfig*) noexcept { return new IExecutionContext; }
#endif
ICudaEngine* IRuntime::deserializeCudaEngine(void const*, size_t) noexcept { return new ICudaEngine; }
IRuntime* createInferRuntime(ILogger&) noexcept { return new IRuntime; }

}  // namespace nvinfer1
