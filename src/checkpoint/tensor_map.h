// Binds every tensor of a model's catalog to its place in a checkpoint, and reads it from there.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/family.h"
#include "checkpoint/tensor_set.h"
#include "model/model_spec.h"

namespace stagecoach {

// A canonical tensor as output rows of a stored one. A vector is a column: `rows` values, cols
// == 1.
//
// Rows come in groups, since fused projections take turns head by head: canonical row r stands in
// group r / group_rows, groups are group_stride source rows apart, and within a group rows stand in
// order, or permuted within heads where the source's rotary pairs are neighbours.
struct TensorBinding {
  const StoredTensor* source = nullptr;
  std::int64_t rows = 0, cols = 0;
  std::int64_t first_row = 0;  // of the first group among the source's output rows
  std::int64_t group_rows = 0, group_stride = 0;
  // Rows of a head, and how many of them rotate; 1 and 0 where rows stand in order.
  std::int64_t head_dim = 1, rotary_dim = 0;
  // Rows that are not packed row-major, for which the whole tensor is read: elements between source
  // rows and between columns.
  bool scattered = false;
  std::int64_t row_stride = 0, col_stride = 0;

  // The source's output row that holds canonical row `row`.
  std::int64_t source_row(std::int64_t row) const;
};

struct TensorMap {
  // By role and layer (0 outside layers).
  std::map<std::pair<TensorRole, std::int64_t>, TensorBinding> bindings;
  // A tied head's matrix that the checkpoint holds a second time; null if it does not.
  const StoredTensor* duplicate_head = nullptr;
  // What holds every matrix as it is stored; f16 for quantised ones.
  DType native_weights = DType::kF32;
};

// What is bound: a model of a family whose tensors are named so, described by (say) config.json.
struct MappingInputs {
  const ModelSpec& spec;
  const TensorNames& names;
  const TensorSet& set;
  std::string where;         // the checkpoint
  std::string described_by;  // "config.json"
};

// Throws data_error naming tensors that are missing, unexpected, wrongly shaped or of a type that
// cannot be read.
TensorMap map_tensors(const MappingInputs& inputs);

// The role's number of dimensions in a checkpoint: biases and norms are vectors.
bool is_vector_role(TensorRole role);

// Rows [row_begin, row_end) of a binding that is not scattered, straight from the file, as float32.
void read_rows_in_order(const TensorBinding& binding, std::int64_t row_begin, std::int64_t row_end,
                        float* destination);

// The same of a scattered one, out of `elements`: all that the source's extent holds, decoded.
void read_scattered_rows(const TensorBinding& binding, const float* elements,
                         std::int64_t row_begin, std::int64_t row_end, float* destination);

}  // namespace stagecoach
