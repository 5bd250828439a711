// Decode steps as recordings: a step of few rows is many small ops, whose queueing one by one takes
// longer than they do. Each shape of a step is queued op by op at first, recorded when it comes
// again, and replayed from then on.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "backend/backend.h"
#include "backend/span_shape.h"
#include "engine/op_timeline.h"

namespace stagecoach {

class RecordedSteps {
 public:
  RecordedSteps(Backend& backend, OpTimeline& ops) : backend_(backend), ops_(ops) {}

  // Steps of equal keys queue the same ops, whose arguments differ in nothing but what device
  // memory holds.
  struct Key {
    std::int64_t first_span = 0;      // of those that were sent: the spans of layer `begin`
    std::int64_t begin = 0, end = 0;  // layers
    SpanShape shape;

    auto operator<=>(const Key&) const = default;
  };
  // Queues what `step` queues. relabel: makes a span of an earlier step of this key one of this
  // step.
  void run(const Key& key, const std::function<void()>& step,
           const std::function<void(Span&)>& relabel);

  std::int64_t replays() const { return replays_; }

 private:
  // Of layers in recordings, each some kilobytes of the driver's: beyond it the ones that were used
  // least recently go.
  static constexpr std::int64_t kMostLayers = 1024;

  struct Step {
    std::unique_ptr<Recording> recording;
    OpTimeline::Recorded spans;
    std::int64_t resolutions = -1;  // that there had been when it was replayed
    std::int64_t used = 0;
  };
  bool record(Step& step, const std::function<void()>& ops);
  bool replay(Step& step, const std::function<void(Span&)>& relabel);
  void make_room(std::int64_t layers);

  Backend& backend_;
  OpTimeline& ops_;
  std::map<Key, Step> steps_;
  std::int64_t layers_ = 0;  // in steps_
  std::int64_t uses_ = 0, replays_ = 0;
};

}  // namespace stagecoach
