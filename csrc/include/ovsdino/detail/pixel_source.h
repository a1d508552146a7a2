// Reading pixels of the forms that preprocess takes, by 4-byte words where the layout allows it. Each source gives one
// pixel, a pair of neighbours (for two taps), or the raw bytes of four neighbours, which become 12 floats later: loads
// of several rows can then be in flight.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "ovsdino/preprocess.h"

namespace ovsdino {

// Four neighbouring pixels, not yet converted.
struct RawPixels {
  uint32_t words[4];
  uint32_t shift;  // bits that the first word starts before the first pixel
};

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

// Up to four bytes from p, those from `end` on as zeros.
OVSDINO_HD uint32_t load_bytes(const uint8_t* p, const uint8_t* end) {
  uint32_t word = 0;
  for (int32_t i = 0; i < 4; ++i) {
    if (p + i < end) word |= static_cast<uint32_t>(p[i]) << (8 * i);
  }
  return word;
}

// Four bytes at any address by aligned loads that stay below `end`.
OVSDINO_HD uint32_t load_unaligned(const uint8_t* p, const uint8_t* end) {
  const uint32_t off = misalignment(p);
  if (p + 8 > end) return load_bytes(p, end);
  return off == 0 ? load_word(p) : shifted_pair(load_word(p - off), load_word(p - off + 4), 8 * off);
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

  // The pixels x to x + 3 of a row; what lies past the row's end is any value.
  OVSDINO_HD_MEMBER RawPixels fetch(int32_t y, int32_t x) const {
    const uint8_t* p = image + y * stride_y + 3 * x;
    RawPixels raw = {{0, 0, 0, 0}, 0};
    if (p + 16 > end) {
      for (int32_t i = 0; i < 3; ++i) raw.words[i] = load_bytes(p + 4 * i, end);
      return raw;
    }
    const uint32_t off = misalignment(p);
    for (int32_t i = 0; i < 3; ++i) raw.words[i] = load_word(p - off + 4 * i);
    if (off != 0) raw.words[3] = load_word(p - off + 12);
    raw.shift = 8 * off;
    return raw;
  }

  OVSDINO_HD_MEMBER void convert(const RawPixels& raw, float* rgb) const {
    for (int32_t i = 0; i < 3; ++i) {
      const uint32_t word = shifted_pair(raw.words[i], raw.words[i + 1], raw.shift);
      for (uint32_t k = 0; k < 4; ++k) rgb[4 * i + static_cast<int32_t>(k)] = byte_value(word, k);
    }
  }
};

// RGB at any strides: crops of RGBA frames, planar images seen as HWC, expanded ones.
struct StridedRgb {
  const uint8_t* image;
  int64_t stride_y, stride_x, stride_c;
  int32_t width;

  OVSDINO_HD_MEMBER StridedRgb(const Preprocess& op, int64_t batch)
      : image(op.image + batch * op.stride_b),
        stride_y(op.stride_y),
        stride_x(op.stride_x),
        stride_c(op.stride_c),
        width(static_cast<int32_t>(op.in_w)) {}

  OVSDINO_HD_MEMBER void pixel(int32_t y, int32_t x, float* rgb) const {
    const uint8_t* p = image + y * stride_y + x * stride_x;
    for (int32_t c = 0; c < 3; ++c) rgb[c] = static_cast<float>(p[c * stride_c]);
  }

  OVSDINO_HD_MEMBER void pair(int32_t y, int32_t x0, int32_t x1, float* first, float* second) const {
    pixel(y, x0, first);
    pixel(y, x1, second);
  }

  OVSDINO_HD_MEMBER RawPixels fetch(int32_t y, int32_t x) const {
    RawPixels raw = {{0, 0, 0, 0}, 0};
    for (int32_t i = 0; i < 4; ++i) {
      if (x + i >= width) break;
      const uint8_t* p = image + y * stride_y + (x + i) * stride_x;
      raw.words[i] = p[0] | static_cast<uint32_t>(p[stride_c]) << 8 | static_cast<uint32_t>(p[2 * stride_c]) << 16;
    }
    return raw;
  }

  OVSDINO_HD_MEMBER void convert(const RawPixels& raw, float* rgb) const {
    for (int32_t i = 0; i < 4; ++i) {
      for (uint32_t c = 0; c < 3; ++c) rgb[3 * i + static_cast<int32_t>(c)] = byte_value(raw.words[i], c);
    }
  }
};

// Luma at full size, then (Cb, Cr) at half; each pixel becomes whole RGB levels, as a converted image would hold them.
struct Nv12 {
  const uint8_t* image;
  const uint8_t* chroma;
  const uint8_t* end;
  int64_t stride_y;

  OVSDINO_HD_MEMBER Nv12(const Preprocess& op, int64_t batch)
      : image(op.image + batch * op.stride_b),
        chroma(image + op.in_h * op.stride_y),
        end(chroma + (op.in_h / 2 - 1) * op.stride_y + op.in_w),
        stride_y(op.stride_y) {}

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

  // x is even.
  OVSDINO_HD_MEMBER RawPixels fetch(int32_t y, int32_t x) const {
    return {
        {load_unaligned(image + y * stride_y + x, end), load_unaligned(chroma + (y >> 1) * stride_y + x, end), 0, 0},
        0};
  }

  OVSDINO_HD_MEMBER void convert(const RawPixels& raw, float* rgb) const {
    for (uint32_t i = 0; i < 4; ++i) {
      to_rgb(byte_value(raw.words[0], i), byte_value(raw.words[1], i & 2u), byte_value(raw.words[1], i | 1u),
             rgb + 3 * i);
    }
  }
};

}  // namespace ovsdino
