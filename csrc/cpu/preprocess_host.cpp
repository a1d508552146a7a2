// The bodies of the CUDA kernels of preprocess on the CPU, one lane doing all: tests compare them where there is no
// GPU.
#include <vector>

#include "ovsdino/detail/resize.h"
#include "ovsdino/preprocess.h"

namespace ovsdino {
namespace {

template <typename T, typename Source>
void resize(const Preprocess& op, int32_t multiprocessors) {
  const ResizeTiles tiles = resize_tiles(op, multiprocessors);
  std::vector<float> strips(2 * kStripFloats);
  for (int64_t batch = 0; batch < op.batch; ++batch) {
    const Source source(op, batch);
    for (int32_t down = 0; down < tiles.down; ++down) {
      for (int32_t across = 0; across < tiles.across; ++across) {
        resize_tile<T>(op, tiles, source, batch, down, across, OneLane(), strips.data());
      }
    }
    for (int32_t y = 0; tiles.rows == 0 && y < op.out_h; ++y) {
      for (int32_t x = 0; x < op.out_w; ++x) resize_pixel<T>(op, source, batch, y, x);
    }
  }
}

template <typename T>
void resize(const Preprocess& op, int32_t multiprocessors) {
  if (op.format == PixelFormat::kNv12) return resize<T, Nv12>(op, multiprocessors);
  if (op.stride_c == 1 && op.stride_x == 3) return resize<T, PackedRgb>(op, multiprocessors);
  resize<T, StridedRgb>(op, multiprocessors);
}

}  // namespace

void preprocess_host(const Preprocess& op, int32_t multiprocessors) {
  check_preprocess(op);
  if (multiprocessors < 1) throw std::invalid_argument("preprocess: multiprocessors must be at least 1");
  if (op.out_dtype == DType::kFloat32) resize<float>(op, multiprocessors);
  if (op.out_dtype == DType::kFloat16) resize<Half>(op, multiprocessors);
  if (op.out_dtype == DType::kBFloat16) resize<BFloat16>(op, multiprocessors);
}

}  // namespace ovsdino
