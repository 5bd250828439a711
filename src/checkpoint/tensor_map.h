// Binds every tensor of a model's catalog to its place in a checkpoint, and reads it from there.
#pragma once

#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "checkpoint/family.h"
#include "checkpoint/safetensors_set.h"
#include "model/model_spec.h"

namespace stagecoach {

// A canonical tensor as output rows of a source tensor. A vector is a column: `rows` values, cols
// == 1.
struct TensorBinding {
  FoundTensor source{};
  std::int64_t rows = 0, cols = 0;
  std::int64_t first_row = 0;    // among the source's output rows, where several roles are stacked
  std::int64_t source_rows = 0;  // all output rows of the source
  bool transposed = false;       // stored (cols, source_rows)
  // Where the source's rotary pairs are neighbours: rows of a head, and how many of them rotate. 1
  // and 0 where rows stand in order.
  std::int64_t head_dim = 1, rotary_dim = 0;

  // The source's output row that holds canonical row `row`.
  std::int64_t source_row(std::int64_t row) const;
};

struct TensorMap {
  std::map<std::pair<TensorRole, std::int64_t>, TensorBinding>
      bindings;  // by role and layer (0 outside layers)
  // A tied head's matrix that the checkpoint holds a second time; null if it does not.
  const FoundTensor* duplicate_head = nullptr;
  DType widest_matrix_type = DType::kF32;
};

// Throws data_error naming tensors that are missing, unexpected, wrongly shaped or of a type that
// cannot be read.
TensorMap map_tensors(const ModelSpec& spec, const Family& family, const SafetensorsSet& set,
                      const std::string& where);

// The role's number of dimensions in a checkpoint: biases and norms are vectors.
bool is_vector_role(TensorRole role);

// Rows [row_begin, row_end) of a binding that is not transposed, straight from the file, as
// float32.
void read_rows_in_order(const TensorBinding& binding, std::int64_t row_begin, std::int64_t row_end,
                        float* destination);

// The same of a transposed one, out of `raw`, all bytes of the source tensor.
void read_rows_transposed(const TensorBinding& binding, const std::byte* raw,
                          std::int64_t row_begin, std::int64_t row_end, float* destination);

}  // namespace stagecoach
