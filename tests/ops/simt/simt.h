// A block of CUDA lanes on the CPU: runs a kernel body written against the interface of detail/attention_lanes.h, each
// lane as a fiber, in random order between synchronization points.
//
// It is stricter than a GPU. Shared memory starts as NaN, and reading what was never written, or what another lane
// wrote or copies since the last barrier, is a fault; so is overwriting what another lane has read since then. A copy
// lands at the first barrier after its wait. Every global access must lie in a range that was allowed.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "ovsdino/detail/number.h"

namespace simt {

// What a planted fault changes; the tests show that each is found.
enum class Mutation : int32_t {
  kNone,
  kNoBarrier,       // block barriers do nothing; copies are seen after their wait
  kNoWait,          // copies are not waited for
  kWaitTooFew,      // one group of copies stays in flight
  kUnmaskedCopy,    // rows past the last key are read instead of zero-filled
  kUnmaskedColumn,  // padding has column 0 instead of -infinity
  kNotTransposed,   // ldmatrix without .trans
  kShiftedRow,      // copied rows land one chunk too far
};

enum class Schedule : int32_t {
  kRandom,     // any lane that can run
  kWarpAhead,  // one warp as far as it can go, then another; a new order after each barrier
};

struct Options {
  Mutation mutation;
  Schedule schedule;
  uint32_t seed;
  int32_t queries;  // of a block: 64 or 128
};

// `phases` are accesses by as many lanes as 128 bytes serve, `wavefronts` the passes over 32 banks these take.
struct Report {
  int64_t faults;
  int64_t matrix_phases, matrix_wavefronts;
  int64_t copy_phases, copy_wavefronts;
  int64_t load_phases, load_wavefronts;
  int64_t products;
  // Loads from global memory, one for a warp, and the sectors of 32 bytes they touch; by the logarithm of a lane's
  // bytes.
  int64_t global_loads[5], global_sectors[5];
  char first_fault[256];
};

struct Range {
  const void* begin;
  int64_t bytes;
  bool writable;
};

// Global memory that kernels may touch.
class Global {
 public:
  void allow(const void* begin, int64_t bytes, bool writable) { ranges_.push_back({begin, bytes, writable}); }
  bool allows(const void* at, size_t bytes, bool write) const {
    const char* first = static_cast<const char*>(at);
    for (const Range& range : ranges_) {
      const char* begin = static_cast<const char*>(range.begin);
      if (first >= begin && first + bytes <= begin + range.bytes && (range.writable || !write)) return true;
    }
    return false;
  }

 private:
  std::vector<Range> ranges_;
};

class Block;

class Lanes {
 public:
  Lanes(Block* block, int32_t index) : block_(block), index_(index) {}
  int32_t index() const { return index_; }
  void sync();
  template <typename V>
  V load_global(const V* from);
  template <typename V>
  void store_global(V* to, V value);
  template <typename V>
  V load_shared(uint32_t offset);
  template <typename V>
  void store_shared(uint32_t offset, V value);
  void copy_row(uint32_t to, const void* from, bool valid);
  void commit();
  template <int kLatest>
  void wait() {
    wait_for(kLatest);
  }
  void load_matrices(uint32_t offset, uint32_t (&m)[4]) { matrices(offset, m, false); }
  void load_transposed(uint32_t offset, uint32_t (&m)[4]) { matrices(offset, m, true); }
  template <typename T>
  void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    product(c, a, b0, b1, std::is_same_v<T, ovsdino::BFloat16>);
  }
  float shuffle_xor(float x, int32_t mask);
  uint32_t ballot(bool x);
  float exp2(float x) const { return std::exp2(x); }
  template <typename T>
  uint32_t pack(float low, float high) const {
    T pair[2];
    ovsdino::from_float(low, &pair[0]);
    ovsdino::from_float(high, &pair[1]);
    return pair[0].bits | static_cast<uint32_t>(pair[1].bits) << 16;
  }

 private:
  void wait_for(size_t latest);
  void matrices(uint32_t offset, uint32_t (&m)[4], bool transposed);
  void product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool bfloat16);

  Block* block_;
  int32_t index_;
};

class Block {
 public:
  Block(int32_t lanes, uint32_t shared_bytes, const Global& global, const Options& options, Report* report);

  // Runs body(lanes) in every lane to its end.
  void run(const std::function<void(Lanes&)>& body);

 private:
  friend class Lanes;
  enum class State { kReady, kAtWarp, kAtBarrier, kDone };
  enum class Kind { kMatrices, kTransposed, kProduct, kShuffle, kBallot };

  // What a lane has posted for its warp's next operation.
  struct Request {
    Kind kind;
    uint32_t offset;
    uint32_t* matrices;
    float* c;
    uint32_t a[4], b[2];
    bool bfloat16;
    float x;
    int32_t mask;
  };

  struct Copy {
    uint32_t to;
    unsigned char bytes[16];
  };

  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    void* fake_stack = nullptr;
    State state = State::kReady;
    Request request{};
    std::vector<Copy> open;                 // not committed
    std::vector<std::vector<Copy>> groups;  // committed
    std::vector<Copy> landed;               // waited for
    // How many so far, from global memory by the bytes' logarithm: the same number in a warp is one instruction.
    int64_t copies = 0, loads = 0, global_loads[5] = {};
  };

  // Who touched a byte of shared memory since the last barrier: -1 for nobody, -2 for several lanes.
  struct Shadow {
    bool valid = false;
    int32_t writer = -1, reader = -1;
  };

  // The offsets that lanes of a warp give to one instruction, -1 where none.
  using Offsets = std::map<std::pair<int32_t, int64_t>, std::vector<int64_t>>;

  static constexpr size_t kStackBytes = 128 * 1024;

  static void enter(unsigned high, unsigned low);
  void resume(int32_t lane);
  void pause(State state);
  int32_t choose();
  void advance();
  void release_barrier();
  void do_matrices(int32_t warp, bool transposed);
  void do_product(int32_t warp);
  void do_shuffle(int32_t warp);
  void do_ballot(int32_t warp);
  void note_load(int32_t lane, const void* from, size_t bytes);
  void read(uint32_t offset, void* to, uint32_t bytes, int32_t lane);
  void write(uint32_t offset, const void* from, uint32_t bytes, int32_t lane);
  bool claim(uint32_t offset, uint32_t bytes, int32_t lane);
  void fault(const std::string& message);
  void count(const std::vector<int64_t>& offsets, int32_t bytes, int64_t* phases, int64_t* wavefronts) const;
  void count_all();

  const Global& global_;
  const Options options_;
  Report* report_;
  std::mt19937 random_;
  std::vector<Fiber> fibers_;
  std::vector<unsigned char> shared_;
  std::vector<Shadow> shadow_;
  std::vector<int32_t> warp_order_;
  Offsets copies_, loads_;
  std::map<std::tuple<int32_t, int32_t, int64_t>, std::set<uintptr_t>> sectors_;  // by warp, logarithm, number
  const std::function<void(Lanes&)>* body_ = nullptr;
  ucontext_t scheduler_{};
  int32_t running_ = -1;
  // The scheduler's own stack, as the address sanitizer wants it named at each switch.
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
};

template <typename V>
V Lanes::load_global(const V* from) {
  V value;
  std::memset(&value, 0xff, sizeof(V));
  const bool aligned = reinterpret_cast<uintptr_t>(from) % alignof(V) == 0;
  if (aligned && block_->global_.allows(from, sizeof(V), false)) {
    std::memcpy(&value, from, sizeof(V));
    block_->note_load(index_, from, sizeof(V));
  } else {
    block_->fault(aligned ? "global read out of bounds" : "global read not aligned");
  }
  return value;
}

template <typename V>
void Lanes::store_global(V* to, V value) {
  const bool aligned = reinterpret_cast<uintptr_t>(to) % alignof(V) == 0;
  if (aligned && block_->global_.allows(to, sizeof(V), true)) {
    std::memcpy(to, &value, sizeof(V));
  } else {
    block_->fault(aligned ? "global write out of bounds" : "global write not aligned");
  }
}

template <typename V>
V Lanes::load_shared(uint32_t offset) {
  V value;
  block_->read(offset, &value, sizeof(V), index_);
  if (sizeof(V) == 8) {
    std::vector<int64_t>& offsets = block_->loads_[{index_ / 32, block_->fibers_[index_].loads++}];
    offsets.resize(32, -1);
    offsets[index_ % 32] = offset;
  }
  return value;
}

template <typename V>
void Lanes::store_shared(uint32_t offset, V value) {
  block_->write(offset, &value, sizeof(V), index_);
}

}  // namespace simt
