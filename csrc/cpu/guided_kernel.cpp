// The band kernel of guided_upsample; compiled once per instruction set (see simd.h).
//
// Vectors run along fine columns. A block is kRows rows of one vector: its 25 scores are made kSide neighbours at a
// time (a coarse vector serves every row, a fine one every neighbour), its weights stay in the level 1 cache, and the
// combination adds kClasses classes at a time in registers.
#include "guided_kernel.h"

#include "ovsdino/detail/number.h"
#include "simd.h"

namespace ovsdino {
namespace OVSDINO_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxRows = 4;  // 32 registers: 4 rows x 5 neighbours, or 4 rows x 4 classes
#else
constexpr int kMaxRows = 2;
#endif
constexpr int kClasses = 4;

typedef float Four __attribute__((vector_size(16)));

template <typename T>
OVSDINO_INLINE void load_coarse_as(const CoarseRun& r) {
  for (int32_t i = 0; r.norm && i < r.cells; ++i) r.norm[i] = 0.0f;
  for (int32_t c = 0; c < r.channels + (r.norm ? 1 : 0); ++c) {
    const T* from = static_cast<const T*>(r.data) + c * r.stride_c;
    float* to = r.to + c * r.channel_pitch;
    for (int32_t i = 0; i < r.cells; ++i, to += r.scale) {
      const int32_t cell = r.first_cell + i;
      const bool inside = cell >= 0 && cell < r.width;
      float value = 0.0f;
      if (inside && c < r.channels) value = to_float(from[cell * r.stride_x]);
      if (r.norm && c < r.channels) r.norm[i] += value * value;
      if (c == r.channels) value = r.norm[i];
      const Four four = {value, value, value, value};
      // Whole fours: the next cell overwrites what runs over.
      for (int32_t x = 0; x < r.scale; x += 4) memcpy(to + x, &four, sizeof(four));
    }
  }
}

void load_coarse(const CoarseRun& r) {
  if (r.dtype == DType::kFloat32) load_coarse_as<float>(r);
  if (r.dtype == DType::kFloat16) load_coarse_as<Half>(r);
  if (r.dtype == DType::kBFloat16) load_coarse_as<BFloat16>(r);
}

template <typename T>
OVSDINO_INLINE void load_fine_as(const FineRows& r) {
  for (int32_t y = 0; y < r.rows; ++y) {
    const T* row = static_cast<const T*>(r.data) + y * r.stride_y;
    float* to_row = r.to + y * r.to_stride_y;
    if (r.stride_x == 1) {
      for (int32_t c = 0; c < r.channels; ++c) {
        const T* from = row + c * r.stride_c;
        float* to = to_row + c * r.to_stride_c;
        for (int32_t x = 0; x < r.width; ++x) to[x] = to_float(from[x]);
      }
    } else {  // channels last, most likely: in the order of the memory
      for (int32_t x = 0; x < r.width; ++x) {
        for (int32_t c = 0; c < r.channels; ++c) {
          to_row[c * r.to_stride_c + x] = to_float(row[x * r.stride_x + c * r.stride_c]);
        }
      }
    }
  }
}

void load_fine(const FineRows& r) {
  if (r.dtype == DType::kFloat32) load_fine_as<float>(r);
  if (r.dtype == DType::kFloat16) load_fine_as<Half>(r);
  if (r.dtype == DType::kBFloat16) load_fine_as<BFloat16>(r);
}

// e^x for x <= 0; 0 below -87, NaN for NaN.
OVSDINO_INLINE Floats weight_of(Floats x) {
  const Ints tiny = x < splat(-87.0f);
  return (Floats)(((Ints)exp_nonpositive(x)) & ~tiny);
}

// One block: rows y .. y + kRows of the band, columns x .. x + kLanes.
struct Place {
  int32_t x, y;
};

template <int kRows>
struct Block {
  Floats of[kNear][kRows];
};

// block[j][row] = sum_c fine_c(row) * coarse_c(neighbour j)
template <int kRows>
OVSDINO_INLINE void correlate(const GuidedBand& b, const Widened& coarse, const Fine& fine, int32_t channels, Place at,
                              Block<kRows>* block) {
  const float* pixel = fine.data + at.y * fine.stride_y + at.x;
  for (int32_t dy = b.near_begin; dy < b.near_end; ++dy) {
    Floats sum[kSide][kRows] = {};
    const float* from = coarse.row[dy] + at.x;
    for (int32_t c = 0; c < channels; ++c) {
      Floats value[kRows];
      for (int r = 0; r < kRows; ++r) value[r] = load(pixel + c * fine.stride_c + r * fine.stride_y);
      for (int dx = 0; dx < kSide; ++dx) {
        const Floats near = load(from + c * coarse.channel_pitch + dx * b.scale);
        for (int r = 0; r < kRows; ++r) sum[dx][r] += value[r] * near;
      }
    }
    for (int dx = 0; dx < kSide; ++dx) {
      for (int r = 0; r < kRows; ++r) block->of[dy * kSide + dx][r] = sum[dx][r];
    }
  }
}

// weights = softmax_j(beta * (2 dot - |lo|^2) + bias); `block` holds dot, then 2 dot - |lo|^2.
template <int kRows>
OVSDINO_INLINE void softmax(const GuidedBand& b, Place at, Block<kRows>* block, Block<kRows>* weights) {
  Floats best[kRows], sum[kRows];
  for (int r = 0; r < kRows; ++r) best[r] = splat(-__builtin_inff()), sum[r] = splat(0.0f);
  for (int32_t dy = b.near_begin; dy < b.near_end; ++dy) {
    for (int dx = 0; dx < kSide; ++dx) {
      const int j = dy * kSide + dx;
      const Floats squared = load(b.low.row[dy] + b.channels * b.low.channel_pitch + at.x + dx * b.scale);
      const Floats bias = load(b.bias_x[dx] + at.x);
      for (int r = 0; r < kRows; ++r) {
        const Floats similarity = 2.0f * block->of[j][r] - squared;
        const Floats score = b.beta * similarity + (bias + b.bias_y[(at.y + r) * kSide + dy]);
        block->of[j][r] = similarity;
        weights->of[j][r] = score;
        best[r] = larger(best[r], score);
      }
    }
  }
  const int begin = b.near_begin * kSide, end = b.near_end * kSide;
  for (int j = begin; j < end; ++j) {
    for (int r = 0; r < kRows; ++r) {
      const Floats weight = weight_of(weights->of[j][r] - best[r]);
      weights->of[j][r] = weight;
      sum[r] += weight;
    }
  }
  for (int r = 0; r < kRows; ++r) sum[r] = 1.0f / sum[r];
  for (int j = begin; j < end; ++j) {
    for (int r = 0; r < kRows; ++r) weights->of[j][r] *= sum[r];
  }
}

// Loops are unrolled by order: with an index that varies the sums would lie in memory.
template <int kRows, int kCount, typename T>
OVSDINO_INLINE void combine_some(const GuidedBand& b, const Widened& coarse, int32_t first, Place at,
                                 const Block<kRows>& weights, float factor) {
  Floats sum[kCount][kRows];
#pragma GCC unroll 8
  for (int k = 0; k < kCount; ++k) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[k][r] = splat(0.0f);
  }
  for (int32_t dy = b.near_begin; dy < b.near_end; ++dy) {
    const float* from = coarse.row[dy] + first * coarse.channel_pitch + at.x;
    for (int dx = 0; dx < kSide; ++dx) {
      Floats weight[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) weight[r] = weights.of[dy * kSide + dx][r];
#pragma GCC unroll 8
      for (int k = 0; k < kCount; ++k) {
        const Floats near = load(from + k * coarse.channel_pitch + dx * b.scale);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[k][r] += weight[r] * near;
      }
    }
  }
  T* to = static_cast<T*>(b.out) + first * b.out_stride_c + at.y * b.out_stride_y + at.x;
  if (sizeof(T) == sizeof(float) && b.width - at.x >= kLanes) {
#pragma GCC unroll 8
    for (int k = 0; k < kCount; ++k) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        store(reinterpret_cast<float*>(to + k * b.out_stride_c + r * b.out_stride_y), sum[k][r] * factor);
      }
    }
    return;
  }
  float lanes[kCount * kRows][kLanes];
#pragma GCC unroll 8
  for (int k = 0; k < kCount; ++k) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) store(lanes[k * kRows + r], sum[k][r] * factor);
  }
  const int32_t count = b.width - at.x < kLanes ? b.width - at.x : kLanes;
  for (int i = 0; i < kCount * kRows; ++i) {
    T* row = to + i / kRows * b.out_stride_c + i % kRows * b.out_stride_y;
    for (int x = 0; x < count; ++x) from_float(lanes[i][x], row + x);
  }
}

// out_c(row) = factor * sum_j weights[j][row] * coarse_c(neighbour j)
template <int kRows, typename T>
OVSDINO_INLINE void combine(const GuidedBand& b, const Widened& coarse, int32_t channels, Place at,
                            const Block<kRows>& weights, float factor) {
  int32_t c = 0;
  for (; c + kClasses <= channels; c += kClasses) {
    combine_some<kRows, kClasses, T>(b, coarse, c, at, weights, factor);
  }
  for (; c < channels; ++c) combine_some<kRows, 1, T>(b, coarse, c, at, weights, factor);
}

template <int kRows>
OVSDINO_INLINE void combine(const GuidedBand& b, const Widened& coarse, int32_t channels, Place at,
                            const Block<kRows>& weights, float factor) {
  if (b.out_dtype == DType::kFloat32) combine<kRows, float>(b, coarse, channels, at, weights, factor);
  if (b.out_dtype == DType::kFloat16) combine<kRows, Half>(b, coarse, channels, at, weights, factor);
  if (b.out_dtype == DType::kBFloat16) combine<kRows, BFloat16>(b, coarse, channels, at, weights, factor);
}

template <int kRows>
void forward_block(const GuidedBand& b, Place at) {
  Block<kRows> similarity, weights;
  correlate(b, b.low, b.high, b.channels, at, &similarity);
  softmax(b, at, &similarity, &weights);
  combine(b, b.logits, b.classes, at, weights, 1.0f);
}

// With D = grad of out: dw_j = D . logits_j, ds_j = w_j (dw_j - sum_j w_j dw_j), d hi = 2 beta sum_j ds_j lo_j and
// d beta = sum_j ds_j similarity_j.
template <int kRows>
void backward_block(const GuidedBand& b, Place at) {
  Block<kRows> similarity, weights, dscores;
  correlate(b, b.low, b.high, b.channels, at, &similarity);
  softmax(b, at, &similarity, &weights);
  correlate(b, b.logits, b.grad, b.classes, at, &dscores);
  const int begin = b.near_begin * kSide, end = b.near_end * kSide;
  Floats mean[kRows] = {}, total = splat(0.0f);
  for (int j = begin; j < end; ++j) {
    for (int r = 0; r < kRows; ++r) mean[r] += weights.of[j][r] * dscores.of[j][r];
  }
  for (int j = begin; j < end; ++j) {
    for (int r = 0; r < kRows; ++r) {
      const Floats dscore = weights.of[j][r] * (dscores.of[j][r] - mean[r]);
      dscores.of[j][r] = dscore;
      total += dscore * similarity.of[j][r];
      const int64_t to = ((at.y + r) * kNear + j) * b.pitch + at.x;
      store(b.weights + to, weights.of[j][r]);
      store(b.dscores + to, dscore);
    }
  }
  for (int i = 0; i < kLanes; ++i) *b.grad_beta += total[i];
  combine(b, b.low, b.channels, at, dscores, 2.0f * b.beta);
}

void forward(const GuidedBand& b) {
  for (int32_t x = 0; x < b.width; x += kLanes) {
    int32_t y = 0;
    for (; y + kMaxRows <= b.scale; y += kMaxRows) forward_block<kMaxRows>(b, {x, y});
    for (; kMaxRows > 2 && y + 2 <= b.scale; y += 2) forward_block<2>(b, {x, y});
    for (; y < b.scale; ++y) forward_block<1>(b, {x, y});
  }
}

void backward(const GuidedBand& b) {
  for (int32_t x = 0; x < b.width; x += kLanes) {
    int32_t y = 0;
    for (; y + kMaxRows <= b.scale; y += kMaxRows) backward_block<kMaxRows>(b, {x, y});
    for (; kMaxRows > 2 && y + 2 <= b.scale; y += 2) backward_block<2>(b, {x, y});
    for (; y < b.scale; ++y) backward_block<1>(b, {x, y});
  }
}

template <int kCount>
OVSDINO_INLINE void gather_some(const GuidedGather& g, int32_t first, int64_t wide_pitch) {
  const int32_t width = g.cells * g.scale;
  for (int32_t x = 0; x < width; x += kLanes) {
    Floats sum[kCount] = {};
    for (int32_t dy = g.near_begin; dy < g.near_end; ++dy) {
      Floats part[kCount] = {};  // short sums, whose rounding error is a matrix product's
      for (int32_t r = 0; r < g.scale; ++r) {
        const int64_t y = (g.row + kReach - dy) * g.scale + r;
        const float* factor = g.factors + (y * kNear + dy * kSide) * g.pitch + x;
        const float* value = g.values ? g.values + first * g.value_stride_c + y * g.pitch + x : nullptr;
        for (int dx = 0; dx < kSide; ++dx) {
          const int32_t shift = (kReach - dx) * g.scale;
          const Floats by = load(factor + dx * g.pitch + shift);
          for (int k = 0; k < kCount; ++k) {
            if (value) {
              part[k] += by * load(value + k * g.value_stride_c + shift);
            } else {
              part[k] += by;
            }
          }
        }
      }
      for (int k = 0; k < kCount; ++k) sum[k] += part[k];
    }
    for (int k = 0; k < kCount; ++k) store(g.wide + k * wide_pitch + x, sum[k]);
  }
  for (int k = 0; k < kCount; ++k) {
    const float* from = g.wide + k * wide_pitch;
    for (int32_t cell = 0; cell < g.cells; ++cell) {
      float sum = 0.0f;
      for (int32_t i = 0; i < g.scale; ++i) sum += from[cell * g.scale + i];
      g.sums[(first + k) * g.cells + cell] = sum;
    }
  }
}

void gather(const GuidedGather& g) {
  const int64_t wide_pitch = g.cells * g.scale + kFinePad;
  int32_t c = 0;
  for (; c + kGatherChannels <= g.channels; c += kGatherChannels) gather_some<kGatherChannels>(g, c, wide_pitch);
  for (; c < g.channels; ++c) gather_some<1>(g, c, wide_pitch);
}

}  // namespace

const GuidedKernel kGuided = {load_coarse, load_fine, forward, backward, gather};

}  // namespace OVSDINO_ISA
}  // namespace ovsdino
