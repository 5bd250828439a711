// What the parts of a rank's slice take in memory, in it or on disk.
#pragma once

#include "model/model_spec.h"
#include "model/tensor_catalog.h"
#include "plan/residency.h"

namespace stagecoach {

struct SliceEnds {
  bool embedding = false, head = false;  // which of them the rank has
};

WeightSizes slice_sizes(const ModelSpec& spec, DType weights, const SliceEnds& ends);

}  // namespace stagecoach
