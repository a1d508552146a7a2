// The CPU kernels of every instruction set and the bodies of the CUDA kernels on random data, without Python: for cross
// compilers, emulators and sanitizers. Each op by two codes, or by one and its formula in float64.
//   check [cases of each op] [first seed]      prints a line an op; returns 0 if nothing differs
#include <cstdio>
#include <cstdlib>

#include "cpu/isa.h"
#include "random.h"

constexpr const char* kInstructionSets[4] = {"best", "avx2", "baseline", "avx512"};

int main(int count, char** arguments) {
  const long cases = count > 1 ? std::atol(arguments[1]) : 200, first = count > 2 ? std::atol(arguments[2]) : 1;
  struct {
    const char* name;
    int64_t (*faults)(check::Random*);
    long cases;
  } const ops[] = {
      {"float16", check::number_faults, 1},
      {"mask_pool", check::mask_pool_faults, cases},
      {"mask_pool_backward", check::mask_pool_backward_faults, cases},
      {"upsample_argmax", check::upsample_argmax_faults, cases},
      {"guided_upsample", check::guided_upsample_faults, cases},
      {"guided_upsample_backward", check::guided_upsample_backward_faults, cases},
      {"preprocess", check::preprocess_faults, cases},
  };
  int64_t total = check::planted_overflow();
  for (const auto& op : ops) {
    int64_t faults = 0;
    for (long seed = first; seed < first + op.cases; ++seed) {
      check::Random random(static_cast<uint64_t>(seed));
      ovsdino::set_isa(kInstructionSets[seed % 4]);  // leaves it as it was where there is none of that name
      const int64_t found = op.faults(&random);
      if (found != 0 && faults == 0) std::printf("%s: %lld wrong with seed %ld\n", op.name, (long long)found, seed);
      faults += found;
    }
    std::printf("%s: %ld cases, %lld faults\n", op.name, op.cases, (long long)faults);
    std::fflush(stdout);
    total += faults;
  }
  return total != 0;
}
