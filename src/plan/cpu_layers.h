// How many of a slice's layers the processor computes beside a GPU: those that do not fit there are
// copied over the bus for every pass, or read where they are. docs/planning.md has the arithmetic.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "plan/device_residency.h"

namespace stagecoach {

// Bytes per second.
struct SplitRates {
  double bus = 0, disk = 0;
};

// Passes of one kind, and seconds of one of them, all of its micro-batches together.
struct PassCost {
  double passes = 0;
  double device_layer = 0, cpu_layer = 0;  // through one layer
  double cpu_layer_beside_copies = 0;
  double crossing = 0;  // of the hidden states, one way
  bool one_micro_batch = true;
};

// Seconds that computing and waiting for weights take of one such pass.
double pass_seconds(const DeviceSplit& split, const PassCost& cost, const SplitRates& rates);
// Of all passes.
double job_seconds(const DeviceSplit& split, const std::vector<PassCost>& costs,
                   const SplitRates& rates);

// The split with which all passes take least, or little more where nothing streams then; no layers
// on the processor where all of the slice's `layers` stay on the GPU. split_of(n): with n layers
// there, nullopt: does not fit. Null where no number of them does.
using SplitOf = std::function<std::optional<DeviceSplit>(std::int64_t cpu_layers)>;
std::optional<DeviceSplit> best_split(const SplitOf& split_of, std::int64_t layers,
                                      const std::vector<PassCost>& costs, const SplitRates& rates);

}  // namespace stagecoach
