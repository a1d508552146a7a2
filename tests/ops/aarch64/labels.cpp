// Labels and confidence of seeded frames, written to a file: what two processors are compared on. Every frame goes the
// way of the runtime on a CPU: pixels are resized and normalized, a fixed linear map of them stands for the network,
// and the scores are brought to the frame's size.
//   labels FILE ISA
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "isa.h"
#include "ovsdino/preprocess.h"
#include "ovsdino/upsample_argmax.h"

namespace {

struct Case {
  int64_t frame_h, frame_w, in_h, in_w, stride, classes;
  ovsdino::PixelFormat format;
};

// 1.5 million pixels: camera frames to nano's size in RGB and NV12, many classes, and odd sizes.
constexpr Case kCases[] = {
    {720, 1280, 352, 464, 4, 19, ovsdino::PixelFormat::kRgb},
    {480, 640, 288, 384, 4, 12, ovsdino::PixelFormat::kNv12},
    {360, 480, 352, 464, 4, 150, ovsdino::PixelFormat::kRgb},
    {331, 517, 288, 384, 4, 3, ovsdino::PixelFormat::kRgb},
};

// splitmix64: the same numbers on every machine.
uint64_t next(uint64_t* state) {
  uint64_t z = (*state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Blocks of color with noise: edges and flat parts, as a street has.
std::vector<uint8_t> frame(const Case& one, uint64_t* state) {
  const bool planar = one.format == ovsdino::PixelFormat::kNv12;
  const int64_t rows = planar ? one.frame_h * 3 / 2 : one.frame_h, columns = planar ? one.frame_w : 3 * one.frame_w;
  std::vector<uint8_t> blocks(32 * 128), pixels(static_cast<size_t>(rows * columns));
  for (auto& block : blocks) block = static_cast<uint8_t>(next(state) % 224);
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t x = 0; x < columns; ++x) {
      const int64_t block = (y * 32 / rows) * 128 + x * 128 / columns;
      pixels[static_cast<size_t>(y * columns + x)] =
          static_cast<uint8_t>(blocks[static_cast<size_t>(block)] + next(state) % 32);
    }
  }
  return pixels;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::FILE* file = std::fopen(argv[1], "wb");
  if (!file) return 2;
  ovsdino::set_isa(argv[2]);
  uint64_t state = 1;
  int64_t total = 0;
  for (const Case& one : kCases) {
    const std::vector<uint8_t> pixels = frame(one, &state);
    const bool planar = one.format == ovsdino::PixelFormat::kNv12;
    std::vector<float> image(static_cast<size_t>(3 * one.in_h * one.in_w));
    ovsdino::Preprocess pre{};
    pre.image = pixels.data(), pre.format = one.format, pre.batch = 1, pre.in_h = one.frame_h, pre.in_w = one.frame_w;
    pre.stride_b = static_cast<int64_t>(pixels.size()), pre.stride_y = planar ? one.frame_w : 3 * one.frame_w;
    pre.stride_x = planar ? 1 : 3, pre.stride_c = planar ? 0 : 1;
    pre.out_h = one.in_h, pre.out_w = one.in_w, pre.out = image.data(), pre.out_dtype = ovsdino::DType::kFloat32;
    for (int c = 0; c < 3; ++c) pre.gain[c] = 1 / 127.5f, pre.shift[c] = -1;
    ovsdino::preprocess_host(pre);

    const int64_t h = one.in_h / one.stride, w = one.in_w / one.stride;
    std::vector<float> logits(static_cast<size_t>(one.classes * h * w));
    for (int64_t k = 0; k < one.classes; ++k) {
      float weight[4];
      for (float& value : weight) value = static_cast<float>(next(&state) >> 40) / 8388608.0f - 1.0f;
      for (int64_t y = 0; y < h; ++y) {
        for (int64_t x = 0; x < w; ++x) {
          double score = weight[3];
          for (int64_t c = 0; c < 3; ++c) {
            score += static_cast<double>(weight[c]) *
                     image[static_cast<size_t>((c * one.in_h + y * one.stride) * one.in_w + x * one.stride)];
          }
          logits[static_cast<size_t>((k * h + y) * w + x)] = static_cast<float>(8 * score);
        }
      }
    }
    std::vector<uint8_t> labels(static_cast<size_t>(one.frame_h * one.frame_w));
    std::vector<float> confidence(labels.size());
    ovsdino::UpsampleArgmax up{};
    up.logits = logits.data(), up.logits_dtype = ovsdino::DType::kFloat32, up.batch = 1, up.classes = one.classes;
    up.in_h = h, up.in_w = w, up.out_h = one.frame_h, up.out_w = one.frame_w;
    up.stride_b = one.classes * h * w, up.stride_k = h * w, up.stride_y = w, up.stride_x = 1;
    up.labels = labels.data(), up.labels_dtype = ovsdino::DType::kUint8, up.confidence = confidence.data();
    ovsdino::upsample_argmax_cpu(up, 1);
    std::vector<uint8_t> alone(labels.size());  // without confidence, the kernel skips classes that cannot win
    up.labels = alone.data(), up.confidence = nullptr;
    ovsdino::upsample_argmax_cpu(up, 1);
    if (alone != labels) return 3;
    std::fwrite(labels.data(), 1, labels.size(), file);
    total += static_cast<int64_t>(labels.size());
    double sum = 0;
    for (const float value : confidence) sum += value;
    std::printf("%ldx%ld, %ld classes: mean confidence %.6f\n", static_cast<long>(one.frame_h),
                static_cast<long>(one.frame_w), static_cast<long>(one.classes),
                sum / static_cast<double>(labels.size()));
  }
  std::printf("%ld pixels\n", static_cast<long>(total));
  return std::fclose(file) == 0 ? 0 : 2;
}
