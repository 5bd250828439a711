// A transformer's forward pass as textbooks have it: one token after the other, in double, every
// axis written out. What the engine's kernels, pages, batches and splits are compared with where no
// other implementation reads the model.
#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/weight_source.h"

namespace stagecoach {

// Logits (tokens, vocab_size) of one sequence.
std::vector<double> plain_forward(WeightSource& weights, const std::vector<std::int32_t>& tokens);

}  // namespace stagecoach
