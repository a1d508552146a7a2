// Where bilinear resizing reads, in exactly torch's float32 arithmetic (align_corners=False, no scale given).
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/types.h"

namespace ovsdino {

// out = w0 * in[i0] + w1 * in[i1]
struct Tap {
  int32_t i0, i1;
  float w0, w1;
};

OVSDINO_HD Tap bilinear_tap(int32_t out_index, int32_t in_size, int32_t out_size) {
  if (in_size == out_size) return {out_index, out_index, 1.0f, 0.0f};
  const float scale = static_cast<float>(in_size) / static_cast<float>(out_size);
  // One rounding: torch's own build contracts this to a fused multiply-add (measured: 46 of 1000 weights differ
  // without).
  float source = fmaf(scale, static_cast<float>(out_index) + 0.5f, -0.5f);
  source = source < 0.0f ? 0.0f : source;
  int32_t i0 = static_cast<int32_t>(source);
  i0 = i0 < in_size - 1 ? i0 : in_size - 1;
  const float w1 = fminf(fmaxf(source - static_cast<float>(i0), 0.0f), 1.0f);
  return {i0, i0 < in_size - 1 ? i0 + 1 : i0, 1.0f - w1, w1};
}

// The first output index whose tap starts at in_index or later; out_size if none does.
OVSDINO_HD int32_t first_output(int32_t in_index, int32_t in_size, int32_t out_size) {
  if (in_index <= 0) return 0;
  if (in_index >= in_size) return out_size;
  constexpr int32_t kSmall = 1 << 15;  // a GPU divides 32 bits several times as fast as 64
  int32_t out_index = in_size <= kSmall && out_size <= kSmall
                          ? static_cast<int32_t>((2 * static_cast<uint32_t>(in_index) + 1) *
                                                 static_cast<uint32_t>(out_size) / (2 * static_cast<uint32_t>(in_size)))
                          : static_cast<int32_t>((2 * int64_t{in_index} + 1) * out_size / (2 * int64_t{in_size}));
  while (out_index > 0 && bilinear_tap(out_index - 1, in_size, out_size).i0 >= in_index) --out_index;
  while (out_index < out_size && bilinear_tap(out_index, in_size, out_size).i0 < in_index) ++out_index;
  return out_index;
}

}  // namespace ovsdino
