// Barriers and warp collectives: who waits for whom, and every wrong use that can be seen.
#include <fmt/format.h>

#include <bit>
#include <cstring>

#include "block_state.h"

namespace cuda_sim {
namespace {

const char* name(BarrierKind kind) {
  constexpr const char* kNames[] = {"__syncthreads", "__syncthreads_or", "__syncthreads_and",
                                    "__syncthreads_count"};
  return kNames[static_cast<int>(kind)];
}
const char* name(WarpKind kind) {
  constexpr const char* kNames[] = {"__syncwarp",       "__shfl_sync",     "__shfl_up_sync",
                                    "__shfl_down_sync", "__shfl_xor_sync", "__ballot_sync",
                                    "__any_sync",       "__all_sync",      "mma.m16n8k16",
                                    "mma.m16n8k8",      "ldmatrix"};
  return kNames[static_cast<int>(kind)];
}

std::string text(Place place) {
  const char* const slash = std::strrchr(place.file, '/');
  return fmt::format("{}:{}", slash != nullptr ? slash + 1 : place.file, place.line);
}

std::string current_thread() {
  return fmt::format("thread ({},{},{})", threadIdx.x, threadIdx.y, threadIdx.z);
}

bool same(Place a, Place b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

void make_ready(int thread) {
  block_state.ready[block_state.ready_count++] = static_cast<std::uint16_t>(thread);
}

// The lane whose value a lane gets; itself where the segment ends.
unsigned source_lane(WarpKind kind, unsigned lane, unsigned argument, int width) {
  const unsigned size = static_cast<unsigned>(width);
  const unsigned first = lane & ~(size - 1);
  const unsigned last = first + size - 1;
  switch (kind) {
    case WarpKind::kShfl:
      return first + (argument & (size - 1));
    case WarpKind::kShflUp:
      return argument <= lane - first ? lane - argument : lane;
    case WarpKind::kShflDown:
      return argument <= last - lane ? lane + argument : lane;
    default:  // an exclusive or may reach earlier segments, not later ones
      return (lane ^ argument) <= last ? lane ^ argument : lane;
  }
}

void complete(const Collective& collective, unsigned first_thread) {
  BlockState& state = block_state;
  if (collective.work != nullptr) {
    void* operands[32];
    for (unsigned lane = 0; lane < 32; ++lane) {
      operands[lane] = std::bit_cast<void*>(state.bits[first_thread + lane]);
      make_ready(static_cast<int>(first_thread + lane));
    }
    collective.work(operands);
    return;
  }
  std::array<std::uint64_t, 32> values{};
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((collective.mask >> lane & 1) == 0) {
      values[lane] = ~std::uint64_t{0};  // nobody's value: NaN, -1
      continue;
    }
    values[lane] = state.bits[first_thread + lane];
    if (values[lane] != 0) votes |= 1u << lane;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((collective.mask >> lane & 1) == 0) continue;
    const unsigned thread = first_thread + lane;
    std::uint64_t result = 0;
    switch (collective.kind) {
      case WarpKind::kSync:
        break;
      case WarpKind::kBallot:
        result = votes;
        break;
      case WarpKind::kAny:
        result = votes != 0;
        break;
      case WarpKind::kAll:
        result = votes == collective.mask;
        break;
      default: {
        const unsigned source =
            source_lane(collective.kind, lane, state.argument[thread], state.width[thread]);
        result = values[source & 31];
      }
    }
    state.bits[thread] = result;
    make_ready(static_cast<int>(thread));
  }
}

void check_call(WarpKind kind, unsigned mask, int width, Place place, const Warp& warp,
                unsigned lane) {
  const auto fail = [&](const std::string& what) {
    fail_block(cudaErrorLaunchFailure,
               fmt::format("{}: {} ({}), mask {:#010x}: {}", current_thread(), name(kind),
                           text(place), mask, what));
  };
  if ((mask >> lane & 1) == 0) fail(fmt::format("the mask is without the caller, lane {}", lane));
  if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width)))
    fail(fmt::format("width {} is no power of two up to 32", width));
  if ((mask & ~warp.lanes) != 0)
    fail(fmt::format("names lanes {:#x} that the block does not have", mask & ~warp.lanes));
  if ((mask & warp.left) != 0)
    fail(fmt::format("names lanes {:#x} that have left the kernel", mask & warp.left));
}

[[noreturn]] void mismatch(WarpKind kind, unsigned mask, Place place, const Collective& other) {
  fail_block(cudaErrorLaunchFailure,
             fmt::format("{}: {} ({}) with mask {:#010x}, while lanes {:#x} of its warp wait in {} "
                         "({}) with mask {:#010x}",
                         current_thread(), name(kind), text(place), mask, other.arrived,
                         name(other.kind), text(other.place), other.mask));
}

void require_block(const char* what, Place place) {
  if (block_state.active) return;
  fmt::print(stderr, "cuda_sim: {} ({}) is called outside of a kernel\n", what, text(place));
  std::abort();
}

}  // namespace

int barrier(BarrierKind kind, int predicate, Place place) {
  require_block(name(kind), place);
  BlockState& state = block_state;
  Barrier& barrier = state.barrier;
  if (state.left != 0)
    fail_block(cudaErrorLaunchFailure,
               fmt::format("{} waits at {} ({}), but {} of {} threads have left the kernel",
                           current_thread(), name(kind), text(place), state.left, state.threads));
  if (barrier.arrived == 0) {
    barrier.kind = kind;
    barrier.place = place;
    barrier.count = 0;
  } else if (barrier.kind != kind || !same(barrier.place, place)) {
    fail_block(cudaErrorLaunchFailure,
               fmt::format("{} waits at {} ({}), but {} of {} threads wait at {} ({})",
                           current_thread(), name(kind), text(place), barrier.arrived,
                           state.threads, name(barrier.kind), text(barrier.place)));
  }
  ++barrier.arrived;
  barrier.count += predicate != 0;
  if (barrier.arrived == state.threads) {
    const int threads = static_cast<int>(state.threads);
    barrier.result = kind == BarrierKind::kOr    ? barrier.count != 0
                     : kind == BarrierKind::kAnd ? barrier.count == threads
                                                 : barrier.count;
    barrier.arrived = 0;
    for (int thread = 0; thread < threads; ++thread) make_ready(thread);
  }
  switch_thread();
  return barrier.result;
}

namespace {

std::uint64_t join(WarpKind kind, unsigned type_bytes, unsigned mask, std::uint64_t bits,
                   unsigned argument, int width, Place place, WarpWork work) {
  require_block(name(kind), place);
  BlockState& state = block_state;
  const unsigned thread = static_cast<unsigned>(state.current);
  const unsigned lane = thread % 32;
  Warp& warp = state.warps[thread / 32];
  check_call(kind, mask, width, place, warp, lane);
  Collective* own = nullptr;
  for (unsigned i = 0; i < warp.pending_count; ++i) {
    Collective& other = warp.pending[i];
    if ((other.mask & mask) == 0) continue;
    if (other.mask != mask || other.kind != kind || other.type_bytes != type_bytes ||
        other.work != work || (work != nullptr && !same(other.place, place)))
      mismatch(kind, mask, place, other);
    own = &other;
  }
  if (own == nullptr) {
    own = &warp.pending[warp.pending_count++];
    *own = {kind, type_bytes, mask, 0, place, work};
  }
  own->arrived |= 1u << lane;
  state.bits[thread] = bits;
  state.argument[thread] = argument;
  state.width[thread] = width;
  if (own->arrived == mask) {
    complete(*own, thread - lane);
    *own = warp.pending[--warp.pending_count];
  }
  switch_thread();
  return state.bits[thread];
}

}  // namespace

std::uint64_t warp_collective(WarpKind kind, unsigned type_bytes, unsigned mask, std::uint64_t bits,
                              unsigned argument, int width, Place place) {
  return join(kind, type_bytes, mask, bits, argument, width, place, nullptr);
}

void warp_together(WarpKind kind, void* operands, WarpWork work, Place place) {
  join(kind, 0, 0xffffffffu, std::bit_cast<std::uint64_t>(operands), 0, 32, place, work);
}

void refuse(const char* what, Place place) {
  require_block(what, place);
  fail_block(cudaErrorLaunchFailure,
             fmt::format("{}: {} ({}) is refused", current_thread(), what, text(place)));
}

void leave_block() {
  BlockState& state = block_state;
  const unsigned thread = static_cast<unsigned>(state.current);
  Warp& warp = state.warps[thread / 32];
  const unsigned bit = 1u << (thread % 32);
  ++state.left;
  warp.left |= bit;
  for (unsigned i = 0; i < warp.pending_count; ++i) {
    const Collective& other = warp.pending[i];
    if ((other.mask & bit) != 0)
      fail_block(
          cudaErrorLaunchFailure,
          fmt::format("{} leaves the kernel, while lanes {:#x} of its warp wait for it in {} "
                      "({}) with mask {:#010x}",
                      current_thread(), other.arrived, name(other.kind), text(other.place),
                      other.mask));
  }
}

std::string describe_waiting() {
  const BlockState& state = block_state;
  std::string what;
  if (state.barrier.arrived != 0)
    what = fmt::format("{} of {} threads wait at {} ({})", state.barrier.arrived, state.threads,
                       name(state.barrier.kind), text(state.barrier.place));
  for (unsigned w = 0; w * 32 < state.threads; ++w) {
    for (unsigned i = 0; i < state.warps[w].pending_count; ++i) {
      const Collective& one = state.warps[w].pending[i];
      what += fmt::format("{}lanes {:#x} of warp {} wait in {} ({}) for lanes {:#x}",
                          what.empty() ? "" : ", ", one.arrived, w, name(one.kind), text(one.place),
                          one.mask & ~one.arrived);
    }
  }
  return what + fmt::format(", {} have left the kernel", state.left);
}

}  // namespace cuda_sim
