// The threads that work on one job of mask_pool or upsample_argmax: a block in CUDA, one thread that does everything on
// the CPU. tests/ops/simt has another one, that runs the same bodies thread by thread and counts sectors of memory.
//
//   kThreads, kLanes, kWarps   of the block, of a warp, warps
//   index, lane, warp          of this thread
//   sync                       barrier of the block
//   ballot                     the lanes of the warp where x holds, one bit each
//   load_global, store_global, load_shared, store_shared      (shared memory by offsets in bytes)
#pragma once

#include <cstdint>
#include <cstring>

#include "ovsdino/types.h"

namespace ovsdino {

class OneThread {
 public:
  static constexpr int32_t kThreads = 1, kLanes = 1, kWarps = 1;
  explicit OneThread(unsigned char* shared) : shared_(shared) {}
  int32_t index() const { return 0; }
  int32_t lane() const { return 0; }
  int32_t warp() const { return 0; }
  void sync() const {}
  uint32_t ballot(bool x) const { return x ? 1u : 0u; }
  template <typename V>
  V load_global(const V* from) const {
    V value;
    memcpy(&value, from, sizeof(V));
    return value;
  }
  template <typename V>
  void store_global(V* to, V value) const {
    memcpy(to, &value, sizeof(V));
  }
  template <typename V>
  V load_shared(uint32_t offset) const {
    V value;
    memcpy(&value, shared_ + offset, sizeof(V));
    return value;
  }
  template <typename V>
  void store_shared(uint32_t offset, V value) const {
    memcpy(shared_ + offset, &value, sizeof(V));
  }

 private:
  unsigned char* shared_;
};

#ifdef __CUDACC__
template <int32_t kThreadCount>
class CudaBlock {
 public:
  static constexpr int32_t kThreads = kThreadCount, kLanes = 32, kWarps = kThreads / kLanes;
  __device__ __forceinline__ explicit CudaBlock(unsigned char* shared) : shared_(shared) {}
  __device__ __forceinline__ int32_t index() const { return static_cast<int32_t>(threadIdx.x); }
  __device__ __forceinline__ int32_t lane() const { return index() % kLanes; }
  __device__ __forceinline__ int32_t warp() const { return index() / kLanes; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ uint32_t ballot(bool x) const { return __ballot_sync(~0u, x); }
  template <typename V>
  __device__ __forceinline__ V load_global(const V* from) const {
    return *from;
  }
  template <typename V>
  __device__ __forceinline__ void store_global(V* to, V value) const {
    *to = value;
  }
  template <typename V>
  __device__ __forceinline__ V load_shared(uint32_t offset) const {
    return *reinterpret_cast<const V*>(shared_ + offset);
  }
  template <typename V>
  __device__ __forceinline__ void store_shared(uint32_t offset, V value) const {
    *reinterpret_cast<V*>(shared_ + offset) = value;
  }

 private:
  unsigned char* shared_;
};
#endif

// 8 and 16 bytes that one instruction moves.
struct alignas(8) Words2 {
  uint32_t word[2];
};
struct alignas(16) Words4 {
  uint32_t word[4];
};

}  // namespace ovsdino
