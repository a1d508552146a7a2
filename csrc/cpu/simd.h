// Vectors of kLanes floats for whatever the including file is compiled for. The kernel files are compiled once per
// instruction set, each time into its own namespace OVSDINO_ISA; they hold no templates or inline functions of the
// standard library, whose code the linker might otherwise take from the AVX-512 object for every caller.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define OVSDINO_INLINE static inline __attribute__((always_inline))
#define OVSDINO_LAMBDA_INLINE __attribute__((always_inline))

namespace ovsdino {
namespace OVSDINO_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));

OVSDINO_INLINE Floats load(const float* p) {
  Floats v;
  memcpy(&v, p, sizeof(v));
  return v;
}
OVSDINO_INLINE Ints load(const int32_t* p) {
  Ints v;
  memcpy(&v, p, sizeof(v));
  return v;
}
OVSDINO_INLINE void store(float* p, Floats v) { memcpy(p, &v, sizeof(v)); }
OVSDINO_INLINE void store(int32_t* p, Ints v) { memcpy(p, &v, sizeof(v)); }
OVSDINO_INLINE Floats splat(float x) { return x - Floats{}; }
OVSDINO_INLINE Ints splat(int32_t x) { return x - Ints{}; }

OVSDINO_INLINE Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Floats)_mm_max_ps((__m128)a, (__m128)b);
#elif defined(__ARM_NEON)
  return (Floats)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
  return a > b ? a : b;
#endif
}
OVSDINO_INLINE Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Floats)_mm_min_ps((__m128)a, (__m128)b);
#elif defined(__ARM_NEON)
  return (Floats)vminq_f32((float32x4_t)a, (float32x4_t)b);
#else
  return a < b ? a : b;
#endif
}

OVSDINO_INLINE float largest(Floats v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// Bit i is set where a[i] >= b[i].
OVSDINO_INLINE uint32_t at_least(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpge_ps((__m128)a, (__m128)b)));
#else
  const Ints mask = a >= b;
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(mask[i] & (1 << i));
  return bits;
#endif
}

// Bit i is set where a[i] is negative.
OVSDINO_INLINE uint32_t negative(Ints a) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)a);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps((__m256i)a)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps((__m128i)a)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(a[i] < 0) << i;
  return bits;
#endif
}

// Takes (value, index) where value > best, and so keeps the earlier index on a tie.
OVSDINO_INLINE void take_larger(Floats value, int32_t index, Floats& best, Ints& best_index) {
#if defined(__AVX512F__)
  const __mmask16 wins = _mm512_cmp_ps_mask((__m512)value, (__m512)best, _CMP_GT_OQ);
  best_index = (Ints)_mm512_mask_set1_epi32((__m512i)best_index, wins, index);
#elif defined(__AVX2__)
  const __m256 wins = _mm256_cmp_ps((__m256)value, (__m256)best, _CMP_GT_OQ);
  best_index = (Ints)_mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps((__m256i)best_index), _mm256_castsi256_ps(_mm256_set1_epi32(index)), wins));
#else
  const Ints wins = value > best;
  best_index = (splat(index) & wins) | (best_index & ~wins);
#endif
  best = larger(value, best);
}

OVSDINO_INLINE void take_larger(Floats value, Ints index, Floats& best, Ints& best_index) {
#if defined(__AVX512F__)
  const __mmask16 wins = _mm512_cmp_ps_mask((__m512)value, (__m512)best, _CMP_GT_OQ);
  best_index = (Ints)_mm512_mask_mov_epi32((__m512i)best_index, wins, (__m512i)index);
#elif defined(__AVX2__)
  const __m256 wins = _mm256_cmp_ps((__m256)value, (__m256)best, _CMP_GT_OQ);
  best_index = (Ints)_mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps((__m256i)best_index), _mm256_castsi256_ps((__m256i)index), wins));
#else
  const Ints wins = value > best;
  best_index = (index & wins) | (best_index & ~wins);
#endif
  best = larger(value, best);
}

// 0, 1, 2, ...
OVSDINO_INLINE Ints counting() {
  Ints v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Lane i of the result is p[index[i]]; every index is in [0, kLanes).
OVSDINO_INLINE Floats pick(const float* p, Ints index) {
#if defined(__AVX512F__)
  return (Floats)_mm512_permutexvar_ps((__m512i)index, (__m512)load(p));
#elif defined(__AVX2__)
  return (Floats)_mm256_permutevar8x32_ps((__m256)load(p), (__m256i)index);
#else
  Floats v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[index[i]];
  return v;
#endif
}

// Writes the lanes whose bit is set to `out`, packed; `out` has room for kLanes.
OVSDINO_INLINE void pack(float* out, Floats v, uint32_t bits) {
#if defined(__AVX512F__)
  // The register form and a whole store: the storing form is microcoded on Zen 4.
  store(out, (Floats)_mm512_maskz_compress_ps(static_cast<__mmask16>(bits), (__m512)v));
#else
  for (; bits; bits &= bits - 1) *out++ = v[__builtin_ctz(bits)];
#endif
}
OVSDINO_INLINE void pack(int32_t* out, Ints v, uint32_t bits) {
#if defined(__AVX512F__)
  store(out, (Ints)_mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), (__m512i)v));
#else
  for (; bits; bits &= bits - 1) *out++ = v[__builtin_ctz(bits)];
#endif
}

// e^x for x <= 0, within 1 unit in the last place; below -87 it is e^-87 = 1.6e-38, which no sum with a 1 in it sees.
// NaN gives NaN: x86's maximum takes its second operand then.
OVSDINO_INLINE Floats exp_nonpositive(Floats x) {
  x = larger(splat(-87.0f), x);
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const Floats shifted = x * 1.44269504f + magic;
  const Floats n = shifted - magic;
  Floats r = x - n * 0.693359375f;  // ln 2 in two parts, the first exact in products with small integers
  r = r + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Ints power = (((Ints)shifted) - ((Ints)magic) + 127) << 23;
  return p * (Floats)power;
}

}  // namespace OVSDINO_ISA
}  // namespace ovsdino
