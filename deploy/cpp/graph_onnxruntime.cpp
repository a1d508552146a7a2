// The graph on the CPU through ONNX Runtime's C API, which is stable across releases.
#include <onnxruntime_c_api.h>

#include <array>
#include <stdexcept>

#include "preprocess.h"
#include "segmenter.h"
#include "stopwatch.h"

namespace ovsdino::edge {
namespace {

const OrtApi& api() {
  static const OrtApi* const found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (found == nullptr) {
    throw std::runtime_error(std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() +
                             " is older than the header this program was built with");
  }
  return *found;
}

void check(OrtStatus* status, const std::string& what) {
  if (status == nullptr) return;
  const std::string message = api().GetErrorMessage(status);
  api().ReleaseStatus(status);
  throw std::runtime_error(what + ": ONNX Runtime: " + message);
}

// Deleters for the objects of the C API.
template <typename T, void (*OrtApi::*kRelease)(T*)>
struct Release {
  void operator()(T* object) const { (api().*kRelease)(object); }
};
template <typename T, void (*OrtApi::*kRelease)(T*)>
using Owned = std::unique_ptr<T, Release<T, kRelease>>;
using Env = Owned<OrtEnv, &OrtApi::ReleaseEnv>;
using SessionOptions = Owned<OrtSessionOptions, &OrtApi::ReleaseSessionOptions>;
using Session = Owned<OrtSession, &OrtApi::ReleaseSession>;
using MemoryInfo = Owned<OrtMemoryInfo, &OrtApi::ReleaseMemoryInfo>;
using Value = Owned<OrtValue, &OrtApi::ReleaseValue>;
using TensorInfo = Owned<OrtTensorTypeAndShapeInfo, &OrtApi::ReleaseTensorTypeAndShapeInfo>;

class OnnxRuntimeGraph final : public Graph {
 public:
  OnnxRuntimeGraph(const std::vector<uint8_t>& data, const Sidecar& sidecar, int threads)
      : sidecar_(sidecar), normalize_(sidecar.mean, sidecar.std), threads_(threads) {
    OrtEnv* env = nullptr;
    check(api().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "ovsdino", &env), sidecar.file);
    env_.reset(env);
    OrtSessionOptions* options = nullptr;
    check(api().CreateSessionOptions(&options), sidecar.file);
    const SessionOptions owned(options);
    check(api().SetIntraOpNumThreads(options, threads), sidecar.file);
    check(api().SetInterOpNumThreads(options, 1), sidecar.file);
    // As ovsdino/edge/onnx_graph.py, which gives the reason.
    check(api().AddSessionConfigEntry(options, "session.intra_op.allow_spinning", "0"), sidecar.file);
    OrtSession* session = nullptr;
    check(api().CreateSessionFromArray(env, data.data(), data.size(), options, &session), sidecar.file);
    session_.reset(session);
    OrtMemoryInfo* memory = nullptr;
    check(api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), sidecar.file);
    memory_.reset(memory);
    image_.resize(static_cast<size_t>(3 * sidecar.input[2] * sidecar.input[3]));
    image_value_ = tensor(image_, sidecar.input);
  }

  void set_text(const TextBank& bank) override {
    std::vector<float> text = bank.text;
    Value value = tensor(text, std::array<int64_t, 2>{static_cast<int64_t>(bank.names.size()), bank.columns});
    text_.swap(text);  // the buffer that `value` points to moves with its owner
    text_value_ = std::move(value);
  }

  Labels run(const Image& image, std::optional<float> threshold) override {
    Labels result{image.height, image.width, {}, {}};
    Stopwatch watch;
    preprocess(image, normalize_, sidecar_.input[2], sidecar_.input[3], image_.data());
    result.stages_ms.emplace_back("preprocess", watch.lap());
    const char* const inputs[] = {"image", "text"};
    const char* const outputs[] = {"logits"};
    const OrtValue* const values[] = {image_value_.get(), text_value_.get()};
    OrtValue* out = nullptr;
    check(api().Run(session_.get(), nullptr, inputs, values, 2, outputs, 1, &out), sidecar_.file);
    const Value logits(out);
    result.stages_ms.emplace_back("encode", watch.lap());
    const std::array<int64_t, 4> shape = shape_of(out);
    float* data = nullptr;
    check(api().GetTensorMutableData(out, reinterpret_cast<void**>(&data)), sidecar_.file);
    result.values = label(data, shape[1], shape[2], shape[3], image.height, image.width, threshold, threads_);
    result.stages_ms.emplace_back("postprocess", watch.lap());
    return result;
  }

 private:
  template <size_t kRank>
  Value tensor(std::vector<float>& data, const std::array<int64_t, kRank>& shape) const {
    OrtValue* value = nullptr;
    check(api().CreateTensorWithDataAsOrtValue(memory_.get(), data.data(), data.size() * sizeof(float), shape.data(),
                                               kRank, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value),
          sidecar_.file);
    return Value(value);
  }

  std::array<int64_t, 4> shape_of(const OrtValue* value) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api().GetTensorTypeAndShape(value, &info), sidecar_.file);
    const TensorInfo owned(info);
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    check(api().GetTensorElementType(info, &type), sidecar_.file);
    size_t rank = 0;
    check(api().GetDimensionsCount(info, &rank), sidecar_.file);
    std::array<int64_t, 4> shape{};
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || rank != shape.size()) {
      throw std::runtime_error(sidecar_.file + ": its logits are not (1, K, h, w) float32");
    }
    check(api().GetDimensions(info, shape.data(), shape.size()), sidecar_.file);
    return shape;
  }

  const Sidecar sidecar_;
  const Normalize normalize_;
  const int threads_;
  Env env_;
  Session session_;
  MemoryInfo memory_;
  std::vector<float> image_, text_;
  Value image_value_, text_value_;
};

}  // namespace

std::unique_ptr<Graph> make_onnxruntime_graph(const std::vector<uint8_t>& data, const Sidecar& sidecar, int threads) {
  return std::make_unique<OnnxRuntimeGraph>(data, sidecar, threads);
}

}  // namespace ovsdino::edge
