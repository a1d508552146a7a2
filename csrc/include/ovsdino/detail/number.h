// 16-bit floats to and from float32, on any compiler, on the CPU and in CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "ovsdino/types.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

// The compiler's own 16-bit float, where there is one: a conversion is then one instruction and vectorises.
#if defined(__CUDACC__) || defined(OVSDINO_SOFT_HALF)
#elif defined(__aarch64__)
#define OVSDINO_NATIVE_HALF __fp16
#elif defined(__FLT16_MAX__) && defined(__SSE2__)
#define OVSDINO_NATIVE_HALF _Float16
#endif

namespace ovsdino {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename To, typename From>
OVSDINO_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

OVSDINO_HD float to_float(float x) { return x; }

OVSDINO_HD float to_float(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

OVSDINO_HD float to_float(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#elif defined(OVSDINO_NATIVE_HALF)
  return static_cast<float>(bit_cast<OVSDINO_NATIVE_HALF>(x.bits));
#else
  // Exponent and mantissa moved to float32's places; the product rebases the exponent (112 = 127 - 15) and is exact for
  // subnormals too. Infinity and NaN get the all-ones exponent.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  uint32_t value = bit_cast<uint32_t>(bit_cast<float>(magnitude) * bit_cast<float>((127u + 112u) << 23));
  if (magnitude >= 0x0f800000u) value |= 0x7f800000u;
  return bit_cast<float>(value | sign);
#endif
}

OVSDINO_HD void from_float(float x, float* out) { *out = x; }

OVSDINO_HD void from_float(float x, BFloat16* out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = nan ? 0x7fc0u : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest even
}

OVSDINO_HD void from_float(float x, Half* out) {
#if defined(__CUDA_ARCH__)
  out->bits = __half_as_ushort(__float2half_rn(x));
#elif defined(OVSDINO_NATIVE_HALF)
  out->bits = bit_cast<uint16_t>(static_cast<OVSDINO_NATIVE_HALF>(x));
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Below the smallest normal: adding 0.5 leaves the rounded mantissa in the low bits.
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
#endif
}

}  // namespace ovsdino
