#include "segmenter.h"

#include <stdexcept>

#include "ovsdino/upsample_argmax.h"

namespace ovsdino::edge {
namespace {

#ifdef OVSDINO_WITH_TENSORRT
// Whether `sm` is one of the comma-separated targets.
bool holds(const std::string& targets, const std::string& sm) {
  return ("," + targets + ",").find("," + sm + ",") != std::string::npos;
}

void check_machine(const Sidecar& sidecar, int device) {
  // "10.3.0.26" and "10.3.0" are one release
  if ((sidecar.version + ".").compare(0, tensorrt_version().size() + 1, tensorrt_version() + ".") != 0) {
    throw std::runtime_error(sidecar.file + ": built by TensorRT " + sidecar.version + ", this machine has " +
                             tensorrt_version() + "; build the engine here");
  }
  if (!holds(sidecar.target, device_sm(device))) {
    throw std::runtime_error(sidecar.file + ": built for " + sidecar.target + ", this device is " + device_sm(device) +
                             "; build the engine here");
  }
}
#endif

std::unique_ptr<Graph> open_graph(const std::string& path, const Sidecar& sidecar, const Options& options) {
  if (sidecar.input[0] != 1) throw std::runtime_error(path + ": exported for batches; export it with --batch 1");
  (void)options;  // not used in a build without a runtime
#ifdef OVSDINO_WITH_ONNXRUNTIME
  if (sidecar.backend == "onnx") {
    return make_onnxruntime_graph(read_checked(path, sidecar), sidecar, options.threads);
  }
#endif
#ifdef OVSDINO_WITH_TENSORRT
  if (sidecar.backend == OVSDINO_TENSORRT_BACKEND) {
    check_machine(sidecar, options.device);
    return make_tensorrt_graph(read_checked(path, sidecar), sidecar, options.device);
  }
#endif
  throw std::runtime_error(path + ": this program was built without a runtime for " + sidecar.backend +
                           "; configure it with -DOVSDINO_WITH_ONNXRUNTIME=ON or -DOVSDINO_WITH_TENSORRT=ON");
}

}  // namespace

Segmenter::Segmenter(const std::string& model_path, TextBank bank, const Options& options)
    : sidecar_(read_sidecar(model_path)), options_(options), bank_(std::move(bank)) {
  if (options.threads < 1 || options.threads > 1024) {
    throw std::runtime_error("threads is " + std::to_string(options.threads) + ": expected 1 to 1024");
  }
  check(bank_);
  graph_ = open_graph(model_path, sidecar_, options);
  graph_->set_text(bank_);
}

void Segmenter::set_bank(TextBank bank) {
  check(bank);
  graph_->set_text(bank);
  bank_ = std::move(bank);
}

void Segmenter::check(const TextBank& bank) const {
  check_bank(sidecar_, bank);
  if (!options_.background) return;
  if (!(*options_.background > 0.0f && *options_.background < 1.0f)) {
    throw std::runtime_error("background is " + std::to_string(*options_.background) + ": expected 0 to 1");
  }
  if (bank.names.size() < 2) throw std::runtime_error("background needs two classes or more");
}

std::vector<int32_t> label(const float* logits, int64_t classes, int64_t in_h, int64_t in_w, int64_t height,
                           int64_t width, std::optional<float> threshold, int threads) {
  std::vector<int32_t> labels(static_cast<size_t>(height * width));
  UpsampleArgmax op{};
  op.logits = logits;
  op.logits_dtype = DType::kFloat32;
  op.batch = 1, op.classes = classes, op.in_h = in_h, op.in_w = in_w;
  op.stride_b = classes * in_h * in_w, op.stride_k = in_h * in_w, op.stride_y = in_w, op.stride_x = 1;
  op.out_h = height, op.out_w = width;
  op.labels = labels.data();
  op.labels_dtype = DType::kInt32;
  op.has_threshold = threshold.has_value();
  op.threshold = threshold.value_or(0.0f);
  upsample_argmax_cpu(op, threads);
  return labels;
}

}  // namespace ovsdino::edge
