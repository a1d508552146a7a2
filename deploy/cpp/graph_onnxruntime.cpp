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

  void set_text(const TextBank& bank, bool partition) override {
    const bool competes = !partition && !bank.contrast.empty();
    std::vector<float> text = sidecar_.grouped ? bank.padded() : bank.text;
    std::vector<float> contrast = competes ? bank.contrast : std::vector<float>(static_cast<size_t>(bank.columns));
    const int64_t rows = static_cast<int64_t>(contrast.size()) / bank.columns;
    Value value = sidecar_.grouped
                      ? tensor(text, std::array<int64_t, 3>{bank.classes(), bank.most_words(), bank.columns})
                      : tensor(text, std::array<int64_t, 2>{bank.classes(), bank.columns});
    Value others = tensor(contrast, std::array<int64_t, 2>{rows, bank.columns});
    text_.swap(text);  // the buffers that the values point to move with their owners
    contrast_.swap(contrast);
    text_value_ = std::move(value), contrast_value_ = std::move(others);
    classes_ = bank.classes(), maps_ = bank.classes() + (competes ? 1 : 0);
  }

  Labels run(const Image& image, const Wish& wish) override {
    Labels result{image.height, image.width, {}, {}, {}};
    Stopwatch watch;
    preprocess(image, normalize_, sidecar_.input[2], sidecar_.input[3], image_.data());
    result.stages_ms.emplace_back("preprocess", watch.lap());
    const char* const inputs[] = {"image", "text", "contrast"};
    const char* const outputs[] = {"logits"};
    const OrtValue* const values[] = {image_value_.get(), text_value_.get(), contrast_value_.get()};
    const size_t count = sidecar_.grouped ? 3 : 2;
    OrtValue* out = nullptr;
    check(api().Run(session_.get(), nullptr, inputs, values, count, outputs, 1, &out), sidecar_.file);
    const Value logits(out);
    result.stages_ms.emplace_back("encode", watch.lap());
    const std::array<int64_t, 4> shape = shape_of(out);
    if (shape[0] != 1 || shape[1] != classes_ + (sidecar_.grouped ? 1 : 0)) {
      throw std::runtime_error(sidecar_.file + ": its logits have " + std::to_string(shape[1]) + " maps for " +
                               std::to_string(classes_) + " classes");
    }
    float* data = nullptr;
    check(api().GetTensorMutableData(out, reinterpret_cast<void**>(&data)), sidecar_.file);
    result.values = label(data, maps_, shape[2], shape[3], image.height, image.width, wish.threshold, threads_);
    if (wish.certainty) result.sure = sure_shares(data, classes_, shape[2] * shape[3], *wish.certainty);
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
  std::vector<float> image_, text_, contrast_;
  Value image_value_, text_value_, contrast_value_;
  int64_t classes_ = 0, maps_ = 0;
};

}  // namespace

std::unique_ptr<Graph> make_onnxruntime_graph(const std::vector<uint8_t>& data, const Sidecar& sidecar, int threads) {
  return std::make_unique<OnnxRuntimeGraph>(data, sidecar, threads);
}

}  // namespace ovsdino::edge
