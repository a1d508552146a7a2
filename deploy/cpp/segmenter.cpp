#include "segmenter.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "ovsdino/upsample_argmax.h"

namespace ovsdino::edge {
namespace {

constexpr double kSureShare = 4e-4;  // SURE_SHARE of ovsdino/vocabulary.py

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
  for (const auto& [name, value] : {std::pair<const char*, double>{"least_share", options.least_share},
                                    std::pair<const char*, double>{"least_certainty", options.least_certainty}}) {
    if (!(value >= 0.0 && value < 1.0)) {
      throw std::runtime_error(std::string(name) + " is " + std::to_string(value) + ": expected 0 to below 1");
    }
  }
  check(bank_);
  graph_ = open_graph(model_path, sidecar_, options);
  graph_->set_text(bank_, options.partition);
}

void Segmenter::set_bank(TextBank bank) {
  check(bank);
  graph_->set_text(bank, options_.partition);
  bank_ = std::move(bank);
}

Labels Segmenter::segment(const Image& image) {
  Wish wish{options_.background, {}};
  if (competes() && options_.least_certainty > 0.0) wish.certainty = options_.least_certainty;
  Labels labels = graph_->run(image, wish);
  if (competes()) leave_out_unfound(labels.values, bank_.classes(), options_.least_share, labels.sure);
  return labels;
}

void Segmenter::check(const TextBank& bank) const {
  check_bank(sidecar_, bank, options_.partition);
  if (!options_.background) return;
  if (!(*options_.background > 0.0f && *options_.background < 1.0f)) {
    throw std::runtime_error("background is " + std::to_string(*options_.background) + ": expected 0 to 1");
  }
  if (bank.names.size() < 2 && (options_.partition || bank.contrast.empty())) {
    throw std::runtime_error("background needs two classes or more, or a bank with contrast rows");
  }
}

std::vector<double> sure_shares(const float* logits, int64_t classes, int64_t cells, double certainty) {
  const auto lead = static_cast<float>(certainty <= 0.5 ? 0.0 : std::log(certainty / (1.0 - certainty)));
  std::vector<int64_t> counts(static_cast<size_t>(classes) + 1);
  for (int64_t cell = 0; cell < cells; ++cell) {
    int64_t first = 0;
    for (int64_t k = 1; k <= classes; ++k) {
      if (logits[k * cells + cell] > logits[first * cells + cell]) first = k;
    }
    if (logits[first * cells + cell] - logits[classes * cells + cell] >= lead) ++counts[static_cast<size_t>(first)];
  }
  std::vector<double> shares;
  for (int64_t k = 0; k < classes; ++k) {
    shares.push_back(static_cast<double>(counts[static_cast<size_t>(k)]) / static_cast<double>(cells));
  }
  return shares;
}

void leave_out_unfound(std::vector<int32_t>& labels, int64_t classes, double least_share,
                       const std::vector<double>& sure) {
  const auto none = static_cast<int32_t>(classes);
  std::vector<int64_t> counts(static_cast<size_t>(classes) + 1);
  for (int32_t& label : labels) {
    label = std::min(label, none);
    ++counts[static_cast<size_t>(label)];
  }
  const double least = std::max(1.0, least_share * static_cast<double>(labels.size()));
  std::vector<int32_t> table(static_cast<size_t>(classes) + 1, none);
  for (int32_t k = 0; k < none; ++k) {
    const auto at = static_cast<size_t>(k);
    if (static_cast<double>(counts[at]) >= least && (sure.empty() || sure[at] >= kSureShare)) table[at] = k;
  }
  for (int32_t& label : labels) label = table[static_cast<size_t>(label)];
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
