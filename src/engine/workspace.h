#pragma once

#include <cstdint>
#include <optional>

#include "backend/backend.h"
#include "model/model_spec.h"

namespace stagecoach {

// How rows are packed before they are multiplied (PackInputArgs); nullopt: not at all.
using InputPacking = std::optional<InputType>;

// Scratch activations of one rank, float32, allocated once from spec × largest micro-batch.
struct Workspace {
  Workspace(const ModelSpec& spec, Backend& backend, std::int64_t max_rows, InputPacking packing);

  std::int64_t max_rows;
  InputPacking packing;
  Buffer hidden;    // (max_rows, hidden_size): the residual stream
  Buffer normed;    // (max_rows, hidden_size)
  Buffer embedded;  // (max_rows, embedding_size), models with a projected embedding only
  Buffer query;     // (max_rows, num_attention_heads · head_dim)
  Buffer key;       // (max_rows, num_key_value_heads · head_dim)
  Buffer value;     // (max_rows, num_key_value_heads · head_dim)
  Buffer attended;  // (max_rows, num_attention_heads · head_dim)
  Buffer up;        // (max_rows, intermediate_size)
  Buffer gate;      // (max_rows, intermediate_size), gated MLPs only
  Buffer packed;    // max_rows packed rows of the widest of them, where rows are packed
  Buffer cos, sin;  // (max_rows, rotary_dim / 2), rotary models only
  Buffer slopes;    // (num_attention_heads), constant: models with ALiBi only

  std::int64_t bytes() const;
  // What a workspace of so many rows takes.
  static std::int64_t bytes_needed(const ModelSpec& spec, std::int64_t rows, InputPacking packing);
};

// Where rows of x (rows, cols) float32 are packed: workspace.packed, until something else is. Not
// without workspace.packing.
PackInputArgs packing_of(const Workspace& workspace, const float* x, std::int64_t rows,
                         std::int64_t cols);
InputRows packed_rows(const PackInputArgs& args);
// x (rows, cols) float32 as the input of products: packed into workspace.packed, until something
// else is, or where it is.
InputRows matmul_input(Backend& backend, const Workspace& workspace, const float* x,
                       std::int64_t rows, std::int64_t cols);

}  // namespace stagecoach
