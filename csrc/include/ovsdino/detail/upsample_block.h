// The two bodies of upsample_argmax. A tile: neighbouring cells of one coarse row, lanes over cells to find the bars
// and the survivors of each, then over neighbouring pixels. Rows: pixels by all classes, for cells of few pixels.
//
// Both blend one class after the other into a column of 8 or 4 pixels a lane: the corners are loaded and blended
// along x once a column, by neighbouring lanes from neighbouring places.
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/detail/block.h"
#include "ovsdino/detail/lanes.h"
#include "ovsdino/detail/upsample_cell.h"
#include "ovsdino/upsample_argmax.h"

namespace ovsdino {

constexpr int32_t kUpsampleThreads = 256;
constexpr int32_t kTileRows = 8, kStripRows = 4;
constexpr int32_t kMostTileClasses = 2048;  // a bit of shared memory for each and each of 32 cells: 8 KB

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

// Whether a cell's pixels take less work by themselves than finding its survivors takes.
OVSDINO_HD bool few_pixels(const UpsampleArgmax& op) {
  constexpr double kWork = 2048;  // classes times pixels of a cell
  const double pixels = static_cast<double>(op.out_h) * static_cast<double>(op.out_w);
  return op.classes > kMostTileClasses || pixels * static_cast<double>(op.classes) <=
                                              kWork * static_cast<double>(op.in_h) * static_cast<double>(op.in_w);
}

// What the pixels of a coarse row share.
struct RowOfCells {
  int64_t batch;
  int32_t cell_y, y_begin, y_end;
};

OVSDINO_HD RowOfCells row_of_cells(const UpsampleArgmax& op, int64_t line) {
  const auto in_h = static_cast<int32_t>(op.in_h), out_h = static_cast<int32_t>(op.out_h);
  const int64_t batch = divided(line, in_h);
  const auto cell_y = static_cast<int32_t>(line - batch * in_h);
  return {batch, cell_y, first_output(cell_y, in_h, out_h), first_output(cell_y + 1, in_h, out_h)};
}

template <typename T>
OVSDINO_HD AllClasses<T> classes_of_cell(const UpsampleArgmax& op, int64_t batch, int32_t cell_y, int32_t cell_x) {
  const auto in_h = static_cast<int32_t>(op.in_h), in_w = static_cast<int32_t>(op.in_w);
  const CellOffsets at =
      cell_offsets(cell_y, cell_x, in_h, in_w, in_h == op.out_h, in_w == op.out_w, op.stride_y, op.stride_x);
  return {static_cast<const T*>(op.logits) + batch * op.stride_b, op.stride_k, at};
}

template <typename T, typename Block>
OVSDINO_HD Corners block_corners(const AllClasses<T>& of, int32_t k, const Block& block) {
  const T* plane = of.image + k * of.stride_k;
  return {to_float(block.load_global(plane + of.at.top_left)), to_float(block.load_global(plane + of.at.top_right)),
          to_float(block.load_global(plane + of.at.bottom_left)),
          to_float(block.load_global(plane + of.at.bottom_right))};
}

template <typename Label, typename Block>
OVSDINO_HD void write_label(const UpsampleArgmax& op, int64_t to, int32_t label, float confidence, const Block& block) {
  if (op.confidence) block.store_global(op.confidence + to, confidence);
  if (op.has_threshold && confidence < op.threshold) label = static_cast<int32_t>(op.classes);
  block.store_global(static_cast<Label*>(op.labels) + to, static_cast<Label>(label));
}

// One pixel by all classes in torch's order: for cells with an infinite or NaN corner.
template <typename T, typename Label, typename Block>
OVSDINO_HD void write_pixel(const UpsampleArgmax& op, const AllClasses<T>& cell, int64_t batch, int32_t y, int32_t x,
                            const Block& block) {
  const auto classes = static_cast<int32_t>(op.classes);
  const Tap tap_y = bilinear_tap(y, static_cast<int32_t>(op.in_h), static_cast<int32_t>(op.out_h));
  const Tap tap_x = bilinear_tap(x, static_cast<int32_t>(op.in_w), static_cast<int32_t>(op.out_w));
  const Best best = best_of(cell, classes, tap_y, tap_x);
  float confidence = 0.0f;
  if (op.confidence || op.has_threshold) confidence = confidence_of(cell, classes, tap_y, tap_x, best.value);
  write_label<Label>(op, (batch * op.out_h + y) * op.out_w + x, best.label, confidence, block);
}

// Candidates: all classes, or those whose bit is set for one of the cells first .. last of the tile.
struct EveryClass {
  static constexpr bool kFinite = false;  // not known
  int32_t classes;
  template <typename Block, typename Visit>
  OVSDINO_HD_MEMBER void for_each(const Block&, const Visit& visit) const {
    for (int32_t k = 0; k < classes; ++k) visit(k);
  }
};

struct Survivors {
  static constexpr bool kFinite = true;
  uint32_t bits;  // offset of the words in shared memory: kLanes cells a word of 32 classes
  int32_t words, first, last;
  template <typename Block, typename Visit>
  OVSDINO_HD_MEMBER void for_each(const Block& block, const Visit& visit) const {
    for (int32_t w = 0; w < words; ++w) {
      uint32_t set = 0;
      for (int32_t cell = first; cell <= last; ++cell) {
        set |= block.template load_shared<uint32_t>(bits + 4u * static_cast<uint32_t>(w * Block::kLanes + cell));
      }
      for (; set; set &= set - 1) visit(32 * w + lowest_bit(set));
    }
  }
};

// The same pixels one by one.
template <typename T, typename Label, int32_t kRows, typename Block>
OVSDINO_HD void write_rows(const UpsampleArgmax& op, const AllClasses<T>& cell, const RowOfCells& row, int32_t y,
                           int32_t x, bool inside, const Block& block) {
  for (int32_t r = y; inside && r < row.y_end && r < y + kRows; ++r) {
    write_pixel<T, Label>(op, cell, row.batch, r, x, block);
  }
}

// A column of up to kRows pixels at x, rows y and on.
template <typename T, typename Label, int32_t kRows, bool kConfidence, typename Candidates, typename Block>
OVSDINO_HD void write_column(const UpsampleArgmax& op, const AllClasses<T>& cell, const Candidates& candidates,
                             const RowOfCells& row, int32_t y, int32_t x, bool inside, const Block& block) {
  const Tap tap_x = bilinear_tap(x, static_cast<int32_t>(op.in_w), static_cast<int32_t>(op.out_w));
  Tap taps[kRows];
  float best[kRows], total[kRows];
  int32_t label[kRows];
  OVSDINO_UNROLL
  for (int32_t r = 0; r < kRows; ++r) {
    taps[r] =
        bilinear_tap(y + r < row.y_end ? y + r : y, static_cast<int32_t>(op.in_h), static_cast<int32_t>(op.out_h));
    best[r] = -INFINITY;
    label[r] = 0;
    total[r] = 0.0f;
  }
  bool finite = true;
  candidates.for_each(block, [&](int32_t k) {
    const Corners c = block_corners(cell, k, block);
    if constexpr (!Candidates::kFinite) finite = finite && all_finite(c);
    const float top = c.top_left * tap_x.w0 + c.top_right * tap_x.w1;
    const float bottom = c.bottom_left * tap_x.w0 + c.bottom_right * tap_x.w1;
    OVSDINO_UNROLL
    for (int32_t r = 0; r < kRows; ++r) {
      const float value = top * taps[r].w0 + bottom * taps[r].w1;
      const bool wins = value > best[r];
      best[r] = wins ? value : best[r];
      label[r] = wins ? k : label[r];
    }
  });
  if constexpr (kConfidence) {
    candidates.for_each(block, [&](int32_t k) {
      const Corners c = block_corners(cell, k, block);
      const float top = c.top_left * tap_x.w0 + c.top_right * tap_x.w1;
      const float bottom = c.bottom_left * tap_x.w0 + c.bottom_right * tap_x.w1;
      OVSDINO_UNROLL
      for (int32_t r = 0; r < kRows; ++r) total[r] += expf(top * taps[r].w0 + bottom * taps[r].w1 - best[r]);
    });
  }
  if (!finite) return write_rows<T, Label, kRows>(op, cell, row, y, x, inside, block);
  OVSDINO_UNROLL
  for (int32_t r = 0; r < kRows; ++r) {
    if (!inside || y + r >= row.y_end) continue;
    const float confidence = kConfidence ? 1.0f / total[r] : 0.0f;
    write_label<Label>(op, (row.batch * op.out_h + y + r) * op.out_w + x, label[r], confidence, block);
  }
}

// Shared memory of a tile: each warp's bars, then whether a cell is finite, then the words of survivors.
template <typename Block>
struct TileLayout {
  static constexpr uint32_t kFinite = 4u * Block::kThreads;
  static constexpr uint32_t kSurvivors = kFinite + 4u * Block::kLanes;
  static constexpr uint32_t kBytes = kSurvivors + 4u * Block::kLanes * (kMostTileClasses / 32);
};

// Leaves the survivors of each cell, a lane's, in shared memory: all classes of a cell that is not finite. Every thread
// calls it.
template <typename T, typename Block>
OVSDINO_HD void find_survivors(const UpsampleArgmax& op, const AllClasses<T>& cell, const Block& block) {
  using Layout = TileLayout<Block>;
  const auto classes = static_cast<int32_t>(op.classes);
  const auto lane = static_cast<uint32_t>(block.lane());
  float bar = -INFINITY;
  bool finite = true;
  OVSDINO_UNROLL_BY(4)
  for (int32_t k = block.warp(); k < classes; k += Block::kWarps) {
    const Corners c = block_corners(cell, k, block);
    bar = fmaxf(bar, smallest(c));
    finite = finite && all_finite(c);
  }
  block.store_shared(4u * static_cast<uint32_t>(block.index()), finite ? bar : NAN);
  block.sync();
  bar = -INFINITY;
  finite = true;
  for (uint32_t w = 0; w < static_cast<uint32_t>(Block::kWarps); ++w) {
    const auto other = block.template load_shared<float>(4u * (w * Block::kLanes + lane));
    finite = finite && other == other;
    bar = fmaxf(bar, other);
  }
  if (op.confidence || op.has_threshold) bar -= kTail + logf(static_cast<float>(classes));
  if (block.warp() == 0) block.store_shared(Layout::kFinite + 4u * lane, finite ? 1u : 0u);
  // By eights of classes, so that every warp has some: a word is made of four of their bytes.
  for (int32_t eight = block.warp(); eight < (classes + 31) / 32 * 4; eight += Block::kWarps) {
    uint32_t bits = 0;
    OVSDINO_UNROLL
    for (int32_t i = 0; i < 8; ++i) {
      const int32_t k = 8 * eight + i;
      if (k < classes && (largest(block_corners(cell, k, block)) >= bar || !finite)) bits |= 1u << i;
    }
    const auto word = static_cast<uint32_t>(eight / 4);
    block.store_shared(Layout::kSurvivors + 4u * (word * Block::kLanes + lane) + static_cast<uint32_t>(eight % 4),
                       static_cast<uint8_t>(bits));
  }
  block.sync();
}

// Tiles of a coarse row.
OVSDINO_HD int64_t tiles_of_row(const UpsampleArgmax& op, int32_t lanes) { return (op.in_w + lanes - 1) / lanes; }

// tile: index into (batch, in_h, tiles_of_row).
template <typename T, typename Label, typename Block>
OVSDINO_HD void upsample_tile(const UpsampleArgmax& op, int64_t tile, const Block& block) {
  using Layout = TileLayout<Block>;
  const auto in_w = static_cast<int32_t>(op.in_w), out_w = static_cast<int32_t>(op.out_w);
  const auto tiles = static_cast<int32_t>(tiles_of_row(op, Block::kLanes));
  const int64_t line = divided(tile, tiles);
  const RowOfCells row = row_of_cells(op, line);
  const int32_t first_cell = static_cast<int32_t>(tile - line * tiles) * Block::kLanes;
  const int32_t end_cell = first_cell + Block::kLanes < in_w ? first_cell + Block::kLanes : in_w;
  const int32_t x_begin = first_output(first_cell, in_w, out_w), x_end = first_output(end_cell, in_w, out_w);
  if (x_end <= x_begin || row.y_end <= row.y_begin) return;
  // Lanes past the last cell do its work once more.
  const int32_t mine = first_cell + block.lane() < end_cell ? first_cell + block.lane() : end_cell - 1;
  find_survivors(op, classes_of_cell<T>(op, row.batch, row.cell_y, mine), block);

  const int32_t words = static_cast<int32_t>((op.classes + 31) / 32);
  const int32_t strips = (x_end - x_begin + Block::kLanes - 1) / Block::kLanes;
  const int32_t groups = (row.y_end - row.y_begin + kTileRows - 1) / kTileRows;
  for (int32_t job = block.warp(); job < strips * groups; job += Block::kWarps) {
    const int32_t y = row.y_begin + job / strips * kTileRows, first_x = x_begin + job % strips * Block::kLanes;
    const int32_t last_x = first_x + Block::kLanes < x_end ? first_x + Block::kLanes - 1 : x_end - 1;
    const bool inside = first_x + block.lane() <= last_x;
    const int32_t x = inside ? first_x + block.lane() : last_x;
    const int32_t first = bilinear_tap(first_x, in_w, out_w).i0 - first_cell;
    const int32_t last = bilinear_tap(last_x, in_w, out_w).i0 - first_cell;
    uint32_t finite = 1;
    for (int32_t c = first; c <= last; ++c) {
      finite &= block.template load_shared<uint32_t>(Layout::kFinite + 4u * static_cast<uint32_t>(c));
    }
    const AllClasses<T> cell = classes_of_cell<T>(op, row.batch, row.cell_y, bilinear_tap(x, in_w, out_w).i0);
    const Survivors survivors = {Layout::kSurvivors, words, first, last};
    if (!finite) {
      write_rows<T, Label, kTileRows>(op, cell, row, y, x, inside, block);
    } else if (op.confidence || op.has_threshold) {
      write_column<T, Label, kTileRows, true>(op, cell, survivors, row, y, x, inside, block);
    } else {
      write_column<T, Label, kTileRows, false>(op, cell, survivors, row, y, x, inside, block);
    }
  }
}

// Jobs of a coarse row: strips of as many pixels as a warp has lanes.
OVSDINO_HD int64_t strips_of_row(const UpsampleArgmax& op, int32_t lanes) { return (op.out_w + lanes - 1) / lanes; }

// strip: index into (batch, in_h, strips_of_row); a warp's. No thread waits for another.
template <typename T, typename Label, typename Block>
OVSDINO_HD void upsample_strip(const UpsampleArgmax& op, int64_t strip, const Block& block) {
  const auto in_w = static_cast<int32_t>(op.in_w), out_w = static_cast<int32_t>(op.out_w);
  const auto strips = static_cast<int32_t>(strips_of_row(op, Block::kLanes));
  const int64_t line = divided(strip, strips);
  const RowOfCells row = row_of_cells(op, line);
  const int32_t at = static_cast<int32_t>(strip - line * strips) * Block::kLanes + block.lane();
  const bool inside = at < out_w;
  const int32_t x = inside ? at : out_w - 1;
  const AllClasses<T> cell = classes_of_cell<T>(op, row.batch, row.cell_y, bilinear_tap(x, in_w, out_w).i0);
  const EveryClass every = {static_cast<int32_t>(op.classes)};
  for (int32_t y = row.y_begin; y < row.y_end; y += kStripRows) {
    if (op.confidence || op.has_threshold) {
      write_column<T, Label, kStripRows, true>(op, cell, every, row, y, x, inside, block);
    } else {
      write_column<T, Label, kStripRows, false>(op, cell, every, row, y, x, inside, block);
    }
  }
}

}  // namespace ovsdino
