#include "simt.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

float widen(uint32_t pair, int32_t half, bool bfloat16) {
  const uint16_t bits = static_cast<uint16_t>(half == 0 ? pair : pair >> 16);
  return bfloat16 ? ovsdino::to_float(ovsdino::BFloat16{bits}) : ovsdino::to_float(ovsdino::Half{bits});
}

}  // namespace

Block::Block(int32_t lanes, uint32_t shared_bytes, const Global& global, const Options& options, Report* report)
    : global_(global),
      options_(options),
      report_(report),
      random_(options.seed),
      fibers_(static_cast<size_t>(lanes)),
      shared_(shared_bytes, 0xff),
      shadow_(shared_bytes),
      warp_order_(static_cast<size_t>(lanes / 32)) {
  std::iota(warp_order_.begin(), warp_order_.end(), 0);
  std::shuffle(warp_order_.begin(), warp_order_.end(), random_);
}

void Block::enter(unsigned high, unsigned low) {
  Block* self = reinterpret_cast<Block*>(static_cast<uintptr_t>(high) << 32 | low);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->scheduler_stack_, &self->scheduler_stack_bytes_);
#endif
  Lanes lanes(self, self->running_);
  (*self->body_)(lanes);
  self->pause(State::kDone);
}

void Block::resume(int32_t lane) {
  running_ = lane;
  Fiber& fiber = fibers_[static_cast<size_t>(lane)];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack_, fiber.stack.get(), kStackBytes);
#endif
  swapcontext(&scheduler_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
}

// Back to the scheduler, until the state is kReady again.
void Block::pause(State state) {
  Fiber& fiber = fibers_[static_cast<size_t>(running_)];
  fiber.state = state;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(state == State::kDone ? nullptr : &fiber.fake_stack, scheduler_stack_,
                                 scheduler_stack_bytes_);
#endif
  swapcontext(&fiber.context, &scheduler_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
}

void Block::run(const std::function<void(Lanes&)>& body) {
  body_ = &body;
  const auto self = reinterpret_cast<uintptr_t>(this);
  for (Fiber& fiber : fibers_) {
    fiber.stack.reset(new char[kStackBytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Block::enter), 2, static_cast<unsigned>(self >> 32),
                static_cast<unsigned>(self));
  }
  for (int32_t lane = choose(); lane >= 0; lane = choose()) {
    resume(lane);
    advance();
  }
  for (const Fiber& fiber : fibers_) {
    if (fiber.state != State::kDone) {
      fault("lanes wait for others that are done or wait elsewhere");
      break;
    }
  }
  count_all();
}

// A lane to run next, -1 if none can.
int32_t Block::choose() {
  const auto lanes = static_cast<int32_t>(fibers_.size());
  const auto ready = [&](int32_t lane) { return fibers_[static_cast<size_t>(lane)].state == State::kReady; };
  if (options_.schedule == Schedule::kRandom) {
    const auto start = static_cast<int32_t>(random_() % fibers_.size());
    for (int32_t i = 0; i < lanes; ++i) {
      if (ready((start + i) % lanes)) return (start + i) % lanes;
    }
    return -1;
  }
  for (const int32_t warp : warp_order_) {
    const auto start = static_cast<int32_t>(random_() % 32);
    for (int32_t i = 0; i < 32; ++i) {
      if (ready(32 * warp + (start + i) % 32)) return 32 * warp + (start + i) % 32;
    }
  }
  return -1;
}

// Does what the last lane to arrive completes.
void Block::advance() {
  const int32_t warp = running_ / 32;
  Fiber* first = &fibers_[static_cast<size_t>(32 * warp)];
  if (std::all_of(first, first + 32, [](const Fiber& f) { return f.state == State::kAtWarp; })) {
    const Kind kind = first->request.kind;
    if (!std::all_of(first, first + 32, [&](const Fiber& f) { return f.request.kind == kind; })) {
      fault("lanes of a warp are at different operations");
    } else if (kind == Kind::kProduct) {
      do_product(warp);
    } else if (kind == Kind::kShuffle) {
      do_shuffle(warp);
    } else if (kind == Kind::kBallot) {
      do_ballot(warp);
    } else {
      do_matrices(warp, kind == Kind::kTransposed);
    }
    std::for_each(first, first + 32, [](Fiber& f) { f.state = State::kReady; });
  }
  if (std::all_of(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return f.state == State::kAtBarrier; })) {
    release_barrier();
  }
}

void Block::release_barrier() {
  for (Shadow& shadow : shadow_) shadow.writer = shadow.reader = -1;
  for (Fiber& fiber : fibers_) {
    for (const Copy& copy : fiber.landed) {
      std::memcpy(&shared_[copy.to], copy.bytes, sizeof(copy.bytes));
      for (uint32_t i = 0; i < sizeof(copy.bytes); ++i) shadow_[copy.to + i].valid = true;
    }
    fiber.landed.clear();
    fiber.state = State::kReady;
  }
  std::shuffle(warp_order_.begin(), warp_order_.end(), random_);
}

void Block::fault(const std::string& message) {
  if (report_->faults++ == 0) {
    std::strncpy(report_->first_fault, message.c_str(), sizeof(report_->first_fault) - 1);
  }
}

// Whether a lane may write there now; it is the writer then.
bool Block::claim(uint32_t offset, uint32_t bytes, int32_t lane) {
  if (offset + uint64_t{bytes} > shared_.size() || offset % bytes != 0) {
    fault("shared write out of bounds or not aligned");
    return false;
  }
  bool free = true;
  for (uint32_t i = offset; i < offset + bytes; ++i) {
    free = free && (shadow_[i].reader == -1 || shadow_[i].reader == lane);
    free = free && (shadow_[i].writer == -1 || shadow_[i].writer == lane);
    shadow_[i].writer = lane;
  }
  if (!free) fault("shared write over what another lane read or wrote since the last barrier");
  return true;
}

void Block::write(uint32_t offset, const void* from, uint32_t bytes, int32_t lane) {
  if (!claim(offset, bytes, lane)) return;
  std::memcpy(&shared_[offset], from, bytes);
  for (uint32_t i = offset; i < offset + bytes; ++i) shadow_[i].valid = true;
}

void Block::read(uint32_t offset, void* to, uint32_t bytes, int32_t lane) {
  std::memset(to, 0xff, bytes);
  if (offset + uint64_t{bytes} > shared_.size() || offset % bytes != 0) {
    return fault("shared read out of bounds or not aligned");
  }
  bool valid = true, settled = true;
  for (uint32_t i = offset; i < offset + bytes; ++i) {
    Shadow& shadow = shadow_[i];
    valid = valid && shadow.valid;
    settled = settled && (shadow.writer == -1 || shadow.writer == lane);
    shadow.reader = shadow.reader == -1 || shadow.reader == lane ? lane : -2;
  }
  if (!valid) fault("shared read of what was not written, or is being copied");
  if (!settled) fault("shared read of what another lane wrote since the last barrier");
  std::memcpy(to, &shared_[offset], bytes);
}

void Block::do_matrices(int32_t warp, bool transposed) {
  Fiber* lanes = &fibers_[static_cast<size_t>(32 * warp)];
  std::vector<int64_t> offsets(32);
  for (int32_t m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (int32_t row = 0; row < 8; ++row) {
      const uint32_t offset = lanes[8 * m + row].request.offset;
      offsets[static_cast<size_t>(8 * m + row)] = offset;
      // All lanes of the warp read together, so the reader is the warp's first lane.
      read(offset, matrix[row], 16, 32 * warp);
    }
    for (int32_t lane = 0; lane < 32; ++lane) {
      const int32_t row = lane / 4, column = lane % 4 * 2;
      const uint32_t low = transposed ? matrix[column][row] : matrix[row][column];
      const uint32_t high = transposed ? matrix[column + 1][row] : matrix[row][column + 1];
      lanes[lane].request.matrices[m] = low | high << 16;
    }
  }
  count(offsets, 16, &report_->matrix_phases, &report_->matrix_wavefronts);
}

void Block::do_product(int32_t warp) {
  Fiber* lanes = &fibers_[static_cast<size_t>(32 * warp)];
  float a[16][16], b[16][8];
  for (int32_t lane = 0; lane < 32; ++lane) {
    const Request& request = lanes[lane].request;
    const int32_t group = lane / 4, pair = lane % 4 * 2;
    for (int32_t half = 0; half < 2; ++half) {
      for (int32_t part = 0; part < 4; ++part) {
        a[group + part % 2 * 8][pair + part / 2 * 8 + half] = widen(request.a[part], half, request.bfloat16);
      }
      b[pair + half][group] = widen(request.b[0], half, request.bfloat16);
      b[pair + 8 + half][group] = widen(request.b[1], half, request.bfloat16);
    }
  }
  for (int32_t lane = 0; lane < 32; ++lane) {
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = lanes[lane].request.c[i];
      for (int32_t k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      lanes[lane].request.c[i] = sum;
    }
  }
  ++report_->products;
}

void Block::do_shuffle(int32_t warp) {
  Fiber* lanes = &fibers_[static_cast<size_t>(32 * warp)];
  std::array<float, 32> from{};
  for (size_t lane = 0; lane < 32; ++lane) from[lane] = lanes[lane].request.x;
  for (int32_t lane = 0; lane < 32; ++lane) {
    lanes[lane].request.x = from[static_cast<size_t>(lane ^ lanes[lane].request.mask)];
  }
}

void Block::do_ballot(int32_t warp) {
  Fiber* lanes = &fibers_[static_cast<size_t>(32 * warp)];
  uint32_t bits = 0;
  for (int32_t lane = 0; lane < 32; ++lane) bits |= static_cast<uint32_t>(lanes[lane].request.mask) << lane;
  for (int32_t lane = 0; lane < 32; ++lane) lanes[lane].request.offset = bits;
}

void Block::note_load(int32_t lane, const void* from, size_t bytes) {
  const int32_t size = __builtin_ctz(static_cast<uint32_t>(bytes));
  int64_t& number = fibers_[static_cast<size_t>(lane)].global_loads[size];
  const uintptr_t first = reinterpret_cast<uintptr_t>(from), last = first + bytes - 1;
  std::set<uintptr_t>& sectors = sectors_[{lane / 32, size, number++}];
  for (uintptr_t sector = first / 32; sector <= last / 32; ++sector) sectors.insert(sector);
}

// Lanes are served 128 bytes at a time; words of one bank take one wavefront each, unless they are the same word.
void Block::count(const std::vector<int64_t>& offsets, int32_t bytes, int64_t* phases, int64_t* wavefronts) const {
  const size_t together = static_cast<size_t>(128 / bytes);
  for (size_t first = 0; first < offsets.size(); first += together) {
    std::array<std::set<int64_t>, 32> banks;
    for (size_t i = first; i < first + together; ++i) {
      if (offsets[i] < 0) continue;
      for (int64_t word = offsets[i] / 4; word < (offsets[i] + bytes) / 4; ++word) banks[word % 32].insert(word);
    }
    size_t most = 0;
    for (const std::set<int64_t>& words : banks) most = std::max(most, words.size());
    *phases += most > 0;
    *wavefronts += static_cast<int64_t>(most);
  }
}

void Block::count_all() {
  for (const auto& [instruction, offsets] : copies_) {
    count(offsets, 16, &report_->copy_phases, &report_->copy_wavefronts);
  }
  for (const auto& [instruction, offsets] : loads_) {
    count(offsets, 8, &report_->load_phases, &report_->load_wavefronts);
  }
  for (const auto& [instruction, sectors] : sectors_) {
    const int32_t size = std::get<1>(instruction);
    ++report_->global_loads[size];
    report_->global_sectors[size] += static_cast<int64_t>(sectors.size());
  }
}

void Lanes::sync() {
  if (block_->options_.mutation != Mutation::kNoBarrier) block_->pause(Block::State::kAtBarrier);
}

void Lanes::copy_row(uint32_t to, const void* from, bool valid) {
  Block::Copy copy{};
  if (block_->options_.mutation == Mutation::kShiftedRow) to += 16;
  copy.to = to;
  if (valid || block_->options_.mutation == Mutation::kUnmaskedCopy) {
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
      block_->fault("copy from an address not aligned to 16 bytes");
    } else if (!block_->global_.allows(from, 16, false)) {
      block_->fault("copy from out of bounds");
    } else {
      std::memcpy(copy.bytes, from, 16);
    }
  }
  if (!block_->claim(to, 16, index_)) return;
  // From now until it lands the contents are anybody's guess.
  std::memset(&block_->shared_[to], 0xff, 16);
  for (uint32_t i = 0; i < 16; ++i) block_->shadow_[to + i].valid = false;
  Block::Fiber& fiber = block_->fibers_[static_cast<size_t>(index_)];
  fiber.open.push_back(copy);
  std::vector<int64_t>& offsets = block_->copies_[{index_ / 32, fiber.copies++}];
  offsets.resize(32, -1);
  offsets[static_cast<size_t>(index_ % 32)] = to;
}

void Lanes::commit() {
  Block::Fiber& fiber = block_->fibers_[static_cast<size_t>(index_)];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void Lanes::wait_for(size_t latest) {
  const Mutation mutation = block_->options_.mutation;
  if (mutation == Mutation::kNoWait) return;
  if (mutation == Mutation::kWaitTooFew) ++latest;
  Block::Fiber& fiber = block_->fibers_[static_cast<size_t>(index_)];
  while (fiber.groups.size() > latest) {
    for (const Block::Copy& copy : fiber.groups.front()) {
      if (mutation != Mutation::kNoBarrier) {
        fiber.landed.push_back(copy);
        continue;
      }
      std::memcpy(&block_->shared_[copy.to], copy.bytes, sizeof(copy.bytes));
      for (uint32_t i = 0; i < sizeof(copy.bytes); ++i) block_->shadow_[copy.to + i].valid = true;
    }
    fiber.groups.erase(fiber.groups.begin());
  }
}

void Lanes::matrices(uint32_t offset, uint32_t (&m)[4], bool transposed) {
  Block::Request& request = block_->fibers_[static_cast<size_t>(index_)].request;
  transposed = transposed && block_->options_.mutation != Mutation::kNotTransposed;
  request.kind = transposed ? Block::Kind::kTransposed : Block::Kind::kMatrices;
  request.offset = offset;
  request.matrices = m;
  block_->pause(Block::State::kAtWarp);
}

void Lanes::product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool bfloat16) {
  Block::Request& request = block_->fibers_[static_cast<size_t>(index_)].request;
  request.kind = Block::Kind::kProduct;
  request.c = c;
  std::copy(a, a + 4, request.a);
  request.b[0] = b0, request.b[1] = b1;
  request.bfloat16 = bfloat16;
  block_->pause(Block::State::kAtWarp);
}

float Lanes::shuffle_xor(float x, int32_t mask) {
  Block::Request& request = block_->fibers_[static_cast<size_t>(index_)].request;
  request.kind = Block::Kind::kShuffle;
  request.x = x;
  request.mask = mask;
  block_->pause(Block::State::kAtWarp);
  return request.x;
}

uint32_t Lanes::ballot(bool x) {
  Block::Request& request = block_->fibers_[static_cast<size_t>(index_)].request;
  request.kind = Block::Kind::kBallot;
  request.mask = x ? 1 : 0;
  block_->pause(Block::State::kAtWarp);
  return request.offset;
}

}  // namespace simt
