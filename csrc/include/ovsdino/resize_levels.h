// out(c, y, x) = resize(image)(y, x, c) * gain(c) + shift(c), the resize on uint8 with 16-bit weights, columns first
// and each pass rounded to whole levels: the integers of torch's and of ovsdino.levels.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>

namespace ovsdino {

// out[i] = (in[start[i]] * weights[i] + in[start[i] + 1] * weights[count + i] + half) >> bits; a start of null copies.
struct LevelAxis {
  const int64_t* start;
  const int32_t* weights;  // (2, count); a tap beyond the last has weight 0
  int32_t bits;
};

struct ResizeLevels {
  const uint8_t* image;  // (in_h, in_w, 3)
  int64_t in_h, in_w;
  int64_t stride_y;  // bytes; pixels and their colors follow one another
  LevelAxis across, down;
  int64_t out_h, out_w;
  float* out;  // (3, out_h, out_w) contiguous
  float gain[3], shift[3];
};

// Throws std::invalid_argument for sizes below 1 or beyond what the kernel indexes, for sides that differ with no
// weights given, and for a null address.
inline void check_resize_levels(const ResizeLevels& op) {
  constexpr int64_t kMost = int64_t{1} << 30;
  for (const int64_t side : {op.in_h, op.in_w, op.out_h, op.out_w}) {
    if (side < 1 || side > kMost) throw std::invalid_argument("resize_levels: a size is not in 1..2^30");
  }
  if ((!op.across.start && op.in_w != op.out_w) || (!op.down.start && op.in_h != op.out_h)) {
    throw std::invalid_argument("resize_levels: a side changes and has no weights");
  }
  if (!op.image || !op.out) throw std::invalid_argument("resize_levels: an array has no memory");
}

void resize_levels_cpu(const ResizeLevels& op, int threads);

}  // namespace ovsdino
