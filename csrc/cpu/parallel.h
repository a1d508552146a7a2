// Threads for one call: those of the OpenMP pool that is already in the process (torch's), else threads started here.
//
// An OpenMP worker spins for some milliseconds after its last task. A thread of ours would share its core with it:
// mask_pool right after a torch op took 4.5 ms on two threads that way, against 1.3 ms after a pause. In torch's own
// pool the spinning worker takes up our task at once. The pool is found by name, so the module links no OpenMP and has
// none of its own; without torch (the edge runtime) nothing spins, and starting a thread costs about 20 us.
#pragma once

#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace ovsdino {

// libgomp's entry for `#pragma omp parallel`, also exported by LLVM's and Intel's runtimes; null when none is loaded.
using OmpParallel = void (*)(void (*task)(void*), void* data, unsigned threads, unsigned flags);

inline OmpParallel omp_parallel() {
  // Asked for each time: torch may be imported after this module.
  return reinterpret_cast<OmpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

// Calls body(begin, end) for consecutive ranges of at most `grain` that cover [0, count), on up to `threads` threads.
// Rethrows the first exception of a range.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  if (count <= 0) return;
  grain = grain < 1 ? 1 : grain;
  const int64_t ranges = (count + grain - 1) / grain;
  if (threads > ranges) threads = static_cast<int>(ranges);
  if (threads <= 1) {
    body(int64_t{0}, count);
    return;
  }
  std::atomic<int64_t> next{0};
  std::vector<std::exception_ptr> faults(static_cast<size_t>(threads));
  const auto work = [&](int slot) {
    try {
      for (int64_t range = next.fetch_add(1); range < ranges; range = next.fetch_add(1)) {
        const int64_t begin = range * grain;
        body(begin, begin + grain < count ? begin + grain : count);
      }
    } catch (...) {
      faults[static_cast<size_t>(slot)] = std::current_exception();
      next.store(ranges);
    }
  };
  std::atomic<int> arrived{0};
  const auto task = [&] {
    const int slot = arrived.fetch_add(1);
    if (slot < threads) work(slot);
  };
  if (const OmpParallel parallel = omp_parallel()) {
    parallel([](void* data) { (*static_cast<decltype(task)*>(data))(); },
             const_cast<void*>(static_cast<const void*>(&task)), static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    others.reserve(static_cast<size_t>(threads - 1));
    try {
      for (int slot = 1; slot < threads; ++slot) others.emplace_back(task);
    } catch (const std::system_error&) {
      // No more threads to be had: those there are, and this one, do all the ranges.
    }
    task();
    for (std::thread& thread : others) thread.join();
  }
  for (const std::exception_ptr& fault : faults) {
    if (fault) std::rethrow_exception(fault);
  }
}

}  // namespace ovsdino
