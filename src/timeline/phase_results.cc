#include "timeline/phase_results.h"

#include <algorithm>
#include <utility>

#include "timeline/median.h"
#include "timeline/page/gantt_rows.h"

namespace stagecoach {
namespace {

double to_ms(std::int64_t ns) {
  return static_cast<double>(ns) * 1e-6;
}

// Time covered by at least one pass.
std::int64_t covered_ns(std::vector<PassExtent> passes) {
  std::sort(passes.begin(), passes.end(), [](const PassExtent& a, const PassExtent& b) {
    return a.range.begin_ns < b.range.begin_ns;
  });
  std::int64_t covered = 0, reached = 0;
  for (const PassExtent& pass : passes) {
    covered +=
        std::max<std::int64_t>(0, pass.range.end_ns - std::max(pass.range.begin_ns, reached));
    reached = std::max(reached, pass.range.end_ns);
  }
  return covered;
}

double per_second(std::int64_t tokens, double ms) {
  return ms > 0 ? static_cast<double>(tokens) / ms * 1e3 : 0;
}

}  // namespace

PhaseResult phase_result(const std::vector<RankTimeline>& ranks, Phase phase,
                         const std::vector<double>& pass_ms, std::int64_t tokens) {
  const Quartiles ms = quartiles(pass_ms);
  return {.phase = phase,
          .passes = static_cast<std::int64_t>(pass_ms.size()),
          .tokens = tokens,
          .ms = ms.median,
          .ms_q1 = ms.q1,
          .ms_q3 = ms.q3,
          .tokens_per_second = per_second(tokens, ms.median),
          .embedding_ms = median_pass_ms(ranks, SpanKind::kEmbedding, phase),
          .head_ms = median_pass_ms(ranks, SpanKind::kHead, phase)};
}

std::vector<PhaseResult> phase_results(const std::vector<RankTimeline>& ranks) {
  std::vector<PhaseResult> results;
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
    const std::vector<PassExtent> passes = pass_extents(ranks, phase);
    if (passes.empty()) continue;
    std::vector<double> pass_ms;
    std::vector<std::int64_t> tokens;
    std::int64_t all_tokens = 0;
    for (const PassExtent& pass : passes) {
      pass_ms.push_back(to_ms(pass.range.length()));
      tokens.push_back(pass.tokens);
      all_tokens += pass.tokens;
    }
    PhaseResult& result = results.emplace_back(phase_result(ranks, phase, pass_ms, median(tokens)));
    result.tokens_per_second = per_second(all_tokens, to_ms(covered_ns(passes)));
  }
  return results;
}

}  // namespace stagecoach
