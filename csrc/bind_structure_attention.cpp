#include "bindings.h"
#include "ovsdino/structure_attention.h"

namespace ovsdino::bind {
namespace {

using Strides = std::array<int64_t, 4>;

void set(int64_t (&to)[4], const Strides& from) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = from[i];
}

StructureAttention attention_of(uintptr_t q, const std::string& dtype, std::array<int64_t, 4> shape, Strides q_strides,
                                uintptr_t k, Strides k_strides, uintptr_t v, int64_t value_dim, Strides v_strides,
                                uintptr_t e, int64_t rank, Strides e_strides, uintptr_t lam, uintptr_t gate,
                                std::array<int64_t, 3> gate_strides, float scale, uintptr_t out, Strides out_strides,
                                uintptr_t lse, uintptr_t workspace, int32_t query_tile) {
  StructureAttention op{};
  op.dtype = one_of(dtype, {DType::kFloat16, DType::kBFloat16}, "q");
  op.batch = shape[0], op.heads = shape[1], op.tokens = shape[2], op.head_dim = shape[3];
  op.value_dim = value_dim, op.rank = rank;
  op.q = pointer<const void>(q), op.k = pointer<const void>(k), op.v = pointer<const void>(v);
  op.e = pointer<const void>(e);
  set(op.q_strides, q_strides), set(op.k_strides, k_strides), set(op.v_strides, v_strides);
  set(op.e_strides, e_strides), set(op.out_strides, out_strides);
  op.lam = pointer<const float>(lam);
  op.gate = pointer<const void>(gate);
  for (size_t i = 0; i < gate_strides.size(); ++i) op.gate_strides[i] = gate_strides[i];
  op.scale = scale;
  op.out = pointer<void>(out);
  op.lse = pointer<float>(lse);
  op.workspace = pointer<void>(workspace);
  op.query_tile = query_tile;
  return op;
}

#ifdef OVSDINO_WITH_CUDA
void attention_on_stream(const StructureAttention& op, uintptr_t stream) {
  structure_attention_cuda(op, pointer<void>(stream));
}
#endif

constexpr const char* kArguments =
    "(q, dtype, (B, M, N, d), q_strides[4], k, k_strides[4], v, dv, v_strides[4], e, r, e_strides[4], lam, gate or 0, "
    "gate_strides[3], scale, out, out_strides[4], lse or 0, workspace, query_tile (0: any, 64, 128)";

}  // namespace

void bind_structure_attention(pybind11::module_& m) {
  const std::string args = kArguments;
  m.def("structure_attention_workspace", &structure_attention_workspace, "(B, M, N) -> bytes of workspace");
  define(m, "structure_attention_check", args + "): ValueError for what the kernel cannot take", attention_of,
         structure_attention_check);
#ifdef OVSDINO_WITH_CUDA
  define(m, "structure_attention_cuda", args + ", stream)", attention_of, attention_on_stream);
#endif
}

}  // namespace ovsdino::bind
