// Where an interrupted pass goes on: each rank says what its checkpoint folder has, rank 0 decides.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "pipeline/control_channel.h"
#include "pipeline/pass_checkpoint.h"
#include "plan/stage_plan.h"

namespace stagecoach {

// What this rank's folder has that a later run needs.
struct CheckpointContents {
  std::vector<std::uint8_t> hidden;  // [n]: the hidden state after the first n layers
  std::vector<std::uint8_t> kv;      // [layer]: its keys and values, at the rank that runs it
  std::int64_t discarded = 0;        // layers that another plan had come to

  template <class Archive>
  void serialize(Archive& archive) {
    archive(hidden, kv, discarded);
  }
};

// `with_kv`: later passes read the keys of this one. Where they do not, kv counts as there.
CheckpointContents checkpoint_contents(const PassCheckpoint& checkpoint, const StagePlan& plan,
                                       int rank, bool with_kv);

// Whose values a checkpoint holds, as the ranks know it together.
struct CheckpointOrigin {
  std::vector<std::uint64_t> slab_checksums;  // 0: this rank's store lacks the slab
  std::vector<std::string> isas;              // by rank

  template <class Archive>
  void serialize(Archive& archive) {
    archive(slab_checksums, isas);
  }
};

// Collective. Every rank gets what all know.
CheckpointOrigin gather_origin(ControlChannel& control, const CheckpointOrigin& mine);

// Where an interrupted pass goes on.
struct CheckpointPoint {
  std::int64_t layers = 0;     // that need not be computed again; 0: from the start
  std::int32_t window = 0;     // of the plan, the first one that computes: it may begin before them
  std::int32_t has = 0;        // a rank with the hidden state after them
  std::int32_t needs = 0;      // the rank that goes on from it
  std::int64_t discarded = 0;  // layers that another plan had come to, on any rank

  template <class Archive>
  void serialize(Archive& archive) {
    archive(layers, window, has, needs, discarded);
  }
};

// Collective. Ranks may hold values of another plan's run, from which this one goes on. `mine` is
// empty where the checkpoint could not be opened: then all begin at the start.
CheckpointPoint agree_on_resume(ControlChannel& control, const CheckpointContents& mine,
                                const StagePlan& plan);

// Whether this rank's hidden state can be read and is not damaged; else it is no longer `mine`, and
// `warn` says why. What is damaged is dropped from the folder; what cannot be read now (EMFILE,
// EIO) stays there.
bool is_whole(const PassCheckpoint& checkpoint, std::int64_t layers, CheckpointContents& mine,
              const std::function<void(const std::string&)>& warn);

// Where ranks share a folder, another one may have dropped a file.
void forget_gone(const PassCheckpoint& checkpoint, CheckpointContents& mine);

// Collective: whether the rank that has the hidden state finds it whole, `intact`.
bool all_hear(ControlChannel& control, const CheckpointPoint& point, bool intact);

// Of the two ranks that the point names, where they are two: one sends the hidden state to the
// other, never more than a few megabytes ahead of what that one has written. Throws data_error.
void share_hidden(ControlChannel& control, const PassCheckpoint& checkpoint,
                  const CheckpointPoint& point);

}  // namespace stagecoach
