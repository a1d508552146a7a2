// Threads for one call. No pool: a pool does not survive fork() (torch's DataLoader forks), and starting a thread costs
// about 20 us here, against kernels that take milliseconds; short jobs stay on the calling thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace ovsdino {

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
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int slot = 1; slot < threads; ++slot) others.emplace_back(work, slot);
  } catch (const std::system_error&) {
    // No more threads to be had: those there are, and this one, do all the ranges.
  }
  work(0);
  for (std::thread& thread : others) thread.join();
  for (const std::exception_ptr& fault : faults) {
    if (fault) std::rethrow_exception(fault);
  }
}

}  // namespace ovsdino
