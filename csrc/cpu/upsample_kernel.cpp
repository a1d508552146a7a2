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

template <typename T>
OVSDINO_INLINE void load_values(const RowSource& source, const CoarseRow& row) {
  const T* data = static_cast<const T*>(source.data);
  const int32_t width = source.width;
  for (int64_t x = 0; x < source.pitch; ++x) row.finite[x] = 0.0f;
  for (int32_t k = 0; k < source.classes; ++k) {
    const T* from = data + k * source.stride_k;
    float* to = row.values + k * source.pitch;
    if (source.stride_x == 1) {
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

// The cells from x on, one bit each, in which class k reaches the bar.
OVSDINO_INLINE uint32_t cells_reached(const Strip& s, int32_t x, int32_t k, Floats bar) {
  const float *top = s.top.values + k * s.pitch + x, *bottom = s.bottom.values + k * s.pitch + x;
  return at_least(larger(larger(load(top), load(top + 1)), larger(load(bottom), load(bottom + 1))), bar);
}

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
    count += cells_reached(s, x, k, bar) != 0;
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

// Wide cells: each by itself.
OVSDINO_INLINE void interpolate_cells(const Strip& s, int32_t x, int32_t cells, Floats bar, float margin) {
  int32_t counts[kLanes] = {};
  for (int32_t k = 0; k < s.classes; ++k) {
    for (uint32_t bits = cells_reached(s, x, k, bar); bits; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      s.candidates[lane * s.classes + counts[lane]++] = k;
    }
  }
  const Survivors survivors = split(s);
  for (int32_t lane = 0; lane < cells; ++lane) {
    const int32_t begin = s.first_x[x + lane], end = s.first_x[x + lane + 1];
    const int32_t* candidates = s.candidates + lane * s.classes;
    if (begin == end || counts[lane] == 0) continue;
    if (counts[lane] == 1 && !s.want_confidence) {
      fill_cell(s, begin, end, candidates[0]);
    } else {
      interpolate_cell(s, survivors, candidates, counts[lane], x + lane, begin, end, margin);
    }
  }
}

void run_strip(const Strip& s) {
  const float margin = s.want_confidence ? kTail + __builtin_logf(static_cast<float>(s.classes)) : 0.0f;
  // Measured at 19 x (292 x 584) -> 1024 x 2048, random: blocks are 3.5 times as fast as cells of 3.5 pixels.
  const bool narrow = s.out_w >= s.in_w && s.out_w < s.in_w * (kLanes / 2);
  for (int32_t x = 0; x < s.in_w; x += kLanes) {
    const int32_t cells = s.in_w - x < kLanes ? s.in_w - x : kLanes;
    const int32_t begin = s.first_x[x], end = s.first_x[x + cells];
    if (begin == end) continue;
    const Floats bar = find_bar(s, x) - margin;
    if (narrow) {
      interpolate_block(s, x, begin, end, bar);
    } else {
      interpolate_cells(s, x, cells, bar, margin);
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
