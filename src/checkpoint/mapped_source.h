// The WeightSource of every foreign checkpoint: a model's tensors, bound by a family's names to
// what some container holds. Containers differ in how they find these parts, not in what follows.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "checkpoint/family.h"
#include "checkpoint/tensor_set.h"
#include "checkpoint/weight_source.h"

namespace stagecoach {

struct CheckpointParts {
  ModelSpec spec;
  const TensorNames* names = nullptr;  // outlives the source
  TensorSet set;
  std::map<std::string, std::string> tokenizer_files;
  std::string default_name;
  std::string identity;      // of all but the set, which has its own
  std::string where;         // the checkpoint, for errors
  std::string described_by;  // what the spec was read from, for errors: "config.json"
};

// Throws data_error unless every tensor of the model is there in its right shape and nothing is
// left over. Reads no weights but those of a head that is stored twice.
std::unique_ptr<WeightSource> map_checkpoint(CheckpointParts parts);

}  // namespace stagecoach
