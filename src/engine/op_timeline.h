// Spans of what a device computes. Where ops are queued, the host's clock at the end of a scope
// says nothing: events mark both ends, and become times once they have passed, without waiting for
// them.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "timeline/timeline.h"

namespace stagecoach {

class OpTimeline {
 public:
  OpTimeline(Backend& backend, Timeline& timeline) : backend_(backend), timeline_(timeline) {}

  // Records the spans whose ops are done for certain: to be called when the device has been waited
  // for.
  void resolve();
  std::int64_t resolutions() const { return resolutions_; }

  struct Pending {
    Span span;
    EventPtr begin, end;
  };
  // Of ops that are recorded (Backend::record), whose marks each replay sets anew.
  using Recorded = std::vector<Pending>;
  // Spans that begin while it lives go to `recorded`. Each begins where the one before ended, which
  // saves half of the marks: nothing is queued in between, nor by leases of weights that stay.
  class Recorder {
   public:
    Recorder(OpTimeline& ops, Recorded& recorded) : ops_(ops) { ops_.recorded_ = &recorded; }
    ~Recorder() {
      ops_.recorded_ = nullptr;
      ops_.border_ = nullptr;
    }
    Recorder(const Recorder&) = delete;
    Recorder& operator=(const Recorder&) = delete;

   private:
    OpTimeline& ops_;
  };
  // Their spans once more, for a replay that has been queued. Those of the replay before have been
  // resolved.
  void replayed(const Recorded& recorded, const std::function<void(Span&)>& relabel);

 private:
  friend class OpSpan;
  friend class CutOpSpan;
  EventPtr begin();
  void end(const Span& span, EventPtr begin);

  Backend& backend_;
  Timeline& timeline_;
  std::deque<Pending> pending_;
  std::int64_t resolutions_ = 0;
  Recorded* recorded_ = nullptr;
  EventPtr border_;  // where the next recorded span begins
};

// Times the ops that its scope queues.
class OpSpan {
 public:
  OpSpan(OpTimeline& ops, const Span& span) : ops_(ops), span_(span), begin_(ops.begin()) {
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
