// out_ik = sum_j w_ij logits_jk with w_ij = softmax_j(-beta |hi_i - lo_j|^2 - |pos_i - pos_j|^2): i a fine pixel, j the
// 5x5 coarse cells around the one it lies in, those outside the grid left out, positions in coarse cells.
#pragma once

#include <cstdint>
#include <stdexcept>

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
  float* grad_beta;  // one number on the CPU; elsewhere one a fine pixel, for the caller to add up
  float* workspace;  // (batch, 2, 25, scale * h, scale * w); not used on the CPU
};

void guided_upsample_cpu(const GuidedUpsample& op, int threads);

void guided_upsample_backward_cpu(const GuidedUpsampleBackward& op, int threads);

// The bodies of the CUDA kernels, run one by one on the CPU: what tests compare without a GPU. These and the CUDA
// functions ask for one dtype of logits and guides, and for logits and guide_lo with stride_x = 1.
void guided_upsample_host(const GuidedUpsample& op);
void guided_upsample_backward_host(const GuidedUpsampleBackward& op);

void guided_upsample_cuda(const GuidedUpsample& op, void* stream);
void guided_upsample_backward_cuda(const GuidedUpsampleBackward& op, void* stream);

// Throws std::invalid_argument for sizes below 1 or beyond what the kernels index, and for a null address.
inline void check_guided_sizes(const GuidedUpsample& op) {
  constexpr int64_t kMost = int64_t{1} << 30;  // a size or channel count; offsets are 64 bit
  if (op.batch < 0 || op.classes < 0 || op.channels < 0 || op.h < 1 || op.w < 1 || op.scale < 1) {
    throw std::invalid_argument("guided_upsample: sizes and the scale must be at least 1");
  }
  if (op.classes > kMost || op.channels > kMost || op.h > kMost / op.scale || op.w > kMost / op.scale) {
    throw std::invalid_argument("guided_upsample: a size is beyond 2^30");
  }
  if (op.guide_lo.dtype != op.guide_hi.dtype) throw std::invalid_argument("guided_upsample: guides differ in dtype");
  if (op.batch == 0) return;
  if ((op.classes > 0 && !op.logits.data) || (op.channels > 0 && (!op.guide_lo.data || !op.guide_hi.data)) ||
      !op.beta) {
    throw std::invalid_argument("guided_upsample: a tensor has no memory");
  }
}

inline void check_guided(const GuidedUpsample& op) {
  check_guided_sizes(op);
  if (op.batch > 0 && op.classes > 0 && !op.out) throw std::invalid_argument("guided_upsample: out has no memory");
}

inline void check_guided_backward(const GuidedUpsampleBackward& op) {
  check_guided_sizes(op.forward);
  if (!op.grad_beta) throw std::invalid_argument("guided_upsample: grad_beta has no memory");
  if (op.forward.batch == 0) return;
  if ((op.forward.classes > 0 && (!op.grad.data || !op.grad_logits)) ||
      (op.forward.channels > 0 && (!op.grad_guide_lo || !op.grad_guide_hi))) {
    throw std::invalid_argument("guided_upsample: a gradient has no memory");
  }
}

// Throws std::invalid_argument where a CUDA kernel cannot read the tensors.
inline void check_guided_layout(const GuidedUpsample& op) {
  if (op.logits.dtype != op.guide_lo.dtype || op.logits.dtype != op.guide_hi.dtype) {
    throw std::invalid_argument("guided_upsample: logits and guides differ in dtype");
  }
  if ((op.logits.stride_x != 1 || op.guide_lo.stride_x != 1) && op.w > 1) {
    throw std::invalid_argument("guided_upsample: logits and guide_lo must have neighbouring columns");
  }
}

}  // namespace ovsdino
