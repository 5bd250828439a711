// What a rank is busy with, as reports show it: span kinds that a reader need not tell apart are
// one activity.
#pragma once

#include <cstdint>
#include <vector>

#include "timeline/report.h"

namespace stagecoach {

enum class Activity : std::uint8_t {
  kAttention,
  kMlp,
  kEmbedding,
  kHead,        // and sampling
  kWeightWait,  // computation stands still for weights
  kRead,        // disk, and checking what came from it; beside computation
  kSend,
  kWait,   // for a message
  kOther,  // between spans: scheduling, text
  kCopy,   // weights to the device; beside computation
};
inline constexpr int kActivities = 10;

Activity activity_of(SpanKind kind);
const char* activity_label(Activity activity);  // for people: "MLP"
const char* activity_key(Activity activity);    // for style sheets and JSON: "mlp"

// Reads and copies go on beside the rank's main thread; everything else is the main thread's, one
// at a time.
inline bool beside_compute(Activity activity) {
  return activity == Activity::kRead || activity == Activity::kCopy;
}

// Passes that count: not warm-up, not the filling of a context.
inline bool measured(const Span& span) {
  return span.phase != Phase::kNone && span.pass >= 0;
}

// The spans of a rank on rank 0's clock, by beginning; none ends before it begins.
std::vector<Span> on_rank0_clock(const RankTimeline& rank);

}  // namespace stagecoach
