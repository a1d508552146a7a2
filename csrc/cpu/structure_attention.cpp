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
                int64_t tokens, int64_t bytes) {
  const int64_t sizes[3] = {op.batch, op.heads, tokens}, elements = bytes / 2;
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

int64_t structure_attention_workspace(const StructureAttention& op) {
  constexpr int64_t kRow = kStructure * 2;
  const int64_t keys = padded_tokens(op.keys) * (kRow + static_cast<int64_t>(sizeof(float)));
  return op.batch * op.heads * (keys + (op.key_e ? padded_tokens(op.tokens) * kRow : 0));
}

void structure_attention_check(const StructureAttention& op) {
  expect(op.dtype == DType::kFloat16 || op.dtype == DType::kBFloat16, "the dtype must be float16 or bfloat16");
  check_size("d", op.head_dim, kMostHeadDim);
  check_size("dv", op.value_dim, kMostValueDim);
  expect(op.rank >= 1 && op.rank <= kStructure, "r must be 1 to " + text(kStructure) + ", got " + text(op.rank));
  expect(op.batch >= 0 && op.heads >= 0 && op.tokens >= 0 && op.keys >= 0, "sizes must not be negative");
  // A tensor of no elements may have no address.
  expect(op.key_e || op.batch * op.heads == 0 || op.keys == op.tokens,
         "without key_e there must be as many keys as tokens, got " + text(op.keys) + " and " + text(op.tokens));
  expect(op.keys > 0 || op.tokens == 0, "there must be at least one key");
  constexpr int64_t kMost = int64_t{1} << 30;  // token indices and the grid are 32 bits wide
  const int64_t heads = op.batch * op.heads;
  for (const int64_t tokens : {op.tokens, op.keys}) {
    expect(tokens <= kMost, "at most " + text(kMost) + " tokens, got " + text(tokens));
    expect(heads == 0 || ceil_div(tokens, 64) <= (2 * kMost - 1) / heads,
           "too many tokens: " + text(op.batch) + " x " + text(op.heads) + " x " + text(tokens));
  }
  expect(std::isfinite(op.scale), "scale must be finite, got " + std::to_string(op.scale));
  check_rows("q", op.q, op.q_strides, op, op.tokens, 16);
  check_rows("k", op.k, op.k_strides, op, op.keys, 16);
  check_rows("v", op.v, op.v_strides, op, op.keys, 16);
  check_rows("out", op.out, op.out_strides, op, op.tokens, 4);
  expect(reinterpret_cast<uintptr_t>(op.workspace) % 16 == 0, "the workspace must start at a multiple of 16 bytes");
}

}  // namespace ovsdino
