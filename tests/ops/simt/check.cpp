// structure_attention on emulated lanes against a loop in float64, without Python: for sanitizers. Every tensor has an
// allocation of its own size, so that an access past its end is found. Prints one line and returns 0 if all agree.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "ovsdino/detail/number.h"
#include "ovsdino/structure_attention.h"
#include "simt.h"

extern "C" bool simt_structure_attention(const ovsdino::StructureAttention* op, const simt::Options* options,
                                         simt::Report* report);

namespace {

using ovsdino::Half;

std::mt19937 generator(1);

struct Tensor {
  std::vector<Half> halves;
  std::vector<double> values;
};

Tensor normal(int64_t count) {
  std::normal_distribution<float> distribution;
  Tensor tensor{std::vector<Half>(static_cast<size_t>(count)), std::vector<double>(static_cast<size_t>(count))};
  for (size_t i = 0; i < tensor.halves.size(); ++i) {
    ovsdino::from_float(distribution(generator), &tensor.halves[i]);
    tensor.values[i] = ovsdino::to_float(tensor.halves[i]);
  }
  return tensor;
}

void contiguous(int64_t (&strides)[4], int64_t heads, int64_t tokens, int64_t size) {
  strides[0] = heads * tokens * size, strides[1] = tokens * size, strides[2] = size, strides[3] = 1;
}

int64_t faults(int64_t tokens, int64_t d, int64_t dv, int64_t r, int32_t queries, simt::Schedule schedule) {
  constexpr int64_t kHeads = 2;
  const int64_t rows = kHeads * tokens;
  const Tensor q = normal(rows * d), k = normal(rows * d), v = normal(rows * dv), e = normal(rows * r);
  const Tensor gate = normal(rows);
  const std::vector<float> lam = {0.3f, 1.7f};
  std::vector<Half> out(static_cast<size_t>(rows * dv));
  ovsdino::StructureAttention op{};
  op.dtype = ovsdino::DType::kFloat16;
  op.batch = 1, op.heads = kHeads, op.tokens = tokens, op.keys = tokens, op.head_dim = d, op.value_dim = dv,
  op.rank = r;
  op.q = q.halves.data(), op.k = k.halves.data(), op.v = v.halves.data(), op.e = e.halves.data();
  contiguous(op.q_strides, kHeads, tokens, d);
  contiguous(op.k_strides, kHeads, tokens, d);
  contiguous(op.v_strides, kHeads, tokens, dv);
  contiguous(op.e_strides, kHeads, tokens, r);
  contiguous(op.out_strides, kHeads, tokens, dv);
  op.lam = lam.data(), op.gate = gate.halves.data();
  op.gate_strides[0] = rows, op.gate_strides[1] = tokens, op.gate_strides[2] = 1;
  op.scale = 0.15f;
  std::vector<char> workspace(static_cast<size_t>(ovsdino::structure_attention_workspace(op)));
  op.out = out.data(), op.workspace = workspace.data();
  const simt::Options options{simt::Mutation::kNone, schedule, 7, queries};
  simt::Report report;
  if (!simt_structure_attention(&op, &options, &report)) return 1;
  if (report.faults > 0) std::fprintf(stderr, "%s\n", report.first_fault);

  int64_t wrong = report.faults;
  std::vector<double> weights(static_cast<size_t>(tokens));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = row / tokens;
    double sum = 0.0;
    for (int64_t j = 0; j < tokens; ++j) {
      const int64_t key = head * tokens + j;
      double logit = 0.0;
      for (int64_t c = 0; c < d; ++c) logit += 0.15 * q.values[row * d + c] * k.values[key * d + c];
      for (int64_t c = 0; c < r; ++c) logit -= lam[head] * std::pow(e.values[row * r + c] - e.values[key * r + c], 2);
      sum += weights[j] = std::exp(logit);
    }
    for (int64_t c = 0; c < dv; ++c) {
      double value = 0.0;
      for (int64_t j = 0; j < tokens; ++j) value += weights[j] / sum * v.values[(head * tokens + j) * dv + c];
      wrong += !(std::fabs(ovsdino::to_float(out[row * dv + c]) - gate.values[row] * value) < 0.01);
    }
  }
  return wrong;
}

}  // namespace

int main() {
  int64_t wrong = faults(65, 48, 64, 15, 64, simt::Schedule::kRandom);
  wrong += faults(97, 40, 32, 3, 128, simt::Schedule::kWarpAhead);
  wrong += faults(1, 64, 128, 16, 64, simt::Schedule::kRandom);
  std::printf("%lld faults\n", static_cast<long long>(wrong));
  return wrong != 0;
}
