// The strip kernel of upsample_argmax; compiled once per instruction set (see simd.h).
//
// Vectors run along x in the search for survivors (16 cells at a time), along the survivors in the interpolation of a
// row's two ends, and along x again over the pixels of a cell's row.
#include "upsample_kernel.h"

#include "ovsdino/detail/upsample_cell.h"
#include "simd.h"

namespace ovsdino {
namespace OVSDINO_ISA {
namespace {

constexpr int32_t kAhead = 2;  // classes

template <typename T>
OVSDINO_INLINE void load_values(const RowSource& source, const CoarseRow& row) {
  const T* data = static_cast<const T*>(source.data);
  const int32_t width = source.width;
  for (int64_t x = 0; x < source.pitch; ++x) row.finite[x] = 0.0f;
  for (int32_t k = 0; k < source.classes; ++k) {
    const T* from = data + k * source.stride_k;
    float* to = row.values + k * source.pitch;
    if (source.stride_x == 1) {
      // The next class's row is in other pages, where no hardware prefetcher goes.
      const char* ahead = reinterpret_cast<const char*>(from + kAhead * source.stride_k);
      if (k + kAhead < source.classes) {
        for (int64_t at = 0; at < width * int64_t{sizeof(T)}; at += 64) __builtin_prefetch(ahead + at);
      }
      for (int32_t x = 0; x < width; ++x) to[x] = to_float(from[x]);
    } else {
      for (int32_t x = 0; x < width; ++x) to[x] = to_float(from[x * source.stride_x]);
    }
    for (int64_t x = width; x < source.pitch; ++x) to[x] = to[width - 1];
    for (int64_t x = 0; x < source.pitch; x += kLanes)
      store(row.finite + x, load(row.finite + x) + load(to + x) * 0.0f);
  }
}

void load_row(const RowSource& source, const CoarseRow& row) {
  if (source.dtype == DType::kFloat32) load_values<float>(source, row);
  if (source.dtype == DType::kFloat16) load_values<Half>(source, row);
  if (source.dtype == DType::kBFloat16) load_values<BFloat16>(source, row);
}

template <typename T>
OVSDINO_INLINE void narrow(const int32_t* from, void* to, int64_t count) {
  T* out = static_cast<T*>(to);
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(from[i]);
}

void store_labels(const int32_t* from, void* to, DType dtype, int64_t count) {
  if (dtype == DType::kUint8) narrow<uint8_t>(from, to, count);
  if (dtype == DType::kInt16) narrow<int16_t>(from, to, count);
  if (dtype == DType::kInt32) narrow<int32_t>(from, to, count);
}

// Cells of more classes and rows than these are worth the search of keep_winners.
constexpr int32_t kFew = 8, kManyRows = 4;
constexpr int32_t kRowGroup = 4;
static_assert(kMaxRows % kRowGroup == 0, "the last group would be a part of one");

// The classes of one cell that can win in it, with their corners; arrays are kPad over.
struct Survivors {
  float *top_left, *top_right, *bottom_left, *bottom_right;
  int32_t* label;
  float *left, *right;  // of one output row
  float *left_packed, *right_packed;
  int32_t* label_packed;
};

OVSDINO_INLINE Survivors split(const Strip& s) {
  const int64_t n = s.classes + 2 * kPad;
  float* p = s.survivors;
  return {p,         p + n,     p + 2 * n, p + 3 * n, reinterpret_cast<int32_t*>(p + 4 * n),
          p + 5 * n, p + 6 * n, p + 7 * n, p + 8 * n, reinterpret_cast<int32_t*>(p + 9 * n)};
}

// What a class must reach in each of the kLanes cells from x on: the largest of all classes' smallest corners.
OVSDINO_INLINE Floats find_bar(const Strip& s, int32_t x) {
  Floats bar = splat(-__builtin_inff());
  const float *top = s.top.values + x, *bottom = s.bottom.values + x;
  for (int32_t k = 0; k < s.classes; ++k, top += s.pitch, bottom += s.pitch) {
    bar = larger(bar, smaller(smaller(load(top), load(top + 1)), smaller(load(bottom), load(bottom + 1))));
  }
  return bar;
}

// The largest corner of class k in each of the kLanes cells from x on.
OVSDINO_INLINE Floats highest(const Strip& s, int32_t x, int32_t k) {
  const float *top = s.top.values + k * s.pitch + x, *bottom = s.bottom.values + k * s.pitch + x;
  return larger(larger(load(top), load(top + 1)), larger(load(bottom), load(bottom + 1)));
}

// Classes, and for each the lanes of a vector that want it, a bit a lane. The arrays are kPad over.
struct Wanted {
  int32_t *label, *lanes;
  int32_t count;

  // Appends class k if any lane wants it.
  OVSDINO_LAMBDA_INLINE void add(int32_t k, uint32_t bits) {
    label[count] = k;
    lanes[count] = static_cast<int32_t>(bits);
    count += bits != 0;
  }

  // Writes the classes that one lane wants, and returns how many.
  OVSDINO_LAMBDA_INLINE int32_t of_lane(int lane, int32_t* to) const {
    int32_t found = 0;
    for (int32_t i = 0; i < count; i += kLanes) {
      const uint32_t whole = count - i < kLanes ? (1u << (count - i)) - 1u : ~0u;
      const uint32_t bits = negative(load(lanes + i) << (31 - lane)) & whole;
      pack(to + found, load(label + i), bits);
      found += __builtin_popcount(bits);
    }
    return found;
  }
};

OVSDINO_INLINE void fill_cell(const Strip& s, int32_t begin, int32_t end, int32_t label) {
  const Ints labels = splat(label);
  for (int32_t row = 0; row < s.rows; ++row) {
    for (int32_t x = begin; x < end; x += kLanes) store(s.scratch_labels + row * s.out_pitch + x, labels);
  }
}

// A cell with an infinite or NaN corner: all classes, in torch's arithmetic.
void exact_cell(const Strip& s, int32_t cell, int32_t begin, int32_t end) {
  const int32_t right = begin < end ? s.x_taps[begin].i1 : cell;
  const auto corners = [&](int32_t k, int32_t* label) -> Corners {
    *label = k;
    const float *top = s.top.values + k * s.pitch, *bottom = s.bottom.values + k * s.pitch;
    return {top[cell], top[right], bottom[cell], bottom[right]};
  };
  for (int32_t row = 0; row < s.rows; ++row) {
    for (int32_t x = begin; x < end; ++x) {
      Best best = best_of(corners, s.classes, s.y_taps[row], s.x_taps[x]);
      if (s.want_confidence) {
        const float p = confidence_of(corners, s.classes, s.y_taps[row], s.x_taps[x], best.value);
        s.scratch_confidence[row * s.out_pitch + x] = p;
        if (s.has_threshold && p < s.threshold) best.label = s.classes;
      }
      s.scratch_labels[row * s.out_pitch + x] = best.label;
    }
  }
}

// Keeps, of `count` classes with these values at a row's two ends, those that can win between them.
OVSDINO_INLINE int32_t prune_row(const Survivors& v, int32_t count, float margin) {
  Floats lowest = splat(-__builtin_inff());
  for (int32_t i = 0; i < count; i += kLanes) lowest = larger(lowest, smaller(load(v.left + i), load(v.right + i)));
  const Floats bar = splat(largest(lowest) - margin);
  int32_t kept = 0;
  for (int32_t i = 0; i < count; i += kLanes) {
    const Floats left = load(v.left + i), right = load(v.right + i);
    const uint32_t whole = count - i < kLanes ? (1u << (count - i)) - 1u : ~0u;
    const uint32_t bits = at_least(larger(left, right), bar) & whole;
    pack(v.left_packed + kept, left, bits);
    pack(v.right_packed + kept, right, bits);
    pack(v.label_packed + kept, load(v.label + i), bits);
    kept += __builtin_popcount(bits);
  }
  return kept;
}

struct RowEnds {
  const float *left, *right;
  const int32_t* label;
  int32_t count;
};

// Confidence of a vector of pixels, and the background label for those below the threshold.
template <typename Value>
OVSDINO_INLINE void rate(const Strip& s, const Value& value, int32_t count, Floats best, float* confidence,
                         Ints& label) {
  Floats sum = splat(0.0f);
  for (int32_t i = 0; i < count; ++i) sum += exp_nonpositive(value(i) - best);
  const Floats probability = 1.0f / sum;
  store(confidence, probability);
  if (s.has_threshold) {
    const Ints unsure = probability < splat(s.threshold);
    label = (splat(s.classes) & unsure) | (label & ~unsure);
  }
}

OVSDINO_INLINE void argmax_row(const Strip& s, const RowEnds& ends, int32_t row, int32_t begin, int32_t end) {
  for (int32_t x = begin; x < end; x += kLanes) {
    const int64_t to = row * s.out_pitch + x;
    const Floats w0 = load(s.x_w0 + x), w1 = load(s.x_w1 + x);
    Floats best = ends.left[0] * w0 + ends.right[0] * w1;
    Ints label = splat(ends.label[0]);
    for (int32_t i = 1; i < ends.count; ++i) {
      take_larger(ends.left[i] * w0 + ends.right[i] * w1, ends.label[i], best, label);
    }
    if (s.want_confidence) {
      const auto value = [&](int32_t i) OVSDINO_LAMBDA_INLINE { return ends.left[i] * w0 + ends.right[i] * w1; };
      rate(s, value, ends.count, best, s.scratch_confidence + to, label);
    }
    store(s.scratch_labels + to, label);
  }
}

OVSDINO_INLINE void interpolate_cell(const Strip& s, const Survivors& v, const int32_t* candidates, int32_t count,
                                     int32_t cell, int32_t begin, int32_t end, float margin) {
  const float *top = s.top.values + cell, *bottom = s.bottom.values + cell;
  for (int32_t i = 0; i < count; ++i) {
    const int64_t at = candidates[i] * s.pitch;
    v.top_left[i] = top[at];
    v.top_right[i] = top[at + 1];
    v.bottom_left[i] = bottom[at];
    v.bottom_right[i] = bottom[at + 1];
    v.label[i] = candidates[i];
  }
  // Whole vectors: the lanes past the last survivor hold the lowest finite number (-inf times a weight of 0 is NaN).
  for (int32_t i = count; i % kLanes; ++i) {
    v.top_left[i] = v.top_right[i] = v.bottom_left[i] = v.bottom_right[i] = -__FLT_MAX__;
  }
  for (int32_t row = 0; row < s.rows; ++row) {
    const float w0 = s.y_taps[row].w0, w1 = s.y_taps[row].w1;
    for (int32_t i = 0; i < count; i += kLanes) {
      store(v.left + i, load(v.top_left + i) * w0 + load(v.bottom_left + i) * w1);
      store(v.right + i, load(v.top_right + i) * w0 + load(v.bottom_right + i) * w1);
    }
    RowEnds ends = {v.left, v.right, v.label, count};
    if (count > kLanes / 2) ends = {v.left_packed, v.right_packed, v.label_packed, prune_row(v, count, margin)};
    argmax_row(s, ends, row, begin, end);
  }
}

// Narrow cells: kLanes of them at once, with the classes that survive in any. A vector of pixels picks its corners out
// of the vector of cells.
OVSDINO_INLINE void interpolate_block(const Strip& s, int32_t x, int32_t begin, int32_t end, Floats bar) {
  int32_t* classes = s.candidates;
  int32_t count = 0;
  for (int32_t k = 0; k < s.classes; ++k) {
    classes[count] = k;
    count += at_least(highest(s, x, k), bar) != 0;
  }
  if (count == 0) return;  // every cell has an infinite corner
  if (count == 1 && !s.want_confidence) return fill_cell(s, begin, end, classes[0]);
  for (int32_t row = 0; row < s.rows; ++row) {
    const float w0 = s.y_taps[row].w0, w1 = s.y_taps[row].w1;
    float* ends = s.survivors;
    for (int32_t i = 0; i < count; ++i) {
      const float *top = s.top.values + classes[i] * s.pitch + x, *bottom = s.bottom.values + classes[i] * s.pitch + x;
      store(ends + 2 * kLanes * i, load(top) * w0 + load(bottom) * w1);
      store(ends + 2 * kLanes * i + kLanes, load(top + 1) * w0 + load(bottom + 1) * w1);
    }
    for (int32_t px = begin; px < end; px += kLanes) {
      const int64_t to = row * s.out_pitch + px;
      const Floats left = load(s.x_w0 + px), right = load(s.x_w1 + px);
      const Ints cell = (load(s.x_i0 + px) - x) & (kLanes - 1);  // pixels past `end` are overwritten by the next block
      const auto value = [&](int32_t i) OVSDINO_LAMBDA_INLINE {
        return pick(ends + 2 * kLanes * i, cell) * left + pick(ends + 2 * kLanes * i + kLanes, cell) * right;
      };
      Floats best = value(0);
      Ints label = splat(classes[0]);
      for (int32_t i = 1; i < count; ++i) take_larger(value(i), classes[i], best, label);
      if (s.want_confidence) rate(s, value, count, best, s.scratch_confidence + to, label);
      store(s.scratch_labels + to, label);
    }
  }
}

// The best class of each output row on one column of coarse pixels.
struct Edge {
  int32_t column;
  float value[kMaxRows];
  int32_t label[kMaxRows];
};

// What the cells of a strip share: lanes are output rows here.
struct Edges {
  float w0[kMaxRows], w1[kMaxRows];  // 0 past the last row
  Edge held[2];
  int32_t first;  // the columns first .. first + kLanes - 1 have lists
  int32_t counts[kLanes];
  int32_t *lists, list_pitch;
  Wanted wanted;    // scratch
  int32_t* places;  // scratch
};

OVSDINO_INLINE Edges start_edges(const Strip& s) {
  Edges edges = {};
  for (int32_t row = 0; row < s.rows; ++row) {
    edges.w0[row] = s.y_taps[row].w0;
    edges.w1[row] = s.y_taps[row].w1;
  }
  edges.held[0].column = edges.held[1].column = -1;
  edges.first = -kLanes;
  edges.list_pitch = s.classes + static_cast<int32_t>(kPad);
  edges.lists = s.candidates + kPad * edges.list_pitch;
  edges.wanted = {edges.lists + kPad * edges.list_pitch, edges.lists + (kPad + 1) * edges.list_pitch, 0};
  edges.places = edges.lists + (kPad + 2) * edges.list_pitch;
  return edges;
}

// Lists the classes that can win on each of the kLanes columns from x on, by the rule of the bar in one dimension.
OVSDINO_INLINE void list_columns(const Strip& s, Edges& edges, int32_t x) {
  Floats bar = splat(-__builtin_inff());
  const float *top = s.top.values + x, *bottom = s.bottom.values + x;
  for (int32_t k = 0; k < s.classes; ++k) {
    bar = larger(bar, smaller(load(top + k * s.pitch), load(bottom + k * s.pitch)));
  }
  Wanted wanted = {edges.wanted.label, edges.wanted.lanes, 0};
  for (int32_t k = 0; k < s.classes; ++k) {
    wanted.add(k, at_least(larger(load(top + k * s.pitch), load(bottom + k * s.pitch)), bar));
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    int32_t* list = edges.lists + lane * edges.list_pitch;
    edges.counts[lane] = wanted.of_lane(lane, list);
    if (edges.counts[lane] == 0) list[edges.counts[lane]++] = 0;  // a NaN or infinity: exact_cell has the cells there
  }
  edges.first = x;
}

OVSDINO_INLINE const Edge& edge_at(const Strip& s, Edges& edges, int32_t column) {
  Edge& edge = edges.held[column & 1];
  if (edge.column == column) return edge;
  if (column < edges.first || column >= edges.first + kLanes) list_columns(s, edges, column);
  const int32_t *list = edges.lists + (column - edges.first) * edges.list_pitch,
                count = edges.counts[column - edges.first];
  const float *top = s.top.values + column, *bottom = s.bottom.values + column;
  for (int32_t row = 0; row < s.rows; row += kLanes) {
    const Floats w0 = load(edges.w0 + row), w1 = load(edges.w1 + row);
    const auto value = [&](int32_t i) OVSDINO_LAMBDA_INLINE {
      return top[list[i] * s.pitch] * w0 + bottom[list[i] * s.pitch] * w1;
    };
    Floats best = value(0);
    Ints label = splat(list[0]);
    for (int32_t i = 1; i < count; ++i) take_larger(value(i), list[i], best, label);
    store(edge.value + row, best);
    store(edge.label + row, label);
  }
  edge.column = column;
  return edge;
}

// Keeps, of the classes that reach the bar of a cell, those that can win in it, in their order; edges.wanted.lanes gets
// the rows in which they can, a bit a row.
//
// Along an output row of the cell each class is a line. Let A be the best class of its left end, B of its right end,
// and x where the lines of the two meet. A third class is not above either end, so a class that is not above the two at
// x is above the larger of them nowhere: their maximum is convex, with its only break at x.
OVSDINO_INLINE int32_t keep_winners(const Strip& s, Edges& edges, int32_t cell, float peak, int32_t* list,
                                    int32_t count) {
  const Edge &left = edge_at(s, edges, cell), &right = edge_at(s, edges, cell + 1);
  const float *top = s.top.values + cell, *bottom = s.bottom.values + cell;
  float left_of_b[kMaxRows] = {}, right_of_a[kMaxRows] = {};
  for (int32_t row = 0; row < s.rows; ++row) {
    const int64_t a = left.label[row] * s.pitch + 1, b = right.label[row] * s.pitch;
    right_of_a[row] = top[a] * edges.w0[row] + bottom[a] * edges.w1[row];
    left_of_b[row] = top[b] * edges.w0[row] + bottom[b] * edges.w1[row];
  }
  constexpr int kVectors = kMaxRows / kLanes;
  constexpr uint32_t kAll = (1u << kLanes) - 1u;
  Floats top_left[kVectors], top_right[kVectors], bottom_left[kVectors], bottom_right[kVectors], bar[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int row = v * kLanes;
    const Floats a0 = load(left.value + row), a1 = load(right_of_a + row);
    const Floats b0 = load(left_of_b + row), b1 = load(right.value + row);
    const Floats x1 = (a0 - b0) / larger((a0 - b0) + (b1 - a1), splat(1e-30f)), x0 = 1.0f - x1;
    // Rounding, here and of a pixel's value, is a few 2^-24 of the largest numbers.
    const Floats scale = larger(larger(larger(a0, -a0), larger(a1, -a1)), larger(larger(b0, -b0), larger(b1, -b1)));
    const Floats margin = larger(scale, splat(peak)) * 0x1p-18f + 1e-30f;
    bar[v] = smaller(a0 * x0 + a1 * x1, b0 * x0 + b1 * x1) - margin;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (row + lane >= s.rows) bar[v][lane] = __builtin_inff();
    }
    const Floats y0 = load(edges.w0 + row), y1 = load(edges.w1 + row);
    top_left[v] = y0 * x0, top_right[v] = y0 * x1, bottom_left[v] = y1 * x0, bottom_right[v] = y1 * x1;
  }
  int32_t* rows_of = edges.wanted.lanes;
  for (int32_t i = 0; i < count; ++i) {
    const int64_t at = list[i] * s.pitch;
    uint32_t rows = 0;
    for (int v = 0; v < kVectors; ++v) {
      const Floats value = top[at] * top_left[v] + top[at + 1] * top_right[v] + bottom[at] * bottom_left[v] +
                           bottom[at + 1] * bottom_right[v];
      rows |= (at_least(bar[v], value) ^ kAll) << v * kLanes;  // a NaN is kept
    }
    rows_of[i] = static_cast<int32_t>(rows);
  }
  // Packed afterwards: lists that grow in the loop would make each store wait for the comparison before it.
  int32_t kept = 0;
  for (int32_t i = 0; i < count; i += kLanes) {
    const Ints rows = load(rows_of + i), label = load(list + i);
    const uint32_t whole = count - i < kLanes ? (1u << (count - i)) - 1u : ~0u;
    const uint32_t bits = negative(rows != Ints{}) & whole;
    pack(rows_of + kept, rows, bits);
    pack(list + kept, label, bits);
    kept += __builtin_popcount(bits);
  }
  return kept;
}

// A cell of the classes that keep_winners left, kRowGroup rows at a time: a class is then read once for all of them,
// and their maxima do not wait for one another.
OVSDINO_INLINE void interpolate_winners(const Strip& s, const Edges& edges, const int32_t* list, int32_t count,
                                        int32_t cell, int32_t begin, int32_t end) {
  const float *top = s.top.values + cell, *bottom = s.bottom.values + cell;
  float *left = s.survivors, *right = left + kMaxRows;  // of a class and an output row
  for (int32_t i = 0; i < count; ++i) {
    const int64_t at = list[i] * s.pitch, to = 2 * kMaxRows * i;
    for (int32_t row = 0; row < s.rows; row += kLanes) {
      const Floats w0 = load(edges.w0 + row), w1 = load(edges.w1 + row);
      store(left + to + row, top[at] * w0 + bottom[at] * w1);
      store(right + to + row, top[at + 1] * w0 + bottom[at + 1] * w1);
    }
  }
  for (int32_t row = 0; row < s.rows; row += kRowGroup) {
    const Ints group = splat(((1 << kRowGroup) - 1) << row);
    int32_t places = 0;
    for (int32_t i = 0; i < count; i += kLanes) {
      const uint32_t whole = count - i < kLanes ? (1u << (count - i)) - 1u : ~0u;
      const uint32_t bits = negative((load(edges.wanted.lanes + i) & group) != Ints{}) & whole;
      pack(edges.places + places, counting() + i, bits);
      pack(edges.wanted.label + places, load(list + i), bits);
      places += __builtin_popcount(bits);
    }
    if (places == 0) continue;  // a corner is infinite or NaN: exact_cell has this cell
    for (int32_t x = begin; x < end; x += kLanes) {
      const Floats w0 = load(s.x_w0 + x), w1 = load(s.x_w1 + x);
      Floats best[kRowGroup];
      Ints label[kRowGroup];
      const auto value = [&](int32_t place, int r) OVSDINO_LAMBDA_INLINE {
        const float* ends = left + 2 * kMaxRows * edges.places[place] + row + r;
        return ends[0] * w0 + ends[kMaxRows] * w1;
      };
      for (int r = 0; r < kRowGroup; ++r) best[r] = value(0, r), label[r] = splat(edges.wanted.label[0]);
      for (int32_t i = 1; i < places; ++i) {
        const Ints index = splat(edges.wanted.label[i]);
        for (int r = 0; r < kRowGroup; ++r) take_larger(value(i, r), index, best[r], label[r]);
      }
      for (int r = 0; r < kRowGroup; ++r) store(s.scratch_labels + (row + r) * s.out_pitch + x, label[r]);
    }
  }
}

// Wide cells: each by itself.
OVSDINO_INLINE void interpolate_cells(const Strip& s, Edges& edges, int32_t x, int32_t cells, Floats bar,
                                      float margin) {
  Floats peak = splat(-__builtin_inff());
  Wanted wanted = {edges.wanted.label, edges.wanted.lanes, 0};
  for (int32_t k = 0; k < s.classes; ++k) {
    const Floats high = highest(s, x, k);
    peak = larger(peak, high);
    wanted.add(k, at_least(high, bar));
  }
  int32_t counts[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    counts[lane] = wanted.of_lane(lane, s.candidates + lane * edges.list_pitch);
  }
  const Survivors survivors = split(s);
  for (int32_t lane = 0; lane < cells; ++lane) {
    const int32_t begin = s.first_x[x + lane], end = s.first_x[x + lane + 1];
    int32_t* candidates = s.candidates + lane * edges.list_pitch;
    int32_t count = counts[lane];
    if (begin == end || count == 0) continue;
    const bool search = count > kFew && s.rows >= kManyRows && !s.want_confidence;
    if (search) count = keep_winners(s, edges, x + lane, peak[lane], candidates, count);
    if (count == 1 && !s.want_confidence) {
      fill_cell(s, begin, end, candidates[0]);
    } else if (search) {
      interpolate_winners(s, edges, candidates, count, x + lane, begin, end);
    } else {
      interpolate_cell(s, survivors, candidates, count, x + lane, begin, end, margin);
    }
  }
}

void run_strip(const Strip& s) {
  const float margin = s.want_confidence ? kTail + __builtin_logf(static_cast<float>(s.classes)) : 0.0f;
  // Measured at 19 x (292 x 584) -> 1024 x 2048, random: blocks are 3.5 times as fast as cells of 3.5 pixels.
  const bool narrow = s.out_w >= s.in_w && s.out_w < s.in_w * (kLanes / 2);
  Edges edges = start_edges(s);
  for (int32_t x = 0; x < s.in_w; x += kLanes) {
    const int32_t cells = s.in_w - x < kLanes ? s.in_w - x : kLanes;
    const int32_t begin = s.first_x[x], end = s.first_x[x + cells];
    if (begin == end) continue;
    const Floats bar = find_bar(s, x) - margin;
    if (narrow) {
      interpolate_block(s, x, begin, end, bar);
    } else {
      interpolate_cells(s, edges, x, cells, bar, margin);
    }
    for (int32_t cell = x; cell < x + cells; ++cell) {
      const float finite =
          s.top.finite[cell] + s.top.finite[cell + 1] + s.bottom.finite[cell] + s.bottom.finite[cell + 1];
      if (finite != 0.0f) exact_cell(s, cell, s.first_x[cell], s.first_x[cell + 1]);
    }
  }
}

}  // namespace

const UpsampleKernel kUpsample = {load_row, run_strip, store_labels};

}  // namespace OVSDINO_ISA
}  // namespace ovsdino
