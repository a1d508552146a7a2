// out(c, y, x) = resize(image)(y, x, c) * gain(c) + shift(c): bilinear, half-pixel centres, in float32 and not rounded.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "ovsdino/types.h"

namespace ovsdino {

enum class PixelFormat : int32_t {
  kRgb,   // (batch, in_h, in_w, 3) uint8
  kNv12,  // (batch, in_h * 3 / 2, in_w) uint8: luma rows, then rows of (Cb, Cr); in_h and in_w even; BT.601, limited
};

struct Preprocess {
  const uint8_t* image;
  PixelFormat format;
  int64_t batch, in_h, in_w;
  int64_t stride_b, stride_y, stride_x, stride_c;  // kNv12: stride_x is 1, stride_c is not read
  int64_t out_h, out_w;
  void* out;  // (batch, 3, out_h, out_w) contiguous: float32, float16 or bfloat16
  DType out_dtype;
  float gain[3], shift[3];
  bool antialias;  // a triangle as wide as the scale where the image shrinks, as PIL and torch have it
};

// Throws std::invalid_argument for sizes below 1 or beyond what the kernels index, and for a null address.
inline void check_preprocess(const Preprocess& op) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (op.batch < 0 || op.in_h < 1 || op.in_w < 1 || op.out_h < 1 || op.out_w < 1) {
    throw std::invalid_argument("preprocess: sizes must be at least 1");
  }
  if (op.in_h > kMost || op.in_w > kMost || op.out_h > kMost || op.out_w > kMost) {
    throw std::invalid_argument("preprocess: a size is beyond 2^30");
  }
  if (op.batch > 0 && (!op.image || !op.out)) throw std::invalid_argument("preprocess: a tensor has no memory");
}

// The body of the CUDA kernel, run pixel by pixel on the CPU: what tests compare without a GPU.
void preprocess_host(const Preprocess& op);

void preprocess_cuda(const Preprocess& op, void* stream);

}  // namespace ovsdino
