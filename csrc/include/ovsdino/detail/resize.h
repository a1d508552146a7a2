// The body of preprocess: one output pixel from its taps, for any resize.
#pragma once

#include <cmath>
#include <cstdint>

#include "ovsdino/detail/bilinear.h"
#include "ovsdino/detail/number.h"
#include "ovsdino/detail/pixel_source.h"

namespace ovsdino {

// The triangle filter of one axis, as PIL and torch place it: taps begin to end - 1 have a weight, not yet normalized.
struct Triangle {
  float scale, inverse, support;
  int32_t size;

  OVSDINO_HD_MEMBER Triangle(int64_t in_size, int64_t out_size)
      : scale(static_cast<float>(in_size) / static_cast<float>(out_size)),
        inverse(scale > 1.0f ? 1.0f / scale : 1.0f),
        support(scale > 1.0f ? scale : 1.0f),
        size(static_cast<int32_t>(in_size)) {}

  OVSDINO_HD_MEMBER float centre(int32_t out_index) const { return scale * (static_cast<float>(out_index) + 0.5f); }
  OVSDINO_HD_MEMBER int32_t begin(float centre) const {
    const int32_t first = static_cast<int32_t>(centre - support + 0.5f);
    return first > 0 ? first : 0;
  }
  OVSDINO_HD_MEMBER int32_t end(float centre) const {
    const int32_t past = static_cast<int32_t>(centre + support + 0.5f);
    return past < size ? past : size;
  }
  OVSDINO_HD_MEMBER float weight(int32_t in_index, float centre) const {
    return fmaxf(0.0f, 1.0f - fabsf((static_cast<float>(in_index) - centre + 0.5f) * inverse));
  }
};

template <typename T>
OVSDINO_HD void write_rgb(const Preprocess& op, int64_t batch, int32_t y, int32_t x, const float* rgb) {
  const int64_t plane = op.out_h * op.out_w;
  T* out = static_cast<T*>(op.out) + 3 * batch * plane + y * op.out_w + x;
  for (int32_t c = 0; c < 3; ++c) from_float(fmaf(rgb[c], op.gain[c], op.shift[c]), out + c * plane);
}

template <typename T, typename Source>
OVSDINO_HD void resize_pixel(const Preprocess& op, const Source& source, int64_t batch, int32_t y, int32_t x) {
  float rgb[3] = {};
  if (!op.antialias) {
    const Tap rows = bilinear_tap(y, static_cast<int32_t>(op.in_h), static_cast<int32_t>(op.out_h));
    const Tap columns = bilinear_tap(x, static_cast<int32_t>(op.in_w), static_cast<int32_t>(op.out_w));
    for (int32_t i = 0; i < 2; ++i) {
      const float weight = i == 0 ? rows.w0 : rows.w1;
      if (weight == 0.0f) continue;  // a resize of one axis reads one row
      float first[3], second[3];
      source.pair(i == 0 ? rows.i0 : rows.i1, columns.i0, columns.i1, first, second);
      for (int32_t c = 0; c < 3; ++c) rgb[c] += weight * (columns.w0 * first[c] + columns.w1 * second[c]);
    }
  } else {
    const Triangle rows(op.in_h, op.out_h), columns(op.in_w, op.out_w);
    const float centre_y = rows.centre(y), centre_x = columns.centre(x);
    float total_y = 0.0f, total_x = 0.0f;
    for (int32_t v = rows.begin(centre_y); v < rows.end(centre_y); ++v) {
      const float weight_y = rows.weight(v, centre_y);
      float line[3] = {};
      total_x = 0.0f;
      for (int32_t u = columns.begin(centre_x); u < columns.end(centre_x); ++u) {
        const float weight_x = columns.weight(u, centre_x);
        float pixel[3];
        source.pixel(v, u, pixel);
        total_x += weight_x;
        for (int32_t c = 0; c < 3; ++c) line[c] += weight_x * pixel[c];
      }
      total_y += weight_y;
      for (int32_t c = 0; c < 3; ++c) rgb[c] += weight_y * line[c];
    }
    for (int32_t c = 0; c < 3; ++c) rgb[c] /= total_x * total_y;
  }
  write_rgb<T>(op, batch, y, x, rgb);
}

}  // namespace ovsdino
