// One warp's operations of the emulator by themselves, for tests of the emulator. Called through ctypes.
#include "simt.h"

namespace {

void on_one_warp(uint32_t shared_bytes, const simt::Global& memory, const std::function<void(simt::Lanes&)>& body) {
  simt::Report report{};
  simt::Block(32, shared_bytes, memory, simt::Options{}, &report).run(body);
}

}  // namespace

// c (32 lanes x 4) += a (32 x 4 pairs) b (32 x 2 pairs), as each lane holds them.
extern "C" void simt_multiply_add(const uint32_t* a, const uint32_t* b, float* c, bool bfloat16) {
  on_one_warp(0, simt::Global(), [&](simt::Lanes& lanes) {
    const int32_t lane = lanes.index();
    uint32_t mine[4];
    float sums[4];
    for (int32_t i = 0; i < 4; ++i) mine[i] = a[4 * lane + i], sums[i] = c[4 * lane + i];
    const uint32_t b0 = b[2 * lane], b1 = b[2 * lane + 1];
    if (bfloat16) {
      lanes.multiply_add<ovsdino::BFloat16>(sums, mine, b0, b1);
    } else {
      lanes.multiply_add<ovsdino::Half>(sums, mine, b0, b1);
    }
    for (int32_t i = 0; i < 4; ++i) c[4 * lane + i] = sums[i];
  });
}

// Four 8 x 8 matrices of 16-bit numbers, 128 bytes each, into 4 words a lane.
extern "C" void simt_load_matrices(const void* matrices, uint32_t* words, bool transposed) {
  simt::Global memory;
  memory.allow(matrices, 512, false);
  on_one_warp(512, memory, [&](simt::Lanes& lanes) {
    const uint32_t lane = static_cast<uint32_t>(lanes.index());
    lanes.copy_row(16u * lane, static_cast<const char*>(matrices) + 16u * lane, true);
    lanes.commit();
    lanes.wait<0>();
    lanes.sync();
    uint32_t mine[4];
    transposed ? lanes.load_transposed(16u * lane, mine) : lanes.load_matrices(16u * lane, mine);
    for (uint32_t i = 0; i < 4; ++i) words[4 * lane + i] = mine[i];
  });
}
