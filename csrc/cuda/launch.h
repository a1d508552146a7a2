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

constexpr int32_t kPixelsX = 32, kPixelsY = 8;  // threads of a block that owns pixels

// The pixels of a batch of images, one for each thread.
struct PixelGrid {
  int64_t batches;
  int32_t height, width;

  __host__ __device__ PixelGrid(int64_t batch, int64_t h, int64_t w)
      : batches(batch), height(static_cast<int32_t>(h)), width(static_cast<int32_t>(w)) {}

  dim3 blocks() const {
    constexpr int64_t kMost = 65535;  // along y and z; what is left takes another turn
    const int64_t rows = (int64_t{height} + kPixelsY - 1) / kPixelsY;
    return {static_cast<unsigned>((int64_t{width} + kPixelsX - 1) / kPixelsX),
            static_cast<unsigned>(rows < kMost ? rows : kMost),
            static_cast<unsigned>(batches < kMost ? batches : kMost)};
  }

  // Calls visit(batch, y, x) for the pixels of this thread.
  template <typename Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) const {
    const auto x = static_cast<int32_t>(blockIdx.x * kPixelsX + threadIdx.x);
    if (x >= width) return;
    for (int64_t batch = blockIdx.z; batch < batches; batch += gridDim.z) {
      auto y = static_cast<int32_t>(blockIdx.y * kPixelsY + threadIdx.y);
      for (; y < height; y += static_cast<int32_t>(gridDim.y) * kPixelsY) visit(batch, y, x);
    }
  }
};

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

}  // namespace ovsdino
