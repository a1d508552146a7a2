// The engine on a GPU through TensorRT or TensorRT-RTX. One stream: copy in, preprocess, the engine as a CUDA graph,
// labels, copy out. The kernels are csrc's.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "ovsdino/preprocess.h"
#include "ovsdino/upsample_argmax.h"
#include "preprocess.h"
#include "segmenter.h"

namespace ovsdino::edge {
namespace {

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(code));
}

void require(bool done, const std::string& file, const char* what) {
  if (!done) throw std::runtime_error(file + ": TensorRT cannot " + what + "; its messages are above");
}

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", message);
  }
};

enum class Memory {
  kTwin,    // on the device and as much page-locked memory on the host
  kMapped,  // one piece for both sides, which is not copied: where the GPU shares the CPU's memory, as on a Jetson
  kDevice,  // on the device alone
};

// Grows, never shrinks.
class Buffer {
 public:
  explicit Buffer(Memory memory) : memory_(memory) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { free(); }

  void fit(size_t size) {
    if (size <= size_) return;
    free();
    if (memory_ == Memory::kMapped) {
      check(cudaHostAlloc(&host_, size, cudaHostAllocMapped), "cudaHostAlloc");
      check(cudaHostGetDevicePointer(&device_, host_, 0), "cudaHostGetDevicePointer");
    } else {
      check(cudaMalloc(&device_, size), "cudaMalloc");
      if (memory_ == Memory::kTwin) check(cudaMallocHost(&host_, size), "cudaMallocHost");
    }
    size_ = size;
  }

  void upload(const void* data, size_t size, cudaStream_t stream) {
    std::memcpy(host_, data, size);
    if (memory_ == Memory::kMapped) return;
    check(cudaMemcpyAsync(device_, host_, size, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
  }

  void download(size_t size, cudaStream_t stream) {
    if (memory_ == Memory::kMapped) return;
    check(cudaMemcpyAsync(host_, device_, size, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
  }

  void* device() const { return device_; }
  const void* host() const { return host_; }

 private:
  void free() noexcept {
    if (memory_ != Memory::kMapped) cudaFree(device_);
    cudaFreeHost(host_);
    device_ = host_ = nullptr;
    size_ = 0;
  }

  const Memory memory_;
  void* device_ = nullptr;
  void* host_ = nullptr;
  size_t size_ = 0;
};

// Of the buffers that both sides use.
Memory shared_memory(int device) {
  int integrated = 0;
  check(cudaDeviceGetAttribute(&integrated, cudaDevAttrIntegrated, device), "cudaDeviceGetAttribute");
  return integrated != 0 ? Memory::kMapped : Memory::kTwin;
}

nvinfer1::IExecutionContext* make_context(nvinfer1::ICudaEngine& engine) {
#ifdef TRT_MAJOR_RTX
  // By default shapes are compiled for in the background: the CUDA graph recorded at the first run would keep the slow
  // kernels that stand in until then.
  const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine.createRuntimeConfig());
  if (!config) return nullptr;
  config->setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
  return engine.createExecutionContext(config.get());
#else
  return engine.createExecutionContext();
#endif
}

class TensorRtGraph final : public Graph {
 public:
  TensorRtGraph(const std::vector<uint8_t>& data, const Sidecar& sidecar, int device)
      : sidecar_(sidecar),
        normalize_(sidecar.mean, sidecar.std),
        device_(device),
        frame_(shared_memory(device)),
        text_(shared_memory(device)),
        contrast_(shared_memory(device)),
        labels_(shared_memory(device)) {
    check(cudaSetDevice(device), "cudaSetDevice");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    for (cudaEvent_t& event : events_) check(cudaEventCreate(&event), "cudaEventCreate");
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    require(runtime_ != nullptr, sidecar.file, "start");
    engine_.reset(runtime_->deserializeCudaEngine(data.data(), data.size()));
    require(engine_ != nullptr, sidecar.file, "deserialize it");
    check_tensors();
    context_.reset(make_context(*engine_));
    require(context_ != nullptr, sidecar.file, "make a context");
    image_.fit(sizeof(float) * 3 * static_cast<size_t>(sidecar.input[2] * sidecar.input[3]));
  }

  TensorRtGraph(const TensorRtGraph&) = delete;
  TensorRtGraph& operator=(const TensorRtGraph&) = delete;

  ~TensorRtGraph() override {
    cudaSetDevice(device_);
    cudaStreamSynchronize(stream_);
    drop_capture();
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    context_.reset();
    engine_.reset();
    runtime_.reset();
    cudaStreamDestroy(stream_);
  }

  void set_text(const TextBank& bank, bool partition) override {
    check(cudaSetDevice(device_), "cudaSetDevice");
    const bool competes = !partition && !bank.contrast.empty();
    const int64_t classes = bank.classes();
    const std::vector<float> text = sidecar_.grouped ? bank.padded() : bank.text;
    text_.fit(text.size() * sizeof(float));
    text_.upload(text.data(), text.size() * sizeof(float), stream_);
    const nvinfer1::Dims4 image(1, 3, sidecar_.input[2], sidecar_.input[3]);
    require(context_->setInputShape("image", image), sidecar_.file, "take the image's shape");
    if (sidecar_.grouped) {
      const std::vector<float> none(static_cast<size_t>(bank.columns));
      const std::vector<float>& contrast = competes ? bank.contrast : none;
      contrast_.fit(contrast.size() * sizeof(float));
      contrast_.upload(contrast.data(), contrast.size() * sizeof(float), stream_);
      const nvinfer1::Dims3 words(classes, bank.most_words(), bank.columns);
      const nvinfer1::Dims2 rows(static_cast<int64_t>(contrast.size()) / bank.columns, bank.columns);
      require(context_->setInputShape("text", words) && context_->setInputShape("contrast", rows) &&
                  context_->setTensorAddress("contrast", contrast_.device()),
              sidecar_.file, "take the bank");
    } else {
      require(context_->setInputShape("text", nvinfer1::Dims2(classes, bank.columns)), sidecar_.file, "take the bank");
    }
    const nvinfer1::Dims shape = context_->getTensorShape("logits");
    planes_ = classes + (sidecar_.grouped ? 1 : 0);
    require(shape.nbDims == 4 && shape.d[0] == 1 && shape.d[1] == planes_, sidecar_.file, "tell the logits' shape");
    classes_ = classes, maps_ = classes + (competes ? 1 : 0), grid_h_ = shape.d[2], grid_w_ = shape.d[3];
    logits_.fit(logits_size());
    require(context_->setTensorAddress("image", image_.device()) &&
                context_->setTensorAddress("text", text_.device()) &&
                context_->setTensorAddress("logits", logits_.device()),
            sidecar_.file, "take an address");
    capture();
  }

  Labels run(const Image& image, const Wish& wish) override {
    check(cudaSetDevice(device_), "cudaSetDevice");
    const size_t pixels = static_cast<size_t>(image.height * image.width);
    frame_.fit(image.pixels.size());
    labels_.fit(pixels * sizeof(int32_t));
    check(cudaEventRecord(events_[0], stream_), "cudaEventRecord");
    frame_.upload(image.pixels.data(), image.pixels.size(), stream_);
    launch_preprocess(image);
    check(cudaEventRecord(events_[1], stream_), "cudaEventRecord");
    launch();
    check(cudaEventRecord(events_[2], stream_), "cudaEventRecord");
    launch_labels(image, wish.threshold);
    labels_.download(pixels * sizeof(int32_t), stream_);
    if (wish.certainty) logits_.download(logits_size(), stream_);
    check(cudaEventRecord(events_[3], stream_), "cudaEventRecord");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    Labels result{image.height, image.width, {}, {}, {}};
    const auto* values = static_cast<const int32_t*>(labels_.host());
    result.values.assign(values, values + pixels);
    if (wish.certainty) {
      const auto* logits = static_cast<const float*>(logits_.host());
      result.sure = sure_shares(logits, classes_, grid_h_ * grid_w_, *wish.certainty);
    }
    const char* const stages[] = {"preprocess", "encode", "postprocess"};
    for (int i = 0; i < 3; ++i) {
      float ms = 0.0f;
      check(cudaEventElapsedTime(&ms, events_[i], events_[i + 1]), "cudaEventElapsedTime");
      result.stages_ms.emplace_back(stages[i], ms);
    }
    return result;
  }

 private:
  void check_tensors() const {
    std::vector<std::string> expected = {"image", "logits", "text"};
    if (sidecar_.grouped) expected.insert(expected.begin(), "contrast");
    std::vector<std::string> found;
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      found.emplace_back(name);
      require(engine_->getTensorDataType(name) == nvinfer1::DataType::kFLOAT, sidecar_.file, "give float32 tensors");
    }
    std::sort(found.begin(), found.end());
    if (found != expected) throw std::runtime_error(sidecar_.file + ": its tensors are not those of its sidecar");
  }

  size_t logits_size() const { return sizeof(float) * static_cast<size_t>(planes_ * grid_h_ * grid_w_); }

  void launch_preprocess(const Image& image) const {
    Preprocess op{};
    op.image = static_cast<const uint8_t*>(frame_.device());
    op.format = image.nv12 ? PixelFormat::kNv12 : PixelFormat::kRgb;
    op.batch = 1, op.in_h = image.height, op.in_w = image.width;
    op.stride_b = static_cast<int64_t>(image.pixels.size());
    op.stride_x = image.nv12 ? 1 : 3, op.stride_y = op.stride_x * image.width, op.stride_c = image.nv12 ? 0 : 1;
    op.out_h = sidecar_.input[2], op.out_w = sidecar_.input[3];
    op.out = image_.device();
    op.out_dtype = DType::kFloat32;
    for (size_t c = 0; c < 3; ++c) op.gain[c] = normalize_.gain[c], op.shift[c] = normalize_.shift[c];
    preprocess_cuda(op, stream_);
  }

  void launch_labels(const Image& image, std::optional<float> threshold) const {
    UpsampleArgmax op{};
    op.logits = logits_.device();
    op.logits_dtype = DType::kFloat32;
    op.batch = 1, op.classes = maps_, op.in_h = grid_h_, op.in_w = grid_w_;
    op.stride_b = planes_ * grid_h_ * grid_w_, op.stride_k = grid_h_ * grid_w_, op.stride_y = grid_w_, op.stride_x = 1;
    op.out_h = image.height, op.out_w = image.width;
    op.labels = labels_.device();
    op.labels_dtype = DType::kInt32;
    op.has_threshold = threshold.has_value();
    op.threshold = threshold.value_or(0.0f);
    upsample_argmax_cuda(op, stream_);
  }

  void launch() {
    if (captured_ != nullptr) {
      check(cudaGraphLaunch(captured_, stream_), "cudaGraphLaunch");
    } else {
      require(context_->enqueueV3(stream_), sidecar_.file, "run it");
    }
  }

  // Records the engine's launches as a CUDA graph; an engine that cannot be recorded is launched each time.
  void capture() {
    drop_capture();
    launch();  // the first run allocates and compiles, which must not happen during the recording
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    const bool recorded = context_->enqueueV3(stream_);
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    if (!recorded || ended != cudaSuccess || cudaGraphInstantiate(&captured_, graph, 0) != cudaSuccess) {
      captured_ = nullptr;
      cudaGetLastError();  // clears it
      std::fprintf(stderr, "note: %s: no CUDA graph, launching each time\n", sidecar_.file.c_str());
    }
    if (graph != nullptr) cudaGraphDestroy(graph);
  }

  void drop_capture() noexcept {
    if (captured_ != nullptr) cudaGraphExecDestroy(captured_);
    captured_ = nullptr;
  }

  const Sidecar sidecar_;
  const Normalize normalize_;
  const int device_;
  Logger logger_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t events_[4] = {};
  cudaGraphExec_t captured_ = nullptr;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Buffer frame_, text_, contrast_, labels_;
  Buffer image_{Memory::kDevice}, logits_{Memory::kTwin};
  int64_t classes_ = 0, maps_ = 0, planes_ = 0, grid_h_ = 0, grid_w_ = 0;  // maps that get labels, and all of them
};

}  // namespace

std::string tensorrt_version() {
  return std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) + "." +
         std::to_string(getInferLibPatchVersion());
}

std::string device_sm(int device) {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (device < 0 || device >= count) {
    throw std::runtime_error("device is " + std::to_string(device) + ": this machine shows " + std::to_string(count) +
                             " CUDA devices");
  }
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  return "sm" + std::to_string(major) + std::to_string(minor);
}

std::unique_ptr<Graph> make_tensorrt_graph(const std::vector<uint8_t>& data, const Sidecar& sidecar, int device) {
  return std::make_unique<TensorRtGraph>(data, sidecar, device);
}

}  // namespace ovsdino::edge
