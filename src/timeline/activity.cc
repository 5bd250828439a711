#include "timeline/activity.h"

#include <algorithm>

namespace stagecoach {

Activity activity_of(SpanKind kind) {
  switch (kind) {
    case SpanKind::kRead:
    case SpanKind::kVerify:
      return Activity::kRead;
    case SpanKind::kWeightWait:
      return Activity::kWeightWait;
    case SpanKind::kEmbedding:
      return Activity::kEmbedding;
    case SpanKind::kAttention:
      return Activity::kAttention;
    case SpanKind::kMlp:
      return Activity::kMlp;
    case SpanKind::kHead:
    case SpanKind::kSample:
      return Activity::kHead;
    case SpanKind::kSend:
      return Activity::kSend;
    case SpanKind::kIdle:
      return Activity::kWait;
    case SpanKind::kCopy:
      return Activity::kCopy;
  }
  return Activity::kOther;
}

const char* activity_label(Activity activity) {
  constexpr const char* kLabels[kActivities] = {
      "attention", "MLP",  "embedding",          "head and sampling", "waiting for weights",
      "reading",   "send", "waiting for a rank", "between spans",     "copying to the device"};
  return kLabels[static_cast<int>(activity)];
}

const char* activity_key(Activity activity) {
  constexpr const char* kKeys[kActivities] = {"attention",   "mlp",  "embedding", "head",
                                              "weight-wait", "read", "send",      "wait",
                                              "other",       "copy"};
  return kKeys[static_cast<int>(activity)];
}

std::vector<Span> on_rank0_clock(const RankTimeline& rank) {
  std::vector<Span> spans = rank.spans;
  for (Span& span : spans) {
    span.begin_ns = rank.to_rank0(span.begin_ns);
    span.end_ns = std::max(span.begin_ns, rank.to_rank0(span.end_ns));
  }
  std::stable_sort(spans.begin(), spans.end(),
                   [](const Span& a, const Span& b) { return a.begin_ns < b.begin_ns; });
  return spans;
}

}  // namespace stagecoach
