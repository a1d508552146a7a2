// The lanes of a CUDA block, as the bodies of structure_attention see them: each lane runs the body with an object of
// this interface. tests/ops/simt has another one, that runs the same bodies lane by lane on the CPU.
//
//   index                  of the lane in its block
//   sync                   barrier of the block
//   load_global, store_global, load_shared, store_shared     (shared memory by offsets in bytes)
//   copy_row               16 bytes from global to shared memory, or zeros; seen after wait and sync
//   commit, wait<n>        closes a group of this lane's copies; waits for all groups but the latest n
//   load_matrices          ldmatrix.x4: lane 8 m + i gives the offset of row i (16 bytes) of the 8 x 8 matrix m; lane
//                          4 i + j gets elements 2 j and 2 j + 1 of row i of each
//   load_transposed        the same of the transposed matrices
//   multiply_add           mma.m16n8k16, c += a b. With i = lane / 4, j = lane % 4 in a warp, a is the pairs at rows
//                          i, i + 8, i, i + 8 and columns 2 j, 2 j, 2 j + 8, 2 j + 8; b the pairs (down a column) at
//                          rows 2 j, 2 j + 8 of column i; c the elements at row i, columns 2 j and 2 j + 1, then row
//                          i + 8
//   shuffle_xor            x of the lane whose index in the warp differs in the bits of mask
//   exp2, pack             2^x, and two floats rounded to a pair of T (the first in the low half)
#pragma once

#include <cstdint>
#include <type_traits>

#include "ovsdino/detail/number.h"
#include "ovsdino/types.h"

#ifdef __CUDACC__
namespace ovsdino {

class BlockLanes {
 public:
  __device__ __forceinline__ explicit BlockLanes(unsigned char* shared)
      : shared_(shared), base_(static_cast<uint32_t>(__cvta_generic_to_shared(shared))) {}

  __device__ __forceinline__ int32_t index() const { return static_cast<int32_t>(threadIdx.x); }
  __device__ __forceinline__ void sync() const { __syncthreads(); }

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

  __device__ __forceinline__ void copy_row(uint32_t to, const void* from, bool valid) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(base_ + to), "l"(__cvta_generic_to_global(from)),
                 "r"(valid ? 16 : 0)
                 : "memory");
  }
  __device__ __forceinline__ void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int kLatest>
  __device__ __forceinline__ void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(kLatest) : "memory");
  }

  __device__ __forceinline__ void load_matrices(uint32_t offset, uint32_t (&m)[4]) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(base_ + offset));
  }
  __device__ __forceinline__ void load_transposed(uint32_t offset, uint32_t (&m)[4]) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(base_ + offset));
  }

  template <typename T>
  __device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) const {
    if constexpr (std::is_same_v<T, Half>) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
  }

  __device__ __forceinline__ float shuffle_xor(float x, int32_t mask) const { return __shfl_xor_sync(~0u, x, mask); }

  // One instruction: 2 units in the last place, and 0 below 2^-126.
  __device__ __forceinline__ float exp2(float x) const {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }

  template <typename T>
  __device__ __forceinline__ uint32_t pack(float low, float high) const {
    uint32_t pair;
    if constexpr (std::is_same_v<T, Half>) {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    } else {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    }
    return pair;
  }

 private:
  unsigned char* shared_;
  uint32_t base_;
};

}  // namespace ovsdino
#endif
