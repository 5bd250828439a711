// Chains of dot-product instructions: what one table of a processor's instructions consists of.
#pragma once

#include <atomic>
#include <span>

#include "kernels/probe/probe.h"

namespace stagecoach {

// What the optimiser can neither know (1, always) nor drop: chains that it can tell to be equal
// become one. Atomic, since all threads of a measurement use them.
extern std::atomic<float> g_probe_source, g_probe_sink;
inline float probe_value() {
  return g_probe_source.load(std::memory_order_relaxed);
}
inline void keep_probe_value(float value) {
  g_probe_sink.store(value, std::memory_order_relaxed);
}

inline constexpr int kDotRounds = 100'000;  // of one call: some tenths of a millisecond

struct DotLoop {
  DotType type;
  const char* isa;  // how the names of kernel tables begin that multiply with these
  const char* instructions;
  bool (*runs_here)();
  double (*run)();  // returns the operations that it did
};

// Best first within a type. Empty on other processors.
std::span<const DotLoop> x86_dot_loops();

}  // namespace stagecoach
