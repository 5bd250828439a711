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
  ++resolutions_;
}

EventPtr OpTimeline::begin() {
  if (recorded_ == nullptr) return backend_.mark();
  if (border_ == nullptr) border_ = backend_.mark();
  return border_;
}

void OpTimeline::end(const Span& span, EventPtr begin) {
  if (recorded_ == nullptr) {
    EventPtr end = backend_.mark();
    pending_.push_back({span, std::move(begin), std::move(end)});
    return;
  }
  if (span.kind != SpanKind::kWeightWait) border_ = backend_.mark();
  recorded_->push_back({span, std::move(begin), border_});
}

void OpTimeline::replayed(const Recorded& recorded, const std::function<void(Span&)>& relabel) {
  for (const Pending& one : recorded) relabel(pending_.emplace_back(one).span);
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
    ops_.end(span_, std::move(begin_));
  } catch (const std::exception&) {
    // The device is lost; the op that notices says so.
  }
}

}  // namespace stagecoach
