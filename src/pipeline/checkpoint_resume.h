// Where an interrupted pass goes on: each rank says what its checkpoint folder has, rank 0 decides.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/control_channel.h"
#include "pipeline/pass_checkpoint.h"
#include "plan/stage_plan.h"

namespace stagecoach {

// By window: whether this rank, where it is its turn, has what a later run needs.
struct CheckpointContents {
  std::vector<std::uint8_t> hidden;  // hidden state after the window, at the rank that received it
  std::vector<std::uint8_t> kv;      // keys and values of the window's layers, at its own rank

  template <class Archive>
  void serialize(Archive& archive) {
    archive(hidden, kv);
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

// Collective. The number of windows that need not be computed again; 0: from the start.
std::int32_t agree_on_resume(ControlChannel& control, const CheckpointContents& mine,
                             std::int32_t windows);

}  // namespace stagecoach
