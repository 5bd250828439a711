// Rotary frequencies out of a config, rope scaling folded in.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"

namespace stagecoach {

struct RopeScaling {
  enum class Type { kDefault, kLinear, kLlama3 };
  Type type = Type::kDefault;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 1;  // llama3 only, as the next
  std::int64_t original_max_position_embeddings = 0;
  std::optional<double> partial_rotary_factor = {};  // rope_parameters may hold it
};

// `rope` is config.json's rope_scaling (transformers 4) or rope_parameters (5). Throws data_error
// for types that this build does not compute (dynamic, yarn, longrope …) and for values that make
// no sense.
RopeScaling parse_rope_scaling(const JsonObject& rope);

// (rotary_dim / 2) frequencies theta^(-2i / rotary_dim), scaled. In Hugging Face's own order of
// float32 operations (modeling_rope_utils.py), so that they differ from its tensor by at most the
// rounding of one pow().
std::vector<float> rope_frequencies(double theta, std::int64_t rotary_dim,
                                    const RopeScaling& scaling);

}  // namespace stagecoach
