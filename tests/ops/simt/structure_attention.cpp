// structure_attention as CUDA would run it: both passes, block by block, on emulated lanes. Called through ctypes.
#include "ovsdino/structure_attention.h"

#include <exception>

#include "ovsdino/detail/attention_block.h"
#include "ovsdino/detail/attention_prepare.h"
#include "simt.h"

namespace {

using ovsdino::StructureAttention;

// The bytes from the first element of a tensor to its last.
int64_t extent(const StructureAttention& op, int64_t tokens, const int64_t* strides, int64_t last_size,
               int64_t last_stride) {
  const int64_t elements = (op.batch - 1) * strides[0] + (op.heads - 1) * strides[1] + (tokens - 1) * strides[2] +
                           (last_size - 1) * last_stride + 1;
  return 2 * elements;
}

simt::Global memory_of(const StructureAttention& op, bool prepare) {
  simt::Global memory;
  memory.allow(op.workspace, ovsdino::structure_attention_workspace(op), prepare);
  if (prepare) {
    memory.allow(op.e, extent(op, op.tokens, op.e_strides, op.rank, op.e_strides[3]), false);
    if (op.key_e) memory.allow(op.key_e, extent(op, op.keys, op.key_e_strides, op.rank, op.key_e_strides[3]), false);
    memory.allow(op.lam, op.heads * 4, false);
    return memory;
  }
  memory.allow(op.q, extent(op, op.tokens, op.q_strides, op.head_dim, 1), false);
  memory.allow(op.k, extent(op, op.keys, op.k_strides, op.head_dim, 1), false);
  memory.allow(op.v, extent(op, op.keys, op.v_strides, op.value_dim, 1), false);
  if (op.gate) memory.allow(op.gate, extent(op, op.tokens, op.gate_strides, 1, 1), false);
  memory.allow(op.out, extent(op, op.tokens, op.out_strides, op.value_dim, 1), true);
  return memory;
}

template <typename T>
void prepare(const StructureAttention& op, const simt::Options& options, simt::Report* report) {
  const simt::Global memory = memory_of(op, true);
  const auto blocks = static_cast<uint32_t>(op.batch * op.heads) * ovsdino::prepare_blocks(op);
  for (uint32_t block = 0; block < blocks; ++block) {
    simt::Block lanes(ovsdino::kPrepareThreads, ovsdino::kPrepareSharedBytes, memory, options, report);
    lanes.run([&](simt::Lanes& lane) { ovsdino::prepare_structure<T>(op, block, lane); });
  }
  if (options.mutation != simt::Mutation::kUnmaskedColumn) return;
  for (int64_t head = 0; head < op.batch * op.heads; ++head) {
    float* columns = ovsdino::key_columns<T>(op, head);
    for (int64_t token = op.keys; token < ovsdino::padded_tokens(op.keys); ++token) columns[token] = 0.0f;
  }
}

template <typename Tile>
void attend(const StructureAttention& op, const simt::Options& options, simt::Report* report) {
  const simt::Global memory = memory_of(op, false);
  const auto blocks = static_cast<uint32_t>(op.batch * op.heads * ovsdino::ceil_div(op.tokens, Tile::kQueries));
  for (uint32_t block = 0; block < blocks; ++block) {
    simt::Options here = options;
    here.seed += block;
    simt::Block lanes(Tile::kThreads, Tile::kSharedBytes, memory, here, report);
    lanes.run([&](simt::Lanes& lane) { ovsdino::attention_block<Tile>(op, block, lane); });
  }
}

template <typename T, int kHeadDim16>
void attend(const StructureAttention& op, const simt::Options& options, simt::Report* report) {
  using ovsdino::AttentionTile;
  if (op.value_dim > 64) return attend<AttentionTile<T, kHeadDim16, 8, 1>>(op, options, report);
  const bool wide = options.queries == 128;
  if (op.value_dim > 32) {
    if (wide) return attend<AttentionTile<T, kHeadDim16, 4, 2>>(op, options, report);
    return attend<AttentionTile<T, kHeadDim16, 4, 1>>(op, options, report);
  }
  if (wide) return attend<AttentionTile<T, kHeadDim16, 2, 2>>(op, options, report);
  attend<AttentionTile<T, kHeadDim16, 2, 1>>(op, options, report);
}

template <typename T>
void run(const StructureAttention& op, const simt::Options& options, simt::Report* report) {
  prepare<T>(op, options, report);
  op.head_dim > 48 ? attend<T, 4>(op, options, report) : attend<T, 3>(op, options, report);
}

}  // namespace

extern "C" int64_t simt_workspace(const StructureAttention* op) { return ovsdino::structure_attention_workspace(*op); }

// Returns whether the arguments pass the checks; if not, first_fault says why.
extern "C" bool simt_structure_attention(const StructureAttention* op, const simt::Options* options,
                                         simt::Report* report) {
  *report = simt::Report{};
  try {
    ovsdino::structure_attention_check(*op);
  } catch (const std::exception& error) {
    std::strncpy(report->first_fault, error.what(), sizeof(report->first_fault) - 1);
    return false;
  }
  if (op->dtype == ovsdino::DType::kFloat16) run<ovsdino::Half>(*op, *options, report);
  if (op->dtype == ovsdino::DType::kBFloat16) run<ovsdino::BFloat16>(*op, *options, report);
  return true;
}
