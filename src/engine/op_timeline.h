// Spans of what a device computes. Where ops are queued, the host's clock at the end of a scope
// says nothing: events mark both ends, and become times once they have passed, without waiting for
// them.
#pragma once

#include <deque>
#include <optional>

#include "backend/backend.h"
#include "timeline/timeline.h"

namespace stagecoach {

class OpTimeline {
 public:
  OpTimeline(Backend& backend, Timeline& timeline) : backend_(backend), timeline_(timeline) {}

  // Records the spans whose ops are done for certain: to be called when the device has been waited
  // for.
  void resolve();

 private:
  friend class OpSpan;
  friend class CutOpSpan;
  struct Pending {
    Span span;
    EventPtr begin, end;
  };
  Backend& backend_;
  Timeline& timeline_;
  std::deque<Pending> pending_;
};

// Times the ops that its scope queues.
class OpSpan {
 public:
  OpSpan(OpTimeline& ops, const Span& span) : ops_(ops), span_(span), begin_(ops.backend_.mark()) {
    if (begin_ == nullptr) span_.begin_ns = now_ns();
  }
  ~OpSpan();
  OpSpan(const OpSpan&) = delete;
  OpSpan& operator=(const OpSpan&) = delete;
  Span& span() { return span_; }

 private:
  OpTimeline& ops_;
  Span span_;
  EventPtr begin_;  // null: the device is the host, and ops are done when they return
};

// The same where the scope may stand still for weights (CutSpan). On a device the op that waits is
// in the stream, and nothing is cut.
class CutOpSpan {
 public:
  CutOpSpan(OpTimeline& ops, const Span& span);
  void stood_still_since(std::int64_t asked_ns) {
    if (host_) host_->stood_still_since(asked_ns);
  }
  Span& span() { return host_ ? host_->span() : device_->span(); }

 private:
  std::optional<CutSpan> host_;
  std::optional<OpSpan> device_;
};

}  // namespace stagecoach
