// Between upsample_argmax.cpp (memory, threads) and upsample_kernel.cpp (one instruction set each).
#pragma once

#include <cstdint>

#include "ovsdino/detail/bilinear.h"
#include "ovsdino/types.h"

namespace ovsdino {

// Pads of the buffers below: every loop may run over by a vector of the widest instruction set.
constexpr int64_t kPad = 16;

// Bounds the label buffer of a thread: more output rows between two coarse rows are done in several strips.
constexpr int32_t kMaxRows = 16;

// One coarse row of all classes, packed as float32: row k starts at values + k * pitch. The last column is repeated in
// the padding. finite[x] is 0, or NaN where a class is infinite or NaN in column x.
struct CoarseRow {
  float* values;
  float* finite;
};

// Lists of classes beyond those of a vector of cells: the classes that reach the bar in any of them and where, and
// those that can win on each of a vector of columns.
constexpr int64_t kCandidateLists = 3 + kPad;

// Floats a class needs in Strip::survivors: ten arrays for the survivors of one cell, or the values of one class at
// both ends of a vector of cells.
constexpr int64_t kSurvivorFloats = 2 * kPad;

struct RowSource {
  const void* data;  // first class, first column
  DType dtype;
  int64_t stride_k, stride_x;
  int32_t classes, width;
  int64_t pitch;
};

// Output rows between two coarse rows.
struct Strip {
  CoarseRow top, bottom;
  int64_t pitch;
  int32_t classes, in_w, out_w, rows;
  const Tap* y_taps;  // one a row of the strip
  const Tap* x_taps;  // one an output column
  const float* x_w0;  // their weights again, contiguous, kPad over
  const float* x_w1;
  const int32_t* x_i0;     // their first indices, kPad over
  const int32_t* first_x;  // in_w + 1: first output column of each cell
  bool want_confidence;    // confidences are needed, for the caller or for the threshold
  bool has_threshold;
  float threshold;
  int32_t* scratch_labels;  // rows * out_pitch
  float* scratch_confidence;
  int64_t out_pitch;    // >= out_w + kPad
  int32_t* candidates;  // (kPad + kCandidateLists) * (classes + kPad)
  float* survivors;     // (classes + 2 * kPad) * kSurvivorFloats
};

struct UpsampleKernel {
  void (*load_row)(const RowSource& source, const CoarseRow& row);
  void (*run_strip)(const Strip& strip);
  void (*store_labels)(const int32_t* from, void* to, DType dtype, int64_t count);
};

namespace baseline {
extern const UpsampleKernel kUpsample;
}
namespace avx2 {
extern const UpsampleKernel kUpsample;
}
namespace avx512 {
extern const UpsampleKernel kUpsample;
}

}  // namespace ovsdino
