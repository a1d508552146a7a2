// The gather kernel of mask_pool; compiled once per instruction set (see simd.h).
//
// For each block of rows that fits the level 2 cache, each list adds its rows of the block, kSpan vectors of channels
// at a time in registers. A sum is thus made of short partial sums, which also keeps its rounding error below a plain
// loop's.
#include "gather_kernel.h"

#include "ovsdino/detail/number.h"
#include "simd.h"

namespace ovsdino {
namespace OVSDINO_ISA {
namespace {

constexpr int kSpan = 8;

struct Entries {
  const int32_t* row;
  const float* weight;
  int64_t count;
};

template <int kVectors>
OVSDINO_INLINE void add_rows(const Entries& entries, const float* in, int64_t stride, float* out) {
  Floats sum[kVectors] = {};
  if (entries.weight) {
    for (int64_t e = 0; e < entries.count; ++e) {
      const float* from = in + entries.row[e] * stride;
      const float weight = entries.weight[e];
      for (int v = 0; v < kVectors; ++v) sum[v] += load(from + v * kLanes) * weight;
    }
  } else {
    for (int64_t e = 0; e < entries.count; ++e) {
      const float* from = in + entries.row[e] * stride;
      for (int v = 0; v < kVectors; ++v) sum[v] += load(from + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, load(out + v * kLanes) + sum[v]);
}

OVSDINO_INLINE void add_rows_scalar(const Entries& entries, const float* in, int64_t stride, float* out) {
  float sum = 0.0f;
  for (int64_t e = 0; e < entries.count; ++e) {
    sum += in[entries.row[e] * stride] * (entries.weight ? entries.weight[e] : 1.0f);
  }
  *out += sum;
}

// in: row 0 of all rows (it may lie before the block held), out: the list's sums.
OVSDINO_INLINE void add_list(const Entries& entries, const float* in, int64_t stride, int64_t channels, float* out) {
  int64_t c = 0;
  for (; c + kSpan * kLanes <= channels; c += kSpan * kLanes) add_rows<kSpan>(entries, in + c, stride, out + c);
  for (; c + kLanes <= channels; c += kLanes) add_rows<1>(entries, in + c, stride, out + c);
  for (; c < channels; ++c) add_rows_scalar(entries, in + c, stride, out + c);
}

template <typename T>
OVSDINO_INLINE void widen(const T* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

template <typename T>
OVSDINO_INLINE void divide_and_store(const Gather& g, const float* sums, int64_t sums_stride) {
  for (int64_t i = 0; i < g.lists.count; ++i) {
    const float divisor = g.divisor ? g.divisor[i] : 1.0f;
    T* out = static_cast<T*>(g.out) + i * g.out_stride;
    for (int64_t c = 0; c < g.channels; ++c) from_float(sums[i * sums_stride + c] / divisor, out + c);
  }
}

template <typename T>
OVSDINO_INLINE void gather(const Gather& g) {
  constexpr bool kIsFloat = sizeof(T) == sizeof(float);
  const RowLists& lists = g.lists;
  float* sums = kIsFloat ? static_cast<float*>(g.out) : g.sums;
  const int64_t sums_stride = kIsFloat ? g.out_stride : g.channels;
  for (int64_t i = 0; i < lists.count; ++i) {
    for (int64_t c = 0; c < g.channels; ++c) sums[i * sums_stride + c] = 0.0f;
    g.cursor[i] = lists.begin[i];
  }
  for (int64_t first = 0; first < g.rows; first += g.block_rows) {
    const int64_t end = first + g.block_rows < g.rows ? first + g.block_rows : g.rows;
    const T* from = static_cast<const T*>(g.in) + first * g.in_stride;
    const float* held = reinterpret_cast<const float*>(from);
    if (!kIsFloat) {
      for (int64_t r = first; r < end; ++r)
        widen(from + (r - first) * g.in_stride, g.block + (r - first) * g.channels, g.channels);
      held = g.block;
    }
    const int64_t stride = kIsFloat ? g.in_stride : g.channels;
    for (int64_t i = 0; i < lists.count; ++i) {
      const int64_t begin = g.cursor[i], stop = lists.begin[i + 1];
      int64_t next = begin;
      while (next < stop && lists.row[next] < end) ++next;
      if (next == begin) continue;
      g.cursor[i] = next;
      const Entries entries = {lists.row + begin, lists.weight ? lists.weight + begin : nullptr, next - begin};
      add_list(entries, held - first * stride, stride, g.channels, sums + i * sums_stride);
    }
  }
  if (g.divisor || !kIsFloat) divide_and_store<T>(g, sums, sums_stride);
}

void run(const Gather& g) {
  if (g.dtype == DType::kFloat32) gather<float>(g);
  if (g.dtype == DType::kFloat16) gather<Half>(g);
  if (g.dtype == DType::kBFloat16) gather<BFloat16>(g);
}

}  // namespace

const GatherKernel kGather = {run};

}  // namespace OVSDINO_ISA
}  // namespace ovsdino
