#include "kernels/probe/probe.h"

#include <gtest/gtest.h>

#include <string>

#include "kernels/include/ops.h"
#include "kernels/probe/dot_loops.h"

namespace stagecoach {
namespace {

constexpr ProbeEffort kBrief{.threads = 2, .windows = 2, .window_seconds = 0.0005};

// The best ones run everywhere; those that this processor has better ones for, only here.
TEST(Probe, EveryLoopThatIsLegalHereRuns) {
  for (const DotLoop& loop : x86_dot_loops()) {
    if (loop.runs_here()) {
      EXPECT_GT(loop.run(), 0) << loop.instructions;
    }
  }
}

TEST(Probe, EveryTypeHasAPeak) {
  for (const DotType type : {DotType::kF32, DotType::kBF16, DotType::kInt8}) {
    const DotPeak peak = probe_dot(type, kBrief);
    EXPECT_GT(peak.ops_per_second, 0);
    EXPECT_FALSE(std::string(peak.instructions).empty());
  }
}

TEST(Probe, EveryInstructionSetHasAnF32Peak) {
  const IsaList isas = supported_isas();
  for (int i = 0; i < isas.count; ++i)
    for (const DotType type : {DotType::kF32, DotType::kBF16, DotType::kInt8})
      EXPECT_GT(probe_dot_of(isas.names[i], type, kBrief).ops_per_second, 0);
}

TEST(Probe, MemoryIsReadOnAnyNumberOfThreads) {
  for (const int threads : {1, 3})
    EXPECT_GT(probe_memory_read(std::size_t{3} << 20,
                                {.threads = threads, .windows = 2, .window_seconds = 0.0005}),
              0);
}

}  // namespace
}  // namespace stagecoach
