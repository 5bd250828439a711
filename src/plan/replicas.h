// Second copies of layers, and who takes over when a rank's host is lost. A window's first half
// goes to the rank before it in the ring, the second half to the one behind it: what those then run
// is still one window after another in ring order, and each has at most half a slice more to do.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/stage_plan.h"

namespace stagecoach {

struct Replicas {
  std::vector<int> layers;  // by layer - plan.layer_begin(): the rank that has its second copy
  int embedding = 0, head = 0;
};

// Of a plan of two ranks or more.
Replicas replicas_of(const StagePlan& plan);

// The plan of those who are left, with the copies that replicas_of placed. Ranks above `lost` move
// down by one.
StagePlan take_over(const StagePlan& plan, int lost);

}  // namespace stagecoach
