// ovsdino_check: the parts that need no runtime, one at a time, for tests and to look into a file.
//   ovsdino_check bank FILE                                names and shape of a text bank
//   ovsdino_check sha256 FILE
//   ovsdino_check preprocess IMAGE.ppm H W OUT             the graph's input, (3, H, W) float32; mean 0.5, std 0.25
//   ovsdino_check nv12 FRAME H W OUT                       (H * 3 / 2, W) bytes of NV12 as (H, W, 3) of RGB
//   ovsdino_check labels LOGITS K h w H W OUT.pgm [T]      labels of (K, h, w) float32, background below T
//   ovsdino_check found LOGITS K h w H W OUT.pgm SHARE P   of (K, h, w), the contrast's map last: labels of found words
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

#include "preprocess.h"
#include "segmenter.h"

namespace {

using namespace ovsdino::edge;

int64_t size_of(const char* text) {
  char* end = nullptr;
  const long long value = std::strtoll(text, &end, 10);
  if (*end != '\0' || value < 1 || value > 65536) {
    throw std::runtime_error(std::string(text) + ": expected a size from 1 to 65536");
  }
  return value;
}

void bank(char** arguments) {
  const TextBank found = read_bank(arguments[0]);
  std::printf("%s %s (%zu, %lld)\n", found.model.c_str(), found.weights.c_str(), found.names.size(),
              static_cast<long long>(found.columns));
  for (const std::string& name : found.names) std::printf("%s\n", name.c_str());
  if (found.most_words() == 1 && found.contrast.empty()) return;
  std::printf("words");
  for (const int64_t count : found.words) std::printf(" %lld", static_cast<long long>(count));
  std::printf("\ncontrast %lld\npadded", static_cast<long long>(found.contrast_rows()));
  for (const float value : found.padded()) std::printf(" %.9g", static_cast<double>(value));
  std::printf("\n");
}

void print_sha256(char** arguments) { std::printf("%s\n", sha256(read_file(arguments[0], uint64_t{1} << 32)).c_str()); }

void write_input(char** arguments) {
  const int64_t height = size_of(arguments[1]), width = size_of(arguments[2]);
  std::vector<float> out(static_cast<size_t>(3 * height * width));
  preprocess(read_image(arguments[0]), Normalize({0.5, 0.5, 0.5}, {0.25, 0.25, 0.25}), height, width, out.data());
  write_file(arguments[3], "", out.data(), out.size() * sizeof(float));
}

void write_rgb(char** arguments) {
  const Image image = read_image(arguments[0], size_of(arguments[1]), size_of(arguments[2]), true);
  const Image rgb = to_rgb(image);
  write_file(arguments[3], "", rgb.pixels.data(), rgb.pixels.size());
}

struct Logits {
  int64_t sizes[5];  // K, h, w, H, W
  std::vector<float> values;
};

Logits read_logits(char** arguments) {
  Logits logits;
  int64_t* sizes = logits.sizes;
  for (int i = 0; i < 5; ++i) sizes[i] = size_of(arguments[1 + i]);
  const std::vector<uint8_t> bytes = read_file(arguments[0], uint64_t{1} << 32);
  if (bytes.size() != sizeof(float) * static_cast<uint64_t>(sizes[0] * sizes[1] * sizes[2])) {
    throw std::runtime_error(std::string(arguments[0]) + ": not (K, h, w) float32");
  }
  logits.values.resize(bytes.size() / sizeof(float));
  std::memcpy(logits.values.data(), bytes.data(), bytes.size());
  return logits;
}

void write_label_image(char** arguments, const char* threshold) {
  const auto [sizes, logits] = read_logits(arguments);
  const std::optional<float> limit = threshold ? std::optional<float>(std::strtof(threshold, nullptr)) : std::nullopt;
  const std::vector<int32_t> labels = label(logits.data(), sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], limit, 2);
  write_labels(arguments[6], labels, sizes[3], sizes[4], sizes[0] + (threshold ? 1 : 0));
}

void write_found(char** arguments) {
  const auto [sizes, logits] = read_logits(arguments);
  std::vector<int32_t> labels = label(logits.data(), sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], {}, 2);
  const std::vector<double> sure =
      sure_shares(logits.data(), sizes[0] - 1, sizes[1] * sizes[2], std::strtod(arguments[8], nullptr));
  leave_out_unfound(labels, sizes[0] - 1, std::strtod(arguments[7], nullptr), sure);
  write_labels(arguments[6], labels, sizes[3], sizes[4], sizes[0]);
}

}  // namespace

int main(int count, char** values) {
  const std::string command = count > 1 ? values[1] : "";
  try {
    if (command == "bank" && count == 3) {
      bank(values + 2);
    } else if (command == "sha256" && count == 3) {
      print_sha256(values + 2);
    } else if (command == "preprocess" && count == 6) {
      write_input(values + 2);
    } else if (command == "nv12" && count == 6) {
      write_rgb(values + 2);
    } else if (command == "labels" && (count == 9 || count == 10)) {
      write_label_image(values + 2, count == 10 ? values[9] : nullptr);
    } else if (command == "found" && count == 11) {
      write_found(values + 2);
    } else {
      throw std::runtime_error(
          "usage: ovsdino_check bank|sha256|preprocess|nv12|labels|found ...; see deploy/cpp/check.cpp");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", one_line(error.what()).c_str());
    return 2;
  }
  return 0;
}
