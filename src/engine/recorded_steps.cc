#include "engine/recorded_steps.h"

#include <algorithm>

namespace stagecoach {

void RecordedSteps::run(const Key& key, const std::function<void()>& step,
                        const std::function<void(Span&)>& relabel) {
  auto found = steps_.find(key);
  if (found == steps_.end()) {
    make_room(key.end - key.begin);
    found = steps_.try_emplace(key).first;
    layers_ += key.end - key.begin;
    found->second.used = ++uses_;
    return step();  // takes the memory, and loads the kernels, that a recording must find
  }
  Step& known = found->second;
  known.used = ++uses_;
  if (known.recording != nullptr && replay(known, relabel)) return;
  if (!record(known, step) || !replay(known, relabel)) step();
}

bool RecordedSteps::record(Step& step, const std::function<void()>& ops) {
  step.spans.clear();
  const OpTimeline::Recorder recorder(ops_, step.spans);
  step.recording = backend_.record(ops);
  return step.recording != nullptr;
}

bool RecordedSteps::replay(Step& step, const std::function<void(Span&)>& relabel) {
  // Marks have one time each: that of the replay before is read first.
  if (step.resolutions == ops_.resolutions()) {
    backend_.synchronize();
    ops_.resolve();
  }
  if (!step.recording->replay()) return false;
  step.resolutions = ops_.resolutions();
  ops_.replayed(step.spans, relabel);
  ++replays_;
  return true;
}

void RecordedSteps::make_room(std::int64_t layers) {
  while (!steps_.empty() && layers_ + layers > kMostLayers) {
    const auto oldest =
        std::ranges::min_element(steps_, {}, [](const auto& one) { return one.second.used; });
    layers_ -= oldest->first.end - oldest->first.begin;
    steps_.erase(oldest);
  }
}

}  // namespace stagecoach
