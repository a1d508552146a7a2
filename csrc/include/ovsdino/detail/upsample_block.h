// The two bodies of upsample_argmax: one cell by one group of lanes, over classes to find the survivors, then over
// pixels; and one pixel by itself, over all classes, for cells of few pixels.
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/detail/lanes.h"
#include "ovsdino/detail/upsample_cell.h"
#include "ovsdino/upsample_argmax.h"

namespace ovsdino {

struct Survivor {
  Corners corners;
  int32_t label;
};

// Survivors a group can list; a cell with more interpolates every class (20 KB of shared memory for 8 warps).
constexpr int32_t kMaxSurvivors = 128;
constexpr int32_t kClassesAhead = 2;  // of a lane

struct ListedSurvivors {
  const Survivor* list;
  OVSDINO_HD_MEMBER Corners operator()(int32_t i, int32_t* label) const {
    *label = list[i].label;
    return list[i].corners;
  }
};

template <typename T>
struct AllClasses {
  const T* image;
  int64_t stride_k;
  CellOffsets at;
  OVSDINO_HD_MEMBER Corners operator()(int32_t i, int32_t* label) const {
    *label = i;
    return load_corners(image + i * stride_k, at);
  }
};

// A GPU divides 32 bits several times as fast as 64.
OVSDINO_HD int64_t divided(int64_t a, int32_t b) {
  return a < int64_t{1} << 31 ? static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b)) : a / b;
}

template <typename Candidates, typename Label>
OVSDINO_HD void write_pixel(const UpsampleArgmax& op, const Candidates& candidates, int32_t count, int64_t batch,
                            int32_t y, int32_t x) {
  const Tap tap_y = bilinear_tap(y, static_cast<int32_t>(op.in_h), static_cast<int32_t>(op.out_h));
  const Tap tap_x = bilinear_tap(x, static_cast<int32_t>(op.in_w), static_cast<int32_t>(op.out_w));
  const int64_t to = (batch * op.out_h + y) * op.out_w + x;
  Best best = best_of(candidates, count, tap_y, tap_x);
  if (op.confidence || op.has_threshold) {
    const float confidence = confidence_of(candidates, count, tap_y, tap_x, best.value);
    if (op.confidence) op.confidence[to] = confidence;
    if (op.has_threshold && confidence < op.threshold) best.label = static_cast<int32_t>(op.classes);
  }
  static_cast<Label*>(op.labels)[to] = static_cast<Label>(best.label);
}

// Whether a cell's pixels take less work by themselves than finding its survivors takes.
OVSDINO_HD bool few_pixels(const UpsampleArgmax& op) {
  constexpr double kWork = 2048;  // classes times pixels of a cell
  const double pixels = static_cast<double>(op.out_h) * static_cast<double>(op.out_w);
  return pixels * static_cast<double>(op.classes) <=
         kWork * static_cast<double>(op.in_h) * static_cast<double>(op.in_w);
}

template <typename T, typename Label>
OVSDINO_HD void upsample_pixel(const UpsampleArgmax& op, int64_t batch, int32_t y, int32_t x) {
  const auto in_h = static_cast<int32_t>(op.in_h), in_w = static_cast<int32_t>(op.in_w);
  const Tap tap_y = bilinear_tap(y, in_h, static_cast<int32_t>(op.out_h));
  const Tap tap_x = bilinear_tap(x, in_w, static_cast<int32_t>(op.out_w));
  const CellOffsets at =
      cell_offsets(tap_y.i0, tap_x.i0, in_h, in_w, in_h == op.out_h, in_w == op.out_w, op.stride_y, op.stride_x);
  const T* image = static_cast<const T*>(op.logits) + batch * op.stride_b;
  write_pixel<AllClasses<T>, Label>(op, AllClasses<T>{image, op.stride_k, at}, static_cast<int32_t>(op.classes), batch,
                                    y, x);
}

// cell: index into (batch, in_h, in_w). list: room for kMaxSurvivors, shared by the lanes.
template <typename T, typename Label, typename Lanes>
OVSDINO_HD void upsample_cell(const UpsampleArgmax& op, int64_t cell, const Lanes& lanes, Survivor* list) {
  const auto in_h = static_cast<int32_t>(op.in_h), in_w = static_cast<int32_t>(op.in_w);
  const auto out_h = static_cast<int32_t>(op.out_h), out_w = static_cast<int32_t>(op.out_w);
  const auto classes = static_cast<int32_t>(op.classes);
  const int64_t line = divided(cell, in_w), batch = divided(line, in_h);
  const auto cell_x = static_cast<int32_t>(cell - line * in_w), cell_y = static_cast<int32_t>(line - batch * in_h);
  const int32_t x_begin = first_output(cell_x, in_w, out_w), x_end = first_output(cell_x + 1, in_w, out_w);
  const int32_t y_begin = first_output(cell_y, in_h, out_h), y_end = first_output(cell_y + 1, in_h, out_h);
  const int32_t width = x_end - x_begin;
  if (width <= 0 || y_end <= y_begin) return;

  const T* image = static_cast<const T*>(op.logits) + batch * op.stride_b;
  const CellOffsets at =
      cell_offsets(cell_y, cell_x, in_h, in_w, in_h == out_h, in_w == out_w, op.stride_y, op.stride_x);
  float bar = -INFINITY;
  bool finite = true;
  OVSDINO_UNROLL_BY(4)
  for (int32_t k = lanes.index(); k < classes; k += Lanes::kSize) {
    const Corners c = load_corners(image + k * op.stride_k, at);
    bar = fmaxf(bar, smallest(c));
    finite = finite && all_finite(c);
  }
  finite = !lanes.any(!finite);
  bar = lanes.max(bar);
  if (op.confidence || op.has_threshold) bar -= kTail + logf(static_cast<float>(classes));

  int32_t count = 0;
  for (int32_t first = 0; first < classes && finite; first += kClassesAhead * Lanes::kSize) {
    Survivor mine[kClassesAhead];  // loaded before the first is written to the list
    OVSDINO_UNROLL
    for (int32_t i = 0; i < kClassesAhead; ++i) {
      mine[i] = {{0.0f, 0.0f, 0.0f, 0.0f}, first + i * Lanes::kSize + lanes.index()};
      if (mine[i].label < classes) mine[i].corners = load_corners(image + mine[i].label * op.stride_k, at);
    }
    OVSDINO_UNROLL
    for (int32_t i = 0; i < kClassesAhead; ++i) {
      const bool keep = mine[i].label < classes && largest(mine[i].corners) >= bar;
      const uint32_t kept = lanes.ballot(keep);
      const int32_t slot = count + count_bits(kept & ((1u << lanes.index()) - 1u));
      if (keep && slot < kMaxSurvivors) list[slot] = mine[i];
      count += count_bits(kept);
    }
  }
  lanes.sync();

  const bool listed = finite && count <= kMaxSurvivors;
  const int32_t pixels = width * (y_end - y_begin);
  for (int32_t p = lanes.index(); p < pixels; p += Lanes::kSize) {
    const int32_t y = y_begin + p / width, x = x_begin + p % width;
    if (listed) {
      write_pixel<ListedSurvivors, Label>(op, ListedSurvivors{list}, count, batch, y, x);
    } else {
      write_pixel<AllClasses<T>, Label>(op, AllClasses<T>{image, op.stride_k, at}, classes, batch, y, x);
    }
  }
}

}  // namespace ovsdino
