// An exported model with a vocabulary: an image in, a label for each pixel out. The C++ twin of
// ovsdino.edge.EdgeSegmenter, with the same checks in the same order and, on the CPU, the same labels.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bank.h"
#include "files.h"

namespace ovsdino::edge {

struct Labels {
  int64_t height = 0, width = 0;
  std::vector<int32_t> values;                            // (height, width): index of the name, K for background
  std::vector<std::pair<std::string, double>> stages_ms;  // preprocess, encode, postprocess
  std::vector<double> sure;                               // K: see sure_shares; empty where nobody asked
};

// Options of one image.
struct Wish {
  std::optional<float> threshold;   // pixels less certain than this get the label after the last map's
  std::optional<double> certainty;  // also give sure_shares at this
};

// A graph on its device. Implemented in graph_onnxruntime.cpp and graph_tensorrt.cpp.
class Graph {
 public:
  virtual ~Graph() = default;
  // With `partition` the bank's contrast rows are left out, and so is their map.
  virtual void set_text(const TextBank& bank, bool partition) = 0;
  virtual Labels run(const Image& image, const Wish& wish) = 0;
};

// The defaults are those of ovsdino/vocabulary.py.
struct Options {
  int threads = 1;                  // of the CPU
  std::optional<float> background;  // pixels less certain than this get the label K
  bool partition = false;           // every pixel gets a word, even where the bank has contrast rows
  double least_share = 1e-3;        // of the image that a word must cover to be found
  double least_certainty = 0.9;     // against none of the words, that its surest pixels must reach; 0 asks for nothing
  int device = 0;                   // index of the CUDA device
};

class Segmenter {
 public:
  // Throws std::runtime_error with one line: a file is missing, changed, damaged or for another model, device or
  // version, a number is out of range, or this build has no runtime for it.
  Segmenter(const std::string& model_path, TextBank bank, const Options& options);

  // Swaps the vocabulary; a refused bank leaves the old one in use.
  void set_bank(TextBank bank);

  // Pixels of none of the words, and of words that are not found, have the label K.
  Labels segment(const Image& image);

  // Whether the bank in use leaves pixels without a word.
  bool competes() const { return !options_.partition && !bank_.contrast.empty(); }

  // How many values a label can have: the words, and background where there can be any.
  int64_t label_count() const { return bank_.classes() + (options_.background || competes() ? 1 : 0); }

  const TextBank& bank() const { return bank_; }

 private:
  void check(const TextBank& bank) const;

  Sidecar sidecar_;
  Options options_;
  TextBank bank_;
  std::unique_ptr<Graph> graph_;
};

// The labels of logits (classes, in_h, in_w) by the kernel of csrc on the CPU.
std::vector<int32_t> label(const float* logits, int64_t classes, int64_t in_h, int64_t in_w, int64_t height,
                           int64_t width, std::optional<float> threshold, int threads);

// The share of the grid on which each word has the largest of (classes + 1, cells) logits and is this certain against
// the contrast, the last map: `sure_shares` of ovsdino/edge/labels.py.
std::vector<double> sure_shares(const float* logits, int64_t classes, int64_t cells, double certainty);

// Turns labels above K into K, and so those of words that are not found: `leave_out_unfound` of ovsdino/edge/labels.py.
void leave_out_unfound(std::vector<int32_t>& labels, int64_t classes, double least_share,
                       const std::vector<double>& sure);

#ifdef OVSDINO_WITH_ONNXRUNTIME
std::unique_ptr<Graph> make_onnxruntime_graph(const std::vector<uint8_t>& data, const Sidecar& sidecar, int threads);
#endif

#ifdef OVSDINO_WITH_TENSORRT
// The versions of this machine, for comparison with the sidecar: "10.3.0" and "sm87".
std::string tensorrt_version();
std::string device_sm(int device);
std::unique_ptr<Graph> make_tensorrt_graph(const std::vector<uint8_t>& data, const Sidecar& sidecar, int device);
#endif

}  // namespace ovsdino::edge
