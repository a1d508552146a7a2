// label(y, x) = argmax_k bilinear(logits_k)(y, x), half-pixel centres, smallest index wins a tie, NaN wins over
// numbers.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "ovsdino/types.h"

namespace ovsdino {

struct UpsampleArgmax {
  const void* logits;  // (batch, classes, in_h, in_w): float32, float16 or bfloat16
  DType logits_dtype;
  int64_t batch, classes, in_h, in_w;
  int64_t stride_b, stride_k, stride_y, stride_x;
  int64_t out_h, out_w;
  void* labels;  // (batch, out_h, out_w) contiguous: uint8, int16 or int32, wide enough for `classes`
  DType labels_dtype;
  float* confidence;  // (batch, out_h, out_w) contiguous: the largest softmax probability; or null
  bool has_threshold;
  float threshold;  // with has_threshold, pixels less sure than this get the label `classes`
};

// Throws std::invalid_argument for sizes below 1 or beyond what the kernels index, for labels too narrow for the
// classes, and for a null address.
inline void check_upsample_argmax(const UpsampleArgmax& op) {
  constexpr int64_t kMost = int64_t{1} << 30;  // a size; offsets are 64 bit
  constexpr int64_t kMostClasses = kMost / 16;
  if (op.batch < 0 || op.classes < 1 || op.in_h < 1 || op.in_w < 1 || op.out_h < 1 || op.out_w < 1) {
    throw std::invalid_argument("upsample_argmax: classes and sizes must be at least 1");
  }
  if (op.classes > kMostClasses || op.in_h > kMost || op.in_w > kMost || op.out_h > kMost || op.out_w > kMost) {
    throw std::invalid_argument("upsample_argmax: a size is beyond 2^30");
  }
  const int64_t widest = op.labels_dtype == DType::kUint8 ? 255 : op.labels_dtype == DType::kInt16 ? 32767 : kMost;
  if (op.classes > widest) throw std::invalid_argument("upsample_argmax: the labels' dtype is too narrow");
  if (op.batch > 0 && (!op.logits || !op.labels))
    throw std::invalid_argument("upsample_argmax: a tensor has no memory");
}

void upsample_argmax_cpu(const UpsampleArgmax& op, int threads);

// The body of the CUDA kernel, run cell by cell on the CPU: what tests compare without a GPU.
void upsample_argmax_host(const UpsampleArgmax& op);

void upsample_argmax_cuda(const UpsampleArgmax& op, void* stream);

}  // namespace ovsdino
