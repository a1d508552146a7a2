// label(y, x) = argmax_k bilinear(logits_k)(y, x), half-pixel centres, smallest index wins a tie, NaN wins over
// numbers.
#pragma once

#include <cstdint>

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

void upsample_argmax_cpu(const UpsampleArgmax& op, int threads);

// The body of the CUDA kernel, run cell by cell on the CPU: what tests compare without a GPU.
void upsample_argmax_host(const UpsampleArgmax& op);

void upsample_argmax_cuda(const UpsampleArgmax& op, void* stream);

}  // namespace ovsdino
