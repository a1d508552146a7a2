// mean(m, c) = sum_n w(m, n) f(n, c) / sum_n w(m, n) and area(m) = sum_n w(m, n); an empty mask gives zeros.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "ovsdino/types.h"

namespace ovsdino {

struct MaskPool {
  const void* features;  // (batch, tokens, channels): float32, float16 or bfloat16, channels contiguous
  DType features_dtype;
  int64_t batch, tokens, channels;
  int64_t features_stride_b, features_stride_n;
  const void* masks;  // (batch, masks, tokens): uint8 (set where not 0) or float32
  DType masks_dtype;
  int64_t mask_count;
  int64_t masks_stride_b, masks_stride_m, masks_stride_n;
  void* means;   // (batch, mask_count, channels) contiguous, the dtype of features
  float* areas;  // (batch, mask_count) contiguous
};

// Throws std::invalid_argument for sizes that are negative or beyond the kernels' 32-bit token indices, for dtypes that
// no kernel reads, and for a null address where there is something to read or write.
inline void check_mask_pool(const MaskPool& op, bool backward) {
  constexpr int64_t kMost = int64_t{1} << 31;
  if (op.mask_count < 0 || op.tokens < 0 || op.channels < 0 || op.batch < 0) {
    throw std::invalid_argument("mask_pool: a size is negative");
  }
  if (op.tokens >= kMost || op.mask_count >= kMost) throw std::invalid_argument("mask_pool: a size is beyond 2^31");
  const bool floating = op.features_dtype == DType::kFloat32 || op.features_dtype == DType::kFloat16 ||
                        op.features_dtype == DType::kBFloat16;
  if (!floating || (backward && op.features_dtype != DType::kFloat32)) {
    throw std::invalid_argument("mask_pool: features must be floating, in the backward direction float32");
  }
  if (op.masks_dtype != DType::kFloat32 && op.masks_dtype != DType::kUint8) {
    throw std::invalid_argument("mask_pool: masks must be float32 or uint8");
  }
  const bool rows = op.batch > 0 && op.tokens > 0, lists = op.batch > 0 && op.mask_count > 0;
  if ((rows && op.channels > 0 && !op.features) || (rows && lists && !op.masks) ||
      (lists && op.channels > 0 && !op.means) || (lists && !backward && !op.areas)) {
    throw std::invalid_argument("mask_pool: a tensor has no memory");
  }
}

// Returns false, with nothing but `areas` written, if more than max_density of all mask elements are set: a dense
// matrix product is faster there.
bool mask_pool_cpu(const MaskPool& op, double max_density, int threads);

// The transposed sum grad_features(n, c) = sum_m w(m, n) g(m, c): `means` is read as g, `features` is written, both
// float32 and features contiguous. The same return value.
bool mask_pool_backward_cpu(const MaskPool& op, double max_density, int threads);

// The bodies of the CUDA kernels, run block by block on the CPU: what tests compare without a GPU.
void mask_pool_host(const MaskPool& op);
void mask_pool_backward_host(const MaskPool& op);

// Backward reads and writes what mask_pool_backward_cpu does, and leaves `areas` alone.
void mask_pool_cuda(const MaskPool& op, void* stream);
void mask_pool_backward_cuda(const MaskPool& op, void* stream);

}  // namespace ovsdino
