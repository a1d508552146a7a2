// preprocess on CUDA: a block for each tile of an antialiased shrink, else a thread for each output pixel; the bodies
// are in detail/resize.h.
#include "launch.h"
#include "ovsdino/detail/resize.h"
#include "ovsdino/preprocess.h"

namespace ovsdino {
namespace {

// The threads of a block as one group of lanes.
struct Block {
  static constexpr int32_t kSize = kStripGroups;
  __device__ __forceinline__ int32_t index() const { return static_cast<int32_t>(threadIdx.x); }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
};

template <typename T, typename Source>
__global__ void __launch_bounds__(kStripGroups, 6) preprocess_tile_kernel(Preprocess op, ResizeTiles tiles) {
  __shared__ float strips[2 * kStripFloats];
  const int64_t count = op.batch * tiles.down * tiles.across;
  for (int64_t tile = blockIdx.x; tile < count; tile += gridDim.x) {
    const int64_t line = tile / tiles.across, batch = line / tiles.down;
    resize_tile<T>(op, tiles, Source(op, batch), batch, static_cast<int32_t>(line % tiles.down),
                   static_cast<int32_t>(tile % tiles.across), Block(), strips);
    __syncthreads();  // the next tile writes the strips that others may still read
  }
}

constexpr int32_t kPixelsX = 32, kPixelsY = 8;  // threads of a block

template <typename T, typename Source>
__global__ void __launch_bounds__(kPixelsX* kPixelsY, 4) preprocess_pixel_kernel(Preprocess op) {
  const auto out_h = static_cast<int32_t>(op.out_h);
  const int32_t x = static_cast<int32_t>(blockIdx.x) * kPixelsX + static_cast<int32_t>(threadIdx.x);
  if (x >= op.out_w) return;
  for (int64_t batch = blockIdx.z; batch < op.batch; batch += gridDim.z) {
    const Source source(op, batch);
    int32_t y = static_cast<int32_t>(blockIdx.y) * kPixelsY + static_cast<int32_t>(threadIdx.y);
    for (; y < out_h; y += static_cast<int32_t>(gridDim.y) * kPixelsY) resize_pixel<T>(op, source, batch, y, x);
  }
}

int32_t multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

unsigned at_most(int64_t count, int64_t most) { return static_cast<unsigned>(count < most ? count : most); }

template <typename T, typename Source>
void launch(const Preprocess& op, cudaStream_t stream) {
  const ResizeTiles tiles = resize_tiles(op, multiprocessors());
  if (tiles.rows > 0) {
    const unsigned blocks = at_most(op.batch * tiles.down * tiles.across, 1 << 30);
    preprocess_tile_kernel<T, Source><<<blocks, kStripGroups, 0, stream>>>(op, tiles);
  } else {
    const dim3 blocks(static_cast<unsigned>((op.out_w + kPixelsX - 1) / kPixelsX),
                      at_most((op.out_h + kPixelsY - 1) / kPixelsY, 65535), at_most(op.batch, 65535));
    preprocess_pixel_kernel<T, Source><<<blocks, dim3(kPixelsX, kPixelsY), 0, stream>>>(op);
  }
  check_launch("preprocess");
}

template <typename T>
void launch(const Preprocess& op, cudaStream_t stream) {
  if (op.format == PixelFormat::kNv12) return launch<T, Nv12>(op, stream);
  if (op.stride_c == 1 && op.stride_x == 3) return launch<T, PackedRgb>(op, stream);
  launch<T, StridedRgb>(op, stream);
}

}  // namespace

void preprocess_cuda(const Preprocess& op, void* stream) {
  check_preprocess(op);
  if (op.batch == 0) return;
  if (op.out_dtype == DType::kFloat32) launch<float>(op, static_cast<cudaStream_t>(stream));
  if (op.out_dtype == DType::kFloat16) launch<Half>(op, static_cast<cudaStream_t>(stream));
  if (op.out_dtype == DType::kBFloat16) launch<BFloat16>(op, static_cast<cudaStream_t>(stream));
}

}  // namespace ovsdino
