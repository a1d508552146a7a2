#include "isa.h"

#include <atomic>
#include <cstring>
#include <initializer_list>

namespace ovsdino {
namespace {

bool supported(Isa isa) {
  if (isa == Isa::kBaseline) return true;
#if defined(OVSDINO_X86_VARIANTS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa best() {
  if (supported(Isa::kAvx512)) return Isa::kAvx512;
  return supported(Isa::kAvx2) ? Isa::kAvx2 : Isa::kBaseline;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{best()};
  return isa;
}

}  // namespace

Isa active_isa() { return current().load(std::memory_order_relaxed); }

bool set_isa(const char* name) {
  if (std::strcmp(name, "best") == 0) {
    current().store(best());
    return true;
  }
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (std::strcmp(name, isa_name(isa)) == 0 && supported(isa)) {
      current().store(isa);
      return true;
    }
  }
  return false;
}

const char* isa_name(Isa isa) {
  if (isa == Isa::kAvx512) return "avx512";
  return isa == Isa::kAvx2 ? "avx2" : "baseline";
}

}  // namespace ovsdino
