// This machine's own limits, measured: what the rate of a kernel or of a layer is a share of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace stagecoach {

// Processor time of this thread: on a shared machine the time of day also counts other people's
// work.
double thread_seconds();

// How hard a limit is looked for. Of several windows the best counts: others can only take away
// from a limit.
struct ProbeEffort {
  int threads = 1;
  int windows = 20;
  double window_seconds = 0.01;
};

enum class DotType : std::uint8_t { kF32, kBF16, kInt8 };

struct DotPeak {
  double ops_per_second = 0;      // all threads together; a multiply-add counts as two
  const char* instructions = "";  // for people: "AVX-512 FMA"
};

// Whether the processor has instructions for products of `type`, or makes them of others'.
bool has_dot(DotType type);

// Dot products of `type` with operands in registers, by the best instructions of this processor.
// bf16 without instructions of its own is f32, which is what kernels then compute in. Of several
// threads the rates by processor time are added up.
DotPeak probe_dot(DotType type, const ProbeEffort& effort);

// The same by the instructions that the kernel table `isa` ("avx2") multiplies `type` with.
DotPeak probe_dot_of(const std::string& isa, DotType type, const ProbeEffort& effort);

// Bytes per second of reading memory in order; `bytes` in all, a part for each thread, should be
// far beyond the caches. One thread is timed by its processor time, several by the time of day,
// since how they hold each other up is the question. Throws std::bad_alloc.
double probe_memory_read(std::size_t bytes, const ProbeEffort& effort);

}  // namespace stagecoach
