// One cell of upsample_argmax: the output pixels between four neighbouring coarse pixels, the `corners`.
//
// Inside a cell every class is a convex combination of its corners. A class whose largest corner is below the largest
// of all classes' smallest corners therefore loses everywhere in the cell; only the others, the survivors, are
// interpolated.
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/detail/bilinear.h"
#include "ovsdino/detail/number.h"
#include "ovsdino/types.h"

namespace ovsdino {

// A class that contributes less than e^-kTail / classes of the largest term changes no float32 sum of exponentials.
constexpr float kTail = 17.0f;

struct Corners {
  float top_left, top_right, bottom_left, bottom_right;
};

// Where a cell's corners are, in elements from the first class's plane.
struct CellOffsets {
  int64_t top_left, top_right, bottom_left, bottom_right;
};

OVSDINO_HD CellOffsets cell_offsets(int32_t cell_y, int32_t cell_x, int32_t in_h, int32_t in_w, bool same_h,
                                    bool same_w, int64_t stride_y, int64_t stride_x) {
  const int64_t top = cell_y * stride_y, left = cell_x * stride_x;
  const int64_t bottom = cell_y < in_h - 1 && !same_h ? top + stride_y : top;
  const int64_t right = cell_x < in_w - 1 && !same_w ? left + stride_x : left;
  return {top + left, top + right, bottom + left, bottom + right};
}

template <typename T>
OVSDINO_HD Corners load_corners(const T* plane, const CellOffsets& at) {
  return {to_float(plane[at.top_left]), to_float(plane[at.top_right]), to_float(plane[at.bottom_left]),
          to_float(plane[at.bottom_right])};
}

OVSDINO_HD float smallest(const Corners& c) {
  return fminf(fminf(c.top_left, c.top_right), fminf(c.bottom_left, c.bottom_right));
}

OVSDINO_HD float largest(const Corners& c) {
  return fmaxf(fmaxf(c.top_left, c.top_right), fmaxf(c.bottom_left, c.bottom_right));
}

OVSDINO_HD bool all_finite(const Corners& c) {
  const float zero = c.top_left * 0.0f + c.top_right * 0.0f + c.bottom_left * 0.0f + c.bottom_right * 0.0f;
  return zero == 0.0f;
}

// In torch's order of operations, so that an infinite corner of weight 0 gives the NaN it gives there.
OVSDINO_HD float interpolate(const Corners& c, const Tap& y, const Tap& x) {
  const float top = c.top_left * x.w0 + c.top_right * x.w1;
  const float bottom = c.bottom_left * x.w0 + c.bottom_right * x.w1;
  return top * y.w0 + bottom * y.w1;
}

// Running argmax with torch's order: the first NaN beats everything, else the first of the largest.
struct Best {
  float value;
  int32_t label;
};

OVSDINO_HD void offer(Best* best, float value, int32_t label) {
  const bool settled = best->value != best->value;
  if (!settled && (value > best->value || value != value || best->label < 0)) *best = {value, label};
}

// Label and confidence of one pixel: `corners(i, &label)` gives the i-th of `count` candidates in order of their
// labels.
template <typename Candidates>
OVSDINO_HD Best best_of(const Candidates& corners, int32_t count, const Tap& y, const Tap& x) {
  Best best = {0.0f, -1};
  OVSDINO_UNROLL_BY(4)
  for (int32_t i = 0; i < count; ++i) {
    int32_t label;
    const Corners c = corners(i, &label);
    offer(&best, interpolate(c, y, x), label);
  }
  return best;
}

// 1 / sum_k exp(v_k - v_best), the softmax probability of the best class.
template <typename Candidates>
OVSDINO_HD float confidence_of(const Candidates& corners, int32_t count, const Tap& y, const Tap& x, float best) {
  float sum = 0.0f;
  OVSDINO_UNROLL_BY(4)
  for (int32_t i = 0; i < count; ++i) {
    int32_t label;
    sum += expf(interpolate(corners(i, &label), y, x) - best);
  }
  return 1.0f / sum;
}

}  // namespace ovsdino
