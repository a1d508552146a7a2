#include "bindings.h"
#include "ovsdino/structure_attention.h"

namespace ovsdino::bind {
namespace {

using Op = StructureAttention;

// An address as an integer.
template <typename T>
void define_address(pybind11::class_<Op>& fields, const char* name, T* Op::* member) {
  fields.def_property(
      name, [member](const Op& op) { return reinterpret_cast<uintptr_t>(op.*member); },
      [member](Op& op, uintptr_t address) { op.*member = pointer<T>(address); });
}

template <size_t kCount>
void define_strides(pybind11::class_<Op>& fields, const char* name, int64_t (Op::*member)[kCount]) {
  using Strides = std::array<int64_t, kCount>;
  fields.def_property(
      name,
      [member](const Op& op) {
        Strides found;
        std::copy_n(op.*member, kCount, found.begin());
        return found;
      },
      [member](Op& op, const Strides& strides) { std::copy_n(strides.begin(), kCount, op.*member); });
}

// Calls f with the GIL released, on a copy of the fields: another thread may change the object meanwhile.
void check(Op op) {
  const pybind11::gil_scoped_release release;
  structure_attention_check(op);
}

#ifdef OVSDINO_WITH_CUDA
void run(Op op, uintptr_t stream) {
  const pybind11::gil_scoped_release release;
  structure_attention_cuda(op, pointer<void>(stream));
}
#endif

}  // namespace

void bind_structure_attention(pybind11::module_& m) {
  pybind11::class_<Op> fields(m, "StructureAttention", "The arguments of one call; csrc/include has their meaning.");
  fields.def(pybind11::init([] { return Op{}; }));
  fields.def_property(
      "dtype", [](const Op& op) { return op.dtype == DType::kFloat16 ? "float16" : "bfloat16"; },
      [](Op& op, const std::string& name) { op.dtype = one_of(name, {DType::kFloat16, DType::kBFloat16}, "q"); });
  fields.def_readwrite("batch", &Op::batch).def_readwrite("heads", &Op::heads).def_readwrite("tokens", &Op::tokens);
  fields.def_readwrite("keys", &Op::keys);
  fields.def_readwrite("head_dim", &Op::head_dim).def_readwrite("value_dim", &Op::value_dim);
  fields.def_readwrite("rank", &Op::rank).def_readwrite("scale", &Op::scale);
  define_address(fields, "q", &Op::q);
  define_address(fields, "k", &Op::k);
  define_address(fields, "v", &Op::v);
  define_address(fields, "e", &Op::e);
  define_address(fields, "key_e", &Op::key_e);
  define_address(fields, "lam", &Op::lam);
  define_address(fields, "gate", &Op::gate);
  define_address(fields, "out", &Op::out);
  define_address(fields, "workspace", &Op::workspace);
  define_strides(fields, "q_strides", &Op::q_strides);
  define_strides(fields, "k_strides", &Op::k_strides);
  define_strides(fields, "v_strides", &Op::v_strides);
  define_strides(fields, "e_strides", &Op::e_strides);
  define_strides(fields, "key_e_strides", &Op::key_e_strides);
  define_strides(fields, "gate_strides", &Op::gate_strides);
  define_strides(fields, "out_strides", &Op::out_strides);
  m.def("structure_attention_workspace", &structure_attention_workspace, "(op) -> bytes of workspace");
  m.def("structure_attention_check", &check, "(op): raise ValueError for what the kernel cannot take");
#ifdef OVSDINO_WITH_CUDA
  m.def("structure_attention_cuda", &run, "(op, stream)");
#endif
}

}  // namespace ovsdino::bind
