// The group of lanes that works on one cell or mask: a warp in CUDA, one lane that does everything on the CPU.
// Kernel bodies are written against this interface, so the CPU tests run the indexing code that CUDA runs.
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/types.h"

namespace ovsdino {

struct OneLane {
  static constexpr int32_t kSize = 1;
  int32_t index() const { return 0; }
  float max(float x) const { return x; }
  bool any(bool x) const { return x; }
  // The lanes where x holds, one bit each.
  uint32_t ballot(bool x) const { return x ? 1u : 0u; }
  // The value of x in lane `from`.
  uint32_t broadcast(uint32_t x, int32_t) const { return x; }
  void sync() const {}
};

#ifdef __CUDACC__
struct Warp {
  static constexpr int32_t kSize = 32;
  __device__ __forceinline__ int32_t index() const { return static_cast<int32_t>(threadIdx.x & 31u); }
  __device__ __forceinline__ float max(float x) const {
    for (int step = 16; step > 0; step >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
  }
  __device__ __forceinline__ bool any(bool x) const { return __any_sync(~0u, x); }
  __device__ __forceinline__ uint32_t ballot(bool x) const { return __ballot_sync(~0u, x); }
  __device__ __forceinline__ uint32_t broadcast(uint32_t x, int32_t from) const { return __shfl_sync(~0u, x, from); }
  __device__ __forceinline__ void sync() const { __syncwarp(); }
};
#endif

OVSDINO_HD int32_t count_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

OVSDINO_HD int32_t lowest_bit(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __ffs(bits) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

}  // namespace ovsdino
