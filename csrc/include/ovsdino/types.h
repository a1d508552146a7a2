// Element types of the plain C++ API. Pointers are untyped, strides are in elements.
#pragma once

#include <cstdint>

namespace ovsdino {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kUint8, kInt16, kInt32 };

}  // namespace ovsdino

// A function that CUDA kernels and the CPU tests of their indexing both call. `static`: the CPU files are compiled for
// several instruction sets, and one copy for all callers might be the AVX-512 one.
#ifdef __CUDACC__
#define OVSDINO_HD static __host__ __device__ __forceinline__
#define OVSDINO_HD_MEMBER __host__ __device__ __forceinline__
#else
#define OVSDINO_HD static inline
#define OVSDINO_HD_MEMBER inline
#endif

// Before a loop over registers, which must not stay a loop: only nvcc needs to be told.
#ifdef __CUDACC__
#define OVSDINO_PRAGMA(x) _Pragma(#x)
#define OVSDINO_UNROLL _Pragma("unroll")
#define OVSDINO_UNROLL_BY(n) OVSDINO_PRAGMA(unroll n)
#else
#define OVSDINO_UNROLL
#define OVSDINO_UNROLL_BY(n)
#endif
