// structure_attention on CUDA: detail/attention_prepare.h, then detail/attention_block.h. Tensor cores through
// mma.sync, so from sm_80 on.
#include "launch.h"
#include "ovsdino/detail/attention_block.h"
#include "ovsdino/detail/attention_lanes.h"
#include "ovsdino/detail/attention_prepare.h"
#include "ovsdino/structure_attention.h"

namespace ovsdino {
namespace {

template <typename T>
__global__ void __launch_bounds__(kPrepareThreads, 2) prepare_structure_kernel(StructureAttention op) {
  __shared__ alignas(16) unsigned char shared[kPrepareSharedBytes];
  BlockLanes lanes(shared);
  prepare_structure<T>(op, blockIdx.x, lanes);
}

template <typename Tile, int kBlocks>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks) structure_attention_kernel(StructureAttention op) {
  __shared__ alignas(16) unsigned char shared[Tile::kSharedBytes];
  BlockLanes lanes(shared);
  attention_block<Tile>(op, blockIdx.x, lanes);
}

int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// 64 queries a block are bound by reading the keys from shared memory (700 cycles a tile, where the tensor cores need
// 260 to 510), 128 are not: they win as soon as the smaller blocks no longer have a multiprocessor each. By counting
// instructions, not by measurement.
bool wide_blocks(const StructureAttention& op) {
  return op.batch * op.heads * ceil_div(op.tokens, 64) > multiprocessors();
}

template <typename Tile, int kBlocks>
void launch_tiles(const StructureAttention& op, cudaStream_t stream) {
  const int64_t blocks = op.batch * op.heads * ceil_div(op.tokens, Tile::kQueries);
  structure_attention_kernel<Tile, kBlocks><<<static_cast<unsigned>(blocks), Tile::kThreads, 0, stream>>>(op);
}

template <typename T, int kHeadDim16>
void launch_head_dim(const StructureAttention& op, cudaStream_t stream) {
  if (op.value_dim > 64) return launch_tiles<AttentionTile<T, kHeadDim16, 8, 1>, 3>(op, stream);
  const bool wide = wide_blocks(op);
  if (op.value_dim > 32) {
    if (wide) return launch_tiles<AttentionTile<T, kHeadDim16, 4, 2>, 2>(op, stream);
    return launch_tiles<AttentionTile<T, kHeadDim16, 4, 1>, 3>(op, stream);
  }
  if (wide) return launch_tiles<AttentionTile<T, kHeadDim16, 2, 2>, 2>(op, stream);
  launch_tiles<AttentionTile<T, kHeadDim16, 2, 1>, 3>(op, stream);
}

template <typename T>
void launch(const StructureAttention& op, cudaStream_t stream) {
  const int64_t blocks = op.batch * op.heads * prepare_blocks(op);
  prepare_structure_kernel<T><<<static_cast<unsigned>(blocks), kPrepareThreads, 0, stream>>>(op);
  if (op.head_dim > 48) {
    launch_head_dim<T, 4>(op, stream);
  } else {
    launch_head_dim<T, 3>(op, stream);
  }
  check_launch("structure_attention");
}

}  // namespace

void structure_attention_cuda(const StructureAttention& op, void* stream) {
  structure_attention_check(op);
  if (op.batch * op.heads * op.tokens == 0) return;
  if (op.dtype == DType::kFloat16) launch<Half>(op, static_cast<cudaStream_t>(stream));
  if (op.dtype == DType::kBFloat16) launch<BFloat16>(op, static_cast<cudaStream_t>(stream));
}

}  // namespace ovsdino
