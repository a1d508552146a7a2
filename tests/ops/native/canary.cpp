#include "canary.h"

#include <limits>

#include "ovsdino/detail/resize.h"

namespace check {

int64_t planted_short_read() {
#ifdef PLANT_SHORT_READ
  return 1;
#else
  return 0;
#endif
}

int64_t planted_overflow() {
#ifdef PLANT_OVERFLOW
  volatile int32_t pixel = std::numeric_limits<int32_t>::max();
  return ovsdino::strip_index(pixel) == 1;  // it never is; a result that nobody reads would not be computed
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
