// ovsdino_segment: an exported model, a text bank and an image in, a picture of labels out.
#include <cstdio>
#include <string>

#include "arguments.h"
#include "segmenter.h"
#include "stopwatch.h"

namespace {

using namespace ovsdino::edge;

constexpr const char* kUsage =
    "usage: ovsdino_segment --model FILE --bank FILE --image FILE --output FILE [options]\n"
    "  --model FILE       exported .onnx or engine; its sidecar FILE.json lies next to it\n"
    "  --bank FILE        text bank written by `ovsdino text`\n"
    "  --image FILE       binary PPM; with --size, the bytes of one raw frame\n"
    "  --output FILE      labels as a binary PGM: the index of the name, K for background\n"
    "  --size WxH         size of a raw frame\n"
    "  --format F         of a raw frame: rgb, by default, or nv12\n"
    "  --repeat N         segment N times, the times are those of the last; 1 by default\n";

int run(int count, char** values) {
  const Arguments given(count, values, {"--model", "--bank", "--image", "--output"},
                        {"--size", "--format", "--repeat"});
  const Options options = given.segmenter_options();
  const int64_t repeat = given.whole("--repeat", 1, 1, 1000000);
  const auto [width, height] = given.size();
  const bool nv12 = given.nv12("rgb");

  Segmenter segmenter(given.text("--model"), read_bank(given.text("--bank")), options);
  Stopwatch watch;
  const Image image = read_image(given.text("--image"), height, width, nv12);
  const double load = watch.lap();
  Labels labels;
  for (int64_t i = 0; i < repeat; ++i) labels = segmenter.segment(image);
  const std::string output = given.text("--output");
  write_labels(output, labels.values, labels.height, labels.width, segmenter.label_count());

  std::printf("%s: %lld x %lld\nload %.2f ms\n", output.c_str(), static_cast<long long>(labels.width),
              static_cast<long long>(labels.height), load);
  for (const auto& [stage, ms] : labels.stages_ms) std::printf("%s %.2f ms\n", stage.c_str(), ms);
  if (segmenter.competes()) {
    std::vector<bool> found(static_cast<size_t>(segmenter.label_count()));
    for (const int32_t label : labels.values) found[static_cast<size_t>(label)] = true;
    for (size_t k = 0; k < segmenter.bank().names.size(); ++k) {
      if (!found[k]) std::printf("not found: %s\n", segmenter.bank().names[k].c_str());
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** values) { return run_program(count, values, kUsage, run); }
