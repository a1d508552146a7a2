#include "canary.h"

#include <limits>

namespace check {
namespace {

[[maybe_unused]] int32_t spread(int32_t index) { return index + (index >> 5); }

}  // namespace

int64_t planted_short_read() {
#ifdef PLANT_SHORT_READ
  return 1;
#else
  return 0;
#endif
}

int64_t planted_overflow() {
#ifdef PLANT_OVERFLOW
  volatile int32_t largest = std::numeric_limits<int32_t>::max();
  return spread(largest) == 1;  // it never is; a result that nobody reads would not be computed
#else
  return 0;
#endif
}

double planted_error() {
#ifdef PLANT_ERROR
  return 0.1;
#else
  return 0.0;
#endif
}

}  // namespace check
