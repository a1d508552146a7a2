// Compares the CPU kernels with the bodies of the CUDA kernels (two codes for one formula) on random data, without
// Python: for cross compilers, emulators and sanitizers. Prints one line and returns 0 if all agree.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "ovsdino/detail/number.h"
#include "ovsdino/mask_pool.h"
#include "ovsdino/upsample_argmax.h"

namespace {

using ovsdino::DType;

std::mt19937 generator(1);

std::vector<float> normal(size_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator);
  return values;
}

int64_t upsample_faults(int64_t classes, int64_t h, int64_t w, int64_t out_h, int64_t out_w, bool confidence) {
  const std::vector<float> logits = normal(static_cast<size_t>(2 * classes * h * w));
  std::vector<uint8_t> labels[2];
  std::vector<float> sure[2];
  ovsdino::UpsampleArgmax op{};
  op.logits = logits.data();
  op.batch = 2, op.classes = classes, op.in_h = h, op.in_w = w, op.out_h = out_h, op.out_w = out_w;
  op.stride_b = classes * h * w, op.stride_k = h * w, op.stride_y = w, op.stride_x = 1;
  op.labels_dtype = DType::kUint8;
  for (int run = 0; run < 2; ++run) {
    labels[run].resize(static_cast<size_t>(2 * out_h * out_w));
    sure[run].resize(labels[run].size());
    op.labels = labels[run].data();
    op.confidence = confidence ? sure[run].data() : nullptr;
    run == 0 ? ovsdino::upsample_argmax_cpu(op, 2) : ovsdino::upsample_argmax_host(op);
  }
  int64_t labels_differ = 0, faults = 0;
  for (size_t i = 0; i < labels[0].size(); ++i) {
    labels_differ += labels[0][i] != labels[1][i];
    faults += confidence && !(std::fabs(sure[0][i] - sure[1][i]) < 1e-5f);
  }
  // The two round differently, so a near tie may fall either way: one pixel in ten thousand is more than that.
  return faults + (labels_differ > static_cast<int64_t>(labels[0].size()) / 10000 ? labels_differ : 0);
}

int64_t pool_faults(int64_t tokens, int64_t channels, int64_t masks, DType dtype) {
  const std::vector<float> features = normal(static_cast<size_t>(tokens * channels));
  const bool soft = dtype == DType::kFloat32;
  const int64_t row = dtype == DType::kBits ? (tokens + 7) / 8 : tokens;
  std::vector<uint8_t> hard(static_cast<size_t>(masks * row));
  std::vector<float> weights(hard.size());
  for (size_t i = row; i < hard.size(); ++i) {  // the first mask stays empty
    hard[i] = generator() % 7 == 0 ? 255 : 0;
    weights[i] = hard[i] ? 0.25f + static_cast<float>(generator() % 8) : 0.0f;
  }
  std::vector<float> means[2], areas[2];
  ovsdino::MaskPool op{};
  op.features = features.data();
  op.batch = 1, op.tokens = tokens, op.channels = channels, op.features_stride_n = channels;
  op.masks = soft ? static_cast<const void*>(weights.data()) : hard.data();
  op.masks_dtype = dtype;
  op.mask_count = masks, op.masks_stride_m = row, op.masks_stride_n = 1;
  for (int run = 0; run < 2; ++run) {
    means[run].resize(static_cast<size_t>(masks * channels));
    areas[run].resize(static_cast<size_t>(masks));
    op.means = means[run].data();
    op.areas = areas[run].data();
    if (run == 1) ovsdino::mask_pool_host(op);
    if (run == 0 && !ovsdino::mask_pool_cpu(op, 1.0, 2)) return 1;
  }
  int64_t faults = areas[0] != areas[1];
  for (size_t i = 0; i < means[0].size(); ++i) faults += !(std::fabs(means[0][i] - means[1][i]) < 1e-5f);
  return faults;
}

float widened(uint16_t bits) { return ovsdino::to_float(ovsdino::Half{bits}); }

uint16_t narrowed(float value) {
  ovsdino::Half half;
  ovsdino::from_float(value, &half);
  return half.bits;
}

int64_t half_faults() {
  int64_t faults = 0;
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const bool nan = (bits & 0x7fffu) > 0x7c00u;
    const float value = widened(static_cast<uint16_t>(bits));
    faults += nan ? !std::isnan(value) : narrowed(value) != bits;
  }
  faults += widened(0x3c00) != 1.0f || widened(0x0001) != std::ldexp(1.0f, -24) || widened(0xfbff) != -65504.0f;
  faults += narrowed(65519.0f) != 0x7bff || narrowed(65520.0f) != 0x7c00;                  // half way up is infinity
  faults += narrowed(1.0f + std::ldexp(1.0f, -11)) != 0x3c00;                              // ties to even, down
  faults += narrowed(1.0f + 3 * std::ldexp(1.0f, -11)) != 0x3c02;                          // and up
  faults += narrowed(std::ldexp(1.0f, -25)) != 0 || narrowed(std::ldexp(3.0f, -25)) != 2;  // also below the normals
  return faults;
}

}  // namespace

int main() {
  int64_t faults = half_faults();
  for (const bool confidence : {false, true}) {
    faults += upsample_faults(1, 1, 1, 3, 5, confidence);
    faults += upsample_faults(19, 9, 37, 33, 130, confidence);
    faults += upsample_faults(150, 5, 11, 70, 160, confidence);
    faults += upsample_faults(7, 40, 33, 13, 20, confidence);
    faults += upsample_faults(33, 6, 17, 6, 17, confidence);
  }
  for (const DType dtype : {DType::kUint8, DType::kBits, DType::kFloat32}) {
    faults += pool_faults(97, 40, 5, dtype);
    faults += pool_faults(1025, 768, 33, dtype);
    faults += pool_faults(1, 3, 2, dtype);
  }
  std::printf("%lld faults\n", static_cast<long long>(faults));
  return faults != 0;
}
