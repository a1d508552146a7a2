#include <cmath>

#include "random.h"

namespace check {
namespace {

float widened(uint16_t bits) { return ovsdino::to_float(ovsdino::Half{bits}); }

uint16_t narrowed(float value) {
  ovsdino::Half half;
  ovsdino::from_float(value, &half);
  return half.bits;
}

}  // namespace

// Every float16 there and back, and the roundings by hand.
int64_t number_faults(Random*) {
  int64_t faults = 0;
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const bool nan = (bits & 0x7fffu) > 0x7c00u;
    const float value = widened(static_cast<uint16_t>(bits));
    faults += nan ? !std::isnan(value) : narrowed(value) != bits;
  }
  faults += widened(0x3c00) != 1.0f || widened(0x0001) != std::ldexp(1.0f, -24) || widened(0xfbff) != -65504.0f;
  faults += narrowed(65519.0f) != 0x7bff || narrowed(65520.0f) != 0x7c00;                  // half way up is infinity
  faults += narrowed(1.0f + std::ldexp(1.0f, -11)) != 0x3c00;                              // ties to even, down
  faults += narrowed(1.0f + 3 * std::ldexp(1.0f, -11)) != 0x3c02;                          // and up
  faults += narrowed(std::ldexp(1.0f, -25)) != 0 || narrowed(std::ldexp(3.0f, -25)) != 2;  // also below the normals
  return faults;
}

}  // namespace check
