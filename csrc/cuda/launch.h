#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace ovsdino {

constexpr int kWarpsPerBlock = 8;

// Blocks for `jobs` warps; kernels loop over the jobs with a grid stride, so more than this many blocks help nobody.
inline unsigned blocks_for(int64_t jobs) {
  constexpr int64_t kMost = 1 << 20;
  const int64_t blocks = (jobs + kWarpsPerBlock - 1) / kWarpsPerBlock;
  return static_cast<unsigned>(blocks < kMost ? blocks : kMost);
}

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

}  // namespace ovsdino
