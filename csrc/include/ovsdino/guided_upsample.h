// out_ik = sum_j w_ij logits_jk with w_ij = softmax_j(-beta |hi_i - lo_j|^2 - |pos_i - pos_j|^2): i a fine pixel, j the
// 5x5 coarse cells around the one it lies in, those outside the grid left out, positions in coarse cells.
#pragma once

#include <cstdint>

#include "ovsdino/types.h"

namespace ovsdino {

struct GuidedUpsample {
  // A (batch, channels, rows, columns) tensor: float32, float16 or bfloat16, any strides.
  struct View {
    const void* data;
    DType dtype;
    int64_t stride_b, stride_c, stride_y, stride_x;
  };
  View logits;              // (batch, classes, h, w)
  View guide_lo, guide_hi;  // (batch, channels, h, w) and (batch, channels, scale * h, scale * w)
  int64_t batch, classes, channels, h, w, scale;
  const float* beta;  // one number, where the kernel runs
  void* out;          // (batch, classes, scale * h, scale * w) contiguous, the dtype of logits
};

struct GuidedUpsampleBackward {
  GuidedUpsample forward;     // `out` is not read
  GuidedUpsample::View grad;  // of out
  // Contiguous, in the shape and dtype of what they are the gradient of.
  void *grad_logits, *grad_guide_lo, *grad_guide_hi;
  float* grad_beta;  // one number
};

void guided_upsample_cpu(const GuidedUpsample& op, int threads);

void guided_upsample_backward_cpu(const GuidedUpsampleBackward& op, int threads);

}  // namespace ovsdino
