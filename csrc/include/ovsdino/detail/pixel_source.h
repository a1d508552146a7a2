// Reading pixels of the forms that preprocess takes, by 4-byte words where the layout allows it. Each source gives one
// pixel, or a pair of neighbours for two taps.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "ovsdino/preprocess.h"

namespace ovsdino {

OVSDINO_HD uint32_t load_word(const uint8_t* aligned) {
#ifdef __CUDA_ARCH__
  return __ldg(reinterpret_cast<const uint32_t*>(aligned));
#else
  uint32_t word;
  memcpy(&word, aligned, sizeof(word));
  return word;
#endif
}

// The low word of (high : low) >> bits, bits < 32.
OVSDINO_HD uint32_t shifted_pair(uint32_t low, uint32_t high, uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __funnelshift_r(low, high, bits);
#else
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32) | low) >> bits);
#endif
}

OVSDINO_HD uint32_t misalignment(const uint8_t* p) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p) & 3u);
}

// Byte k of a word as a float. On CUDA through the mantissa of 2^23: on sm_80 to sm_87 a conversion instruction runs at
// an eighth of the rate of an addition, a byte permutation at half of it.
OVSDINO_HD float byte_value(uint32_t word, uint32_t k) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + k)) - 8388608.0f;
#else
  return static_cast<float>((word >> (8 * k)) & 255u);
#endif
}

// RGB bytes side by side in a row; rows and images at any distance.
struct PackedRgb {
  const uint8_t* image;
  const uint8_t* end;  // one past the last byte
  int64_t stride_y;

  OVSDINO_HD_MEMBER PackedRgb(const Preprocess& op, int64_t batch)
      : image(op.image + batch * op.stride_b),
        end(image + (op.in_h - 1) * op.stride_y + 3 * op.in_w),
        stride_y(op.stride_y) {}

  OVSDINO_HD_MEMBER void pixel(int32_t y, int32_t x, float* rgb) const {
    const uint8_t* p = image + y * stride_y + 3 * x;
    for (int32_t c = 0; c < 3; ++c) rgb[c] = static_cast<float>(p[c]);
  }

  // The pixels x0 and x1, which are neighbours or the same.
  OVSDINO_HD_MEMBER void pair(int32_t y, int32_t x0, int32_t x1, float* first, float* second) const {
    const uint8_t* p = image + y * stride_y + 3 * x0;
    if (x1 == x0 || p + 9 > end) {
      pixel(y, x0, first);
      pixel(y, x1, second);
      return;
    }
    const uint32_t off = misalignment(p);
    const uint8_t* aligned = p - off;
    const uint32_t middle = load_word(aligned + 4), last = off == 3 ? load_word(aligned + 8) : 0;
    const uint32_t low = shifted_pair(load_word(aligned), middle, 8 * off);
    const uint32_t high = shifted_pair(middle, last, 8 * off);
    for (uint32_t c = 0; c < 3; ++c) first[c] = byte_value(low, c);
    second[0] = byte_value(low, 3), second[1] = byte_value(high, 0), second[2] = byte_value(high, 1);
  }
};

// RGB at any strides: crops of RGBA frames, planar images seen as HWC, expanded ones.
struct StridedRgb {
  const uint8_t* image;
  int64_t stride_y, stride_x, stride_c;

  OVSDINO_HD_MEMBER StridedRgb(const Preprocess& op, int64_t batch)
      : image(op.image + batch * op.stride_b), stride_y(op.stride_y), stride_x(op.stride_x), stride_c(op.stride_c) {}

  OVSDINO_HD_MEMBER void pixel(int32_t y, int32_t x, float* rgb) const {
    const uint8_t* p = image + y * stride_y + x * stride_x;
    for (int32_t c = 0; c < 3; ++c) rgb[c] = static_cast<float>(p[c * stride_c]);
  }

  OVSDINO_HD_MEMBER void pair(int32_t y, int32_t x0, int32_t x1, float* first, float* second) const {
    pixel(y, x0, first);
    pixel(y, x1, second);
  }
};

// Luma at full size, then (Cb, Cr) at half; each pixel becomes whole RGB levels, as a converted image would hold them.
struct Nv12 {
  const uint8_t* image;
  const uint8_t* chroma;
  int64_t stride_y;

  OVSDINO_HD_MEMBER Nv12(const Preprocess& op, int64_t batch)
      : image(op.image + batch * op.stride_b), chroma(image + op.in_h * op.stride_y), stride_y(op.stride_y) {}

  OVSDINO_HD_MEMBER static float level(float value) { return fminf(fmaxf(rintf(value), 0.0f), 255.0f); }

  OVSDINO_HD_MEMBER static void to_rgb(float luma, float blue, float red, float* rgb) {
    luma = 1.164383f * (luma - 16.0f), blue -= 128.0f, red -= 128.0f;
    rgb[0] = level(luma + 1.596027f * red);
    rgb[1] = level(luma + (-0.391762f * blue - 0.812968f * red));
    rgb[2] = level(luma + 2.017232f * blue);
  }

  OVSDINO_HD_MEMBER void pixel(int32_t y, int32_t x, float* rgb) const {
    const uint8_t* c = chroma + (y >> 1) * stride_y + (x & ~1);
    to_rgb(static_cast<float>(image[y * stride_y + x]), static_cast<float>(c[0]), static_cast<float>(c[1]), rgb);
  }

  OVSDINO_HD_MEMBER void pair(int32_t y, int32_t x0, int32_t x1, float* first, float* second) const {
    pixel(y, x0, first);
    pixel(y, x1, second);
  }
};

}  // namespace ovsdino
