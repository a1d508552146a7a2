// Which instruction set's kernels run: the best this CPU has, or a lower one asked for by name (tests).
#pragma once

namespace ovsdino {

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa active_isa();

// name: "baseline", "avx2", "avx512" or "best". False if this build or CPU has it not.
bool set_isa(const char* name);

const char* isa_name(Isa isa);

}  // namespace ovsdino
