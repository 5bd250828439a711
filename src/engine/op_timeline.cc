#include "engine/op_timeline.h"

#include <utility>

namespace stagecoach {

void OpTimeline::resolve() {
  for (; !pending_.empty(); pending_.pop_front()) {
    Pending& done = pending_.front();
    done.span.begin_ns = done.begin->passed_ns();
    done.span.end_ns = done.end->passed_ns();
    timeline_.record(done.span);
  }
}

CutOpSpan::CutOpSpan(OpTimeline& ops, const Span& span) {
  if (ops.backend_.is_host())
    host_.emplace(ops.timeline_, span);
  else
    device_.emplace(ops, span);
}

OpSpan::~OpSpan() {
  if (begin_ == nullptr) {
    span_.end_ns = now_ns();
    ops_.timeline_.record(span_);
    return;
  }
  try {
    EventPtr end = ops_.backend_.mark();
    ops_.pending_.push_back({span_, std::move(begin_), std::move(end)});
  } catch (const std::exception&) {
    // The device is lost; the op that notices says so.
  }
}

}  // namespace stagecoach
