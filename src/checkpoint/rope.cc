#include "checkpoint/rope.h"

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "checkpoint/foreign_text.h"

namespace stagecoach {
namespace {

double positive_number(const JsonObject& object, const char* key) {
  const double value = object.number(key);
  if (!(std::isfinite(value) && value > 0))
    throw data_error(fmt::format("{}: \"{}\" should be positive and finite, found {}",
                                 object.where(), key, value));
  return value;
}

// "rope_type" in files since 2024, "type" before.
std::string rope_type(const JsonObject& rope) {
  const std::string type = rope.string_or("rope_type", rope.string_or("type", "default"));
  if (rope.has("type") && rope.string("type") != type)
    throw data_error(fmt::format("{}: \"rope_type\" is {} but \"type\" is {}", rope.where(),
                                 quote_name(type), quote_name(rope.string("type"))));
  return type;
}

// The formula of Llama 3.1 (Hugging Face's _compute_llama3_parameters): long wavelengths are
// divided by `factor`, short ones kept, those between blended.
float llama3_frequency(float frequency, const RopeScaling& scaling) {
  const auto factor = static_cast<float>(scaling.factor);
  const auto low = static_cast<float>(scaling.low_freq_factor);
  const auto original = static_cast<float>(scaling.original_max_position_embeddings);
  const auto width = static_cast<float>(scaling.high_freq_factor - scaling.low_freq_factor);
  const double length = static_cast<double>(scaling.original_max_position_embeddings);
  const auto longest = static_cast<float>(length / scaling.low_freq_factor);
  const auto shortest = static_cast<float>(length / scaling.high_freq_factor);

  // PyTorch computes scalar / tensor as reciprocal times scalar; so does this, to round alike.
  const float wavelength = (1.0f / frequency) * static_cast<float>(2 * std::numbers::pi);
  if (wavelength > longest) return frequency / factor;
  if (wavelength < shortest) return frequency;
  const float smooth = ((1.0f / wavelength) * original - low) / width;
  return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

}  // namespace

RopeScaling parse_rope_scaling(const JsonObject& rope) {
  const std::string type = rope_type(rope);
  RopeScaling scaling;
  if (type == "default") {
    rope.only({"rope_type", "type", "rope_theta", "partial_rotary_factor"});
  } else if (type == "linear") {
    rope.only({"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"});
    scaling.type = RopeScaling::Type::kLinear;
    scaling.factor = positive_number(rope, "factor");
  } else if (type == "llama3") {
    rope.only({"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor",
               "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"});
    scaling = {.type = RopeScaling::Type::kLlama3,
               .factor = positive_number(rope, "factor"),
               .low_freq_factor = positive_number(rope, "low_freq_factor"),
               .high_freq_factor = positive_number(rope, "high_freq_factor"),
               .original_max_position_embeddings =
                   rope.integer_in("original_max_position_embeddings", 1, std::int64_t{1} << 40)};
    if (scaling.high_freq_factor <= scaling.low_freq_factor)
      throw data_error(
          fmt::format("{}: \"high_freq_factor\" ({}) should be above \"low_freq_factor\" ({})",
                      rope.where(), scaling.high_freq_factor, scaling.low_freq_factor));
  } else {
    throw data_error(fmt::format(
        "{}: rope type {} is not supported; this build computes default, linear, llama3",
        rope.where(), quote_name(type)));
  }
  if (rope.has("partial_rotary_factor"))
    scaling.partial_rotary_factor = rope.number("partial_rotary_factor");
  return scaling;
}

std::vector<float> rope_frequencies(double theta, std::int64_t rotary_dim,
                                    const RopeScaling& scaling) {
  const double base = static_cast<float>(theta);
  std::vector<float> frequencies(static_cast<std::size_t>(rotary_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dim);
    // pow in double, rounded: the correctly rounded float32 pow, which PyTorch's is within one ulp
    // of.
    float frequency = 1.0f / static_cast<float>(std::pow(base, static_cast<double>(exponent)));
    if (scaling.type == RopeScaling::Type::kLinear) frequency /= static_cast<float>(scaling.factor);
    if (scaling.type == RopeScaling::Type::kLlama3)
      frequency = llama3_frequency(frequency, scaling);
    frequencies[i] = frequency;
  }
  return frequencies;
}

}  // namespace stagecoach
