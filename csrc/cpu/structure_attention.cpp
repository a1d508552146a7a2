// The part of structure_attention that needs no GPU: the checks of its arguments.
#include "ovsdino/structure_attention.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "ovsdino/detail/attention_layout.h"

namespace ovsdino {
namespace {

void expect(bool good, const std::string& message) {
  if (!good) throw std::invalid_argument("structure_attention: " + message);
}

std::string text(int64_t number) { return std::to_string(number); }

void check_size(const char* name, int64_t size, int64_t most) {
  expect(size >= 8 && size <= most && size % 8 == 0, std::string(name) + " must be a multiple of 8 from 8 to " +
                                                         text(most) + ", got " + text(size) +
                                                         "; fill it with zeros to the next one");
}

// Rows are read or written `bytes` at a time.
void check_rows(const char* name, const void* address, const int64_t* strides, const StructureAttention& op,
                int64_t bytes) {
  const int64_t sizes[3] = {op.batch, op.heads, op.tokens}, elements = bytes / 2;
  const std::string remedy = "; make it contiguous";
  expect(strides[3] == 1, std::string(name) + " must have last stride 1, got " + text(strides[3]) + remedy);
  expect(reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(bytes) == 0,
         std::string(name) + " must start at a multiple of " + text(bytes) + " bytes" + remedy);
  for (int dim = 0; dim < 3; ++dim) {
    expect(sizes[dim] <= 1 || strides[dim] % elements == 0, std::string(name) + " must have strides of multiples of " +
                                                                text(elements) + " elements, got " +
                                                                text(strides[dim]) + remedy);
  }
}

}  // namespace

int64_t structure_attention_workspace(int64_t batch, int64_t heads, int64_t tokens) {
  return batch * heads * padded_tokens(tokens) * (kStructure * 2 + static_cast<int64_t>(sizeof(float)));
}

void structure_attention_check(const StructureAttention& op) {
  expect(op.dtype == DType::kFloat16 || op.dtype == DType::kBFloat16, "the dtype must be float16 or bfloat16");
  check_size("d", op.head_dim, kMostHeadDim);
  check_size("dv", op.value_dim, kMostValueDim);
  expect(op.rank >= 1 && op.rank <= kStructure, "r must be 1 to " + text(kStructure) + ", got " + text(op.rank));
  expect(op.batch >= 0 && op.heads >= 0 && op.tokens >= 0, "sizes must not be negative");
  constexpr int64_t kMost = int64_t{1} << 30;  // token indices and the grid are 32 bits wide
  expect(op.tokens <= kMost, "at most " + text(kMost) + " tokens, got " + text(op.tokens));
  const int64_t heads = op.batch * op.heads;
  expect(heads == 0 || ceil_div(op.tokens, 64) <= (2 * kMost - 1) / heads,
         "too many tokens: " + text(op.batch) + " x " + text(op.heads) + " x " + text(op.tokens));
  expect(std::isfinite(op.scale), "scale must be finite, got " + std::to_string(op.scale));
  check_rows("q", op.q, op.q_strides, op, 16);
  check_rows("k", op.k, op.k_strides, op, 16);
  check_rows("v", op.v, op.v_strides, op, 16);
  check_rows("out", op.out, op.out_strides, op, 4);
  expect(reinterpret_cast<uintptr_t>(op.workspace) % 16 == 0, "the workspace must start at a multiple of 16 bytes");
}

}  // namespace ovsdino
