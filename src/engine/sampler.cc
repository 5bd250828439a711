#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/include/portable_math.h"

namespace stagecoach {
namespace {

struct Candidate {
  TokenId id;
  double logit;
  double weight;  // exp((logit − largest logit) / temperature)
};

// Most probable first; equal logits by ascending id, so that the order is total.
bool more_probable(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

void penalise_repetition(std::span<float> logits, const std::vector<TokenId>& seen,
                         double penalty) {
  for (TokenId id : seen) {
    float& logit = logits[static_cast<std::size_t>(id)];
    logit = static_cast<float>(logit < 0 ? logit * penalty : logit / penalty);
  }
}

TokenId largest(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < logits.size(); ++i)
    if (logits[i] > logits[best]) best = i;
  return static_cast<TokenId>(best);
}

double total_weight(const std::vector<Candidate>& candidates) {
  double sum = 0;
  for (const Candidate& candidate : candidates) sum += candidate.weight;
  return sum;
}

// Keeps the smallest set of most probable candidates whose probabilities reach top_p. Sorted input.
void keep_top_p(std::vector<Candidate>& candidates, double top_p) {
  const double target = top_p * total_weight(candidates);
  double before = 0;
  std::size_t kept = 0;
  while (kept < candidates.size() && (kept == 0 || before < target))
    before += candidates[kept++].weight;
  candidates.resize(kept);
}

// NaN would break the order of candidates, and an infinite logit makes all weights NaN.
void check_logits(std::span<const float> logits) {
  for (float logit : logits)
    if (std::isnan(logit) || logit == std::numeric_limits<float>::infinity())
      throw data_error(fmt::format("expected finite logits, the model computed {}", logit),
                       "stagecoach verify STORE");
}

// Differences are divided by the temperature, not the logits: the largest stays 0, however small
// the temperature.
std::vector<Candidate> candidates_of(std::span<const float> logits, double temperature) {
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double logit = logits[i];
    candidates.push_back(
        {static_cast<TokenId>(i), logit, portable_exp((logit - top) / temperature)});
  }
  return candidates;
}

}  // namespace

void SamplingParams::validate() const {
  const auto require = [](bool condition, const char* flag, const char* expected, double found) {
    if (!condition)
      throw usage_error(fmt::format("{} should be {}, found {}", flag, expected, found));
  };
  require(std::isfinite(temperature) && temperature > 0, "--temperature",
          "positive (for the most probable token, use --greedy)", temperature);
  require(top_k >= 0, "--top-k", "0 (off) or more", static_cast<double>(top_k));
  require(top_p > 0 && top_p <= 1, "--top-p", "in (0, 1]", top_p);
  require(min_p >= 0 && min_p <= 1, "--min-p", "in [0, 1]", min_p);
  require(std::isfinite(repetition_penalty) && repetition_penalty > 0, "--repetition-penalty",
          "positive", repetition_penalty);
  require(min_new_tokens >= 0, "--min-new-tokens", "0 or more",
          static_cast<double>(min_new_tokens));
}

void Sampler::admit(SequenceId sequence, const SamplingParams& params, std::int64_t prompt_length) {
  states_[sequence] = {params, prompt_length, {}};
}

void Sampler::drop(SequenceId sequence) {
  states_.erase(sequence);
}

void Sampler::observe(SequenceId sequence, std::span<const TokenId> ids) {
  const auto it = states_.find(sequence);
  if (it == states_.end() || it->second.params.repetition_penalty == 1) return;
  std::vector<TokenId>& seen = it->second.seen;
  for (TokenId id : ids) {
    const auto place = std::lower_bound(seen.begin(), seen.end(), id);
    if (place == seen.end() || *place != id) seen.insert(place, id);
  }
}

TokenId Sampler::sample(SequenceId sequence, std::int64_t position, std::span<float> logits) const {
  const State& state = states_.at(sequence);
  const SamplingParams& params = state.params;
  const std::int64_t step = position - state.prompt_length;

  check_logits(logits);
  if (params.repetition_penalty != 1)
    penalise_repetition(logits, state.seen, params.repetition_penalty);
  if (step < params.min_new_tokens) {
    for (std::int64_t id : params.eos_token_ids)
      if (id >= 0 && id < static_cast<std::int64_t>(logits.size()))
        logits[static_cast<std::size_t>(id)] = -std::numeric_limits<float>::infinity();
  }
  if (params.greedy) return largest(logits);

  std::vector<Candidate> candidates = candidates_of(logits, params.temperature);
  const auto top_k = static_cast<std::size_t>(params.top_k);
  if (top_k > 0 && top_k < candidates.size()) {
    std::nth_element(candidates.begin(),
                     candidates.begin() + static_cast<std::ptrdiff_t>(top_k) - 1, candidates.end(),
                     more_probable);
    // Tokens as probable as the k-th stay, as in Hugging Face's processor.
    const double least = candidates[top_k - 1].logit;
    std::erase_if(candidates, [least](const Candidate& c) { return c.logit < least; });
  }
  if (params.top_p < 1) {
    std::sort(candidates.begin(), candidates.end(), more_probable);
    keep_top_p(candidates, params.top_p);
  }
  // The most probable candidate's weight is exp(0) = 1, so min_p is a threshold on the weights.
  if (params.min_p > 0)
    std::erase_if(candidates, [&](const Candidate& c) { return c.weight < params.min_p; });
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });

  double remaining =
      total_weight(candidates) * uniform_draw(params.seed, static_cast<std::uint64_t>(sequence),
                                              static_cast<std::uint64_t>(step));
  for (const Candidate& candidate : candidates) {
    remaining -= candidate.weight;
    if (remaining < 0) return candidate.id;
  }
  // Rounding can leave a crumb after the last subtraction; the last candidate with any weight takes
  // it.
  const auto last = std::find_if(candidates.rbegin(), candidates.rend(),
                                 [](const Candidate& c) { return c.weight > 0; });
  return last == candidates.rend() ? largest(logits) : last->id;
}

double log_probability(std::span<const float> logits, TokenId target) {
  check_logits(logits);
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += portable_exp(logit - top);
  return logits[static_cast<std::size_t>(target)] - top - portable_log(sum);
}

double uniform_draw(std::uint64_t seed, std::uint64_t sequence, std::uint64_t step) {
  // SplitMix64's finaliser (Steele, Lea & Flood 2014), chained over the three counters.
  const auto mix = [](std::uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  };
  const std::uint64_t bits = mix(mix(mix(seed) ^ sequence) ^ step);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace stagecoach
