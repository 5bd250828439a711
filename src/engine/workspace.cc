#include "engine/workspace.h"

#include <algorithm>
#include <span>

namespace stagecoach {
namespace {

// Bytes of a packed row of the widest that is multiplied.
std::int64_t packed_row_bytes(const ModelSpec& spec, InputPacking packing) {
  if (!packing) return 0;
  const std::int64_t widest =
      std::max({spec.hidden_size, spec.embedding_size, spec.query_size(), spec.intermediate_size});
  return packed_row_stride(*packing, widest);
}

}  // namespace

Workspace::Workspace(const ModelSpec& spec, Backend& backend, std::int64_t max_rows_in,
                     InputPacking packing_in)
    : max_rows(max_rows_in), packing(packing_in) {
  const auto floats = [&](std::int64_t width) {
    return backend.allocate(max_rows * width * static_cast<std::int64_t>(sizeof(float)));
  };
  hidden = floats(spec.hidden_size);
  normed = floats(spec.hidden_size);
  if (spec.projected_embedding()) embedded = floats(spec.embedding_size);
  query = floats(spec.query_size());
  key = floats(spec.key_value_size());
  value = floats(spec.key_value_size());
  attended = floats(spec.query_size());
  up = floats(spec.intermediate_size);
  if (spec.mlp == MlpKind::kGated) gate = floats(spec.intermediate_size);
  packed = backend.allocate(max_rows * packed_row_bytes(spec, packing));
  if (spec.position == PositionKind::kRotary) {
    cos = floats(spec.rotary_dim / 2);
    sin = floats(spec.rotary_dim / 2);
  }
  if (spec.position == PositionKind::kAlibi) {
    const auto values = std::as_bytes(std::span(spec.alibi_slopes));
    slopes = backend.allocate(static_cast<std::int64_t>(values.size()));
    backend.upload(slopes.data(), values);
  }
}

std::int64_t Workspace::bytes_needed(const ModelSpec& spec, std::int64_t rows,
                                     InputPacking input_packing) {
  std::int64_t width = 2 * spec.hidden_size + 2 * spec.query_size() + 2 * spec.key_value_size() +
                       spec.intermediate_size;
  if (spec.projected_embedding()) width += spec.embedding_size;
  if (spec.mlp == MlpKind::kGated) width += spec.intermediate_size;
  if (spec.position == PositionKind::kRotary) width += spec.rotary_dim;
  return rows *
         (width * static_cast<std::int64_t>(sizeof(float)) + packed_row_bytes(spec, input_packing));
}

std::int64_t Workspace::bytes() const {
  std::int64_t sum = 0;
  for (const Buffer* buffer : {&hidden, &normed, &embedded, &query, &key, &value, &attended, &up,
                               &gate, &packed, &cos, &sin, &slopes})
    sum += buffer->bytes();
  return sum;
}

PackInputArgs packing_of(const Workspace& workspace, const float* x, std::int64_t rows,
                         std::int64_t cols) {
  return {.x = x,
          .x_stride = cols,
          .packed = workspace.packed.data(),
          .rows = rows,
          .cols = cols,
          .type = workspace.packing.value()};
}

InputRows packed_rows(const PackInputArgs& args) {
  return {args.packed, packed_row_stride(args.type, args.cols), args.type};
}

InputRows matmul_input(Backend& backend, const Workspace& workspace, const float* x,
                       std::int64_t rows, std::int64_t cols) {
  if (!workspace.packing) return f32_rows(x, cols);
  const PackInputArgs args = packing_of(workspace, x, rows, cols);
  backend.pack_input(args);
  return packed_rows(args);
}

}  // namespace stagecoach
