// The names of TensorRT's runtime that deploy/cpp uses, written for the tests from its public reference: an engine of
// tests/support/tiny.py's formula on a device that the test plays. It shows that the program compiles and what it calls
// in which order; that the names are TensorRT's own is checked against NVIDIA's headers where there are any.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace nvinfer1 {

class Dims {
 public:
  static constexpr int32_t MAX_DIMS = 8;
  int32_t nbDims = 0;
  int64_t d[MAX_DIMS] = {};
};

class Dims2 : public Dims {
 public:
  Dims2(int64_t d0, int64_t d1) { nbDims = 2, d[0] = d0, d[1] = d1; }
};

class Dims3 : public Dims {
 public:
  Dims3(int64_t d0, int64_t d1, int64_t d2) { nbDims = 3, d[0] = d0, d[1] = d1, d[2] = d2; }
};

class Dims4 : public Dims {
 public:
  Dims4(int64_t d0, int64_t d1, int64_t d2, int64_t d3) { nbDims = 4, d[0] = d0, d[1] = d1, d[2] = d2, d[3] = d3; }
};

enum class DataType : int32_t { kFLOAT = 0 };

class ILogger {
 public:
  enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual void log(Severity severity, char const* message) noexcept = 0;
  virtual ~ILogger() = default;
};

class IExecutionContext {
 public:
  bool setInputShape(char const* name, Dims const& dims) noexcept;
  Dims getTensorShape(char const* name) const noexcept;
  bool setTensorAddress(char const* name, void* data) noexcept;
  bool enqueueV3(cudaStream_t stream) noexcept;

 private:
  Dims image_, text_;
  void *image_data_ = nullptr, *text_data_ = nullptr, *logits_data_ = nullptr;
};

#ifdef TRT_MAJOR_RTX
enum class DynamicShapesKernelSpecializationStrategy : int32_t { kLAZY = 0, kEAGER = 1 };

class IRuntimeConfig {
 public:
  bool setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy strategy) noexcept;
};
#endif

class ICudaEngine {
 public:
  int32_t getNbIOTensors() const noexcept;
  char const* getIOTensorName(int32_t index) const noexcept;
  DataType getTensorDataType(char const* name) const noexcept;
  IExecutionContext* createExecutionContext() noexcept;
#ifdef TRT_MAJOR_RTX
  IRuntimeConfig* createRuntimeConfig() noexcept;
  IExecutionContext* createExecutionContext(IRuntimeConfig* config) noexcept;
#endif
};

class IRuntime {
 public:
  ICudaEngine* deserializeCudaEngine(void const* blob, size_t size) noexcept;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1

extern "C" int32_t getInferLibMajorVersion() noexcept;
extern "C" int32_t getInferLibMinorVersion() noexcept;
extern "C" int32_t getInferLibPatchVersion() noexcept;
