// Between guided_upsample.cpp (memory, threads) and guided_kernel.cpp (one instruction set each).
//
// A *band* is the `scale` fine rows of one coarse row. Coarse rows are held widened: float32, each value repeated
// `scale` times along x, two cells of margin on both sides (zeros outside the grid). The neighbour dx cells away of a
// vector of fine pixels is then one load at x + dx * scale, whatever the scale.
#pragma once

#include <cstdint>

#include "ovsdino/types.h"

namespace ovsdino {

constexpr int32_t kReach = 2;              // cells on each side
constexpr int32_t kSide = 2 * kReach + 1;  // of the neighbourhood
constexpr int32_t kNear = kSide * kSide;
constexpr int32_t kGatherChannels = 8;  // channels that a gather sums together
constexpr int64_t kFinePad = 16;        // the widest vector: every loop along x may run over by one

// A run of one coarse row, all channels.
struct CoarseRun {
  const void* data;  // first channel, column 0 of the grid
  DType dtype;
  int64_t stride_c, stride_x;
  int32_t channels, width;    // of the grid
  int32_t first_cell, cells;  // of the run with its margins; may lie outside the grid
  int32_t scale;
  float* to;  // channel c goes to to + c * channel_pitch
  int64_t channel_pitch;
  float* norm;  // null, or scratch for `cells`: then sum_c v_c^2 is written as one more channel
};

// Some rows of a fine tensor to float32 planes.
struct FineRows {
  const void* data;  // first channel, row and column
  DType dtype;
  int64_t stride_c, stride_y, stride_x;
  int32_t channels, rows, width;
  float* to;
  int64_t to_stride_c, to_stride_y;
};

// float32 rows by channel: widened coarse ones (`row[dy]` from channel 0, column -kReach * scale) or fine ones.
struct Widened {
  const float* row[kSide];
  int64_t channel_pitch;
};
struct Fine {
  const float* data;
  int64_t stride_c, stride_y;
};

struct GuidedBand {
  int32_t scale, channels, classes, width;  // fine columns of the tile
  int32_t near_begin, near_end;             // rows dy of the neighbourhood that lie in the grid
  Widened low, logits;                      // low has one channel more: |lo|^2
  Fine high;                                // the band's rows
  const float* bias_x[kSide];               // -(x distance)^2 by fine column; -inf outside the grid
  const float* bias_y;                      // (scale, kSide) -(y distance)^2
  float beta;
  // Written: the band's rows of `out` (forward), or of the guide's gradient (backward).
  void* out;
  DType out_dtype;
  int64_t out_stride_c, out_stride_y;
  // Backward only.
  Fine grad;
  float *weights, *dscores;  // fine row y, neighbour j: at (y * kNear + j) * pitch
  int64_t pitch;
  double* grad_beta;  // one number
};

// Sums over the fine pixels that see the cells of one coarse row: sums_c(x) = sum_{dy, dx} sum_rows
// factor_{dy, dx}(row, x - dx * scale) * value_c(row, x - dx * scale), x a fine column of the cell.
struct GuidedGather {
  int32_t scale, channels, cells;
  int32_t near_begin, near_end;  // neighbours dy of which the cell row of the fine pixels lies in the grid
  const float* factors;          // fine row 0, neighbour 0, column 0: row y, neighbour j at (y * kNear + j) * pitch
  int64_t pitch;
  int64_t row;          // the coarse row
  const float* values;  // (channel, row) at c * value_stride_c + y * pitch; null: one channel of ones
  int64_t value_stride_c;
  float* wide;  // scratch, (kGatherChannels, cells * scale + kFinePad)
  float* sums;  // (channels, cells)
};

struct GuidedKernel {
  void (*load_coarse)(const CoarseRun& run);
  void (*load_fine)(const FineRows& rows);
  void (*forward)(const GuidedBand& band);
  void (*backward)(const GuidedBand& band);
  void (*gather)(const GuidedGather& gather);
};

namespace baseline {
extern const GuidedKernel kGuided;
}
namespace avx2 {
extern const GuidedKernel kGuided;
}
namespace avx512 {
extern const GuidedKernel kGuided;
}

}  // namespace ovsdino
