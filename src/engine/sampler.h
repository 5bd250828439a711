// Logits → token, in the order of Hugging Face's logits processors: repetition penalty, minimum
// length, temperature, top-k, top-p, min-p, draw.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "engine/batch.h"

namespace stagecoach {

// Defaults mean off, except for the temperature, which means pure sampling.
struct SamplingParams {
  bool greedy = false;  // the largest logit; ties: the lowest id
  double temperature = 1;
  std::int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;  // Keskar et al. 2019, over prompt and generated text
  std::uint64_t seed = 0;
  std::int64_t min_new_tokens = 0;  // until then no end-of-text token is drawn
  std::vector<std::int64_t> eos_token_ids;

  // Throws usage_error naming the flag that is out of range.
  void validate() const;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(greedy, temperature, top_k, top_p, min_p, repetition_penalty, seed, min_new_tokens,
            eos_token_ids);
  }
};

// Lives on the rank with the last window. A draw depends on (seed, sequence, step, logits, history)
// alone: not on batch-mates, ranks or what was drawn for other sequences.
class Sampler {
 public:
  void admit(SequenceId sequence, const SamplingParams& params, std::int64_t prompt_length);
  void drop(SequenceId sequence);

  // Tokens that the sequence has read: its prompt and what was drawn for it.
  void observe(SequenceId sequence, std::span<const TokenId> ids);

  // `position`: of the token to be drawn. `logits` (vocab) is used as scratch. Throws data_error
  // when one is NaN or +infinite.
  TokenId sample(SequenceId sequence, std::int64_t position, std::span<float> logits) const;

 private:
  struct State {
    SamplingParams params;
    std::int64_t prompt_length = 0;
    std::vector<TokenId> seen;  // sorted, unique; kept only under a repetition penalty
  };
  std::map<SequenceId, State> states_;
};

// ln P(target | logits), float64.
double log_probability(std::span<const float> logits, TokenId target);

// Uniform in [0, 1) from a counter-based generator.
double uniform_draw(std::uint64_t seed, std::uint64_t sequence, std::uint64_t step);

}  // namespace stagecoach
