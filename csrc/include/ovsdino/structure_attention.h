// out_i = gate_i sum_j softmax_j(scale q_i.k_j - lam |e_i - e'_j|^2) v_j for each of batch x heads, in float16 or
// bfloat16 with float32 sums; no (tokens, keys) tensor. e' is key_e, or e where the keys are the same tokens.
//
// float16 holds sqrt(2 lam / |scale|) (e_i - mean) up to 65504, the mean that of e'; beyond that the result is NaN.
#pragma once

#include <cstdint>

#include "ovsdino/types.h"

namespace ovsdino {

// q, e, gate and out are (batch, heads, tokens, size), k, v and key_e (batch, heads, keys, size), each with the strides
// of its dimensions.
struct StructureAttention {
  DType dtype;  // of q, k, v, e, key_e, gate and out: kFloat16 or kBFloat16
  int64_t batch, heads, tokens, keys;
  int64_t head_dim, value_dim, rank;  // sizes of q and k, v, e; multiples of 8 up to 64 and 128; 1 to 16
  const void *q, *k, *v;              // last stride 1; address and the other strides in bytes multiples of 16
  const void *e, *key_e;              // any strides; key_e null: e, and keys is tokens
  int64_t q_strides[4], k_strides[4], v_strides[4], e_strides[4], key_e_strides[4];
  const float* lam;  // (heads), >= 0
  const void* gate;  // (batch, heads, tokens), any strides; or null
  int64_t gate_strides[3];
  float scale;
  void* out;  // last stride 1; address and the other strides in bytes multiples of 4
  int64_t out_strides[4];
  void* workspace;  // structure_attention_workspace bytes, 16-byte aligned
};

// Bytes of workspace: the centred structure of each query and key, rounded, and of each key its squared norm.
int64_t structure_attention_workspace(const StructureAttention& op);

// Throws std::invalid_argument, with the numbers, for what the kernel cannot take.
void structure_attention_check(const StructureAttention& op);

void structure_attention_cuda(const StructureAttention& op, void* stream);

}  // namespace ovsdino
