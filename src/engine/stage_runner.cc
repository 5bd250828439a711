#include "engine/stage_runner.h"

#include <algorithm>

#include "base/error.h"
#include "engine/kernel_kinds.h"

namespace stagecoach {
namespace {

// Rows whose logits are in memory at once: enough to reuse the head's weights, few enough that a
// 250,000-token vocabulary stays at 16 MB.
constexpr std::int64_t kHeadRows = 16;

}  // namespace

StageRunner::StageRunner(const ModelSpec& spec, Backend& backend, LayerSource& weights,
                         Timeline& timeline, std::int64_t max_rows)
    : spec_(spec),
      backend_(backend),
      weights_(weights),
      timeline_(timeline),
      workspace_(spec, backend, max_rows),
      kv_(spec, backend) {}

void StageRunner::embed(std::span<const TokenRun> runs, const BatchLabel& label) {
  std::vector<TokenId> ids, positions;
  for (const TokenRun& run : runs) {
    for (std::int64_t i = 0; i < run.count(); ++i) {
      const TokenId id = run.ids[static_cast<std::size_t>(i)];
      STAGECOACH_CHECK(id >= 0 && id < spec_.vocab_size);
      STAGECOACH_CHECK(run.position + i < spec_.max_position_embeddings);
      ids.push_back(id);
      positions.push_back(static_cast<TokenId>(run.position + i));
    }
  }
  const LayerLease weights = weights_.lease(0, PartKind::kEmbedding);
  const TensorView& tokens = weights[TensorRole::kTokenEmbedding];
  const auto rows = static_cast<std::int64_t>(ids.size());
  STAGECOACH_CHECK(rows <= workspace_.max_rows);
  ScopedSpan timed(timeline_,
                   {.kind = SpanKind::kEmbedding,
                    .phase = label.phase,
                    .micro_batch = label.micro_batch,
                    .pass = label.pass,
                    .bytes = rows * layout_row_bytes(tokens.layout, tokens.type, tokens.cols),
                    .tokens = rows});
  float* const hidden = workspace_.hidden.f32();
  if (spec_.projected_embedding()) {
    backend_.gather_rows(tokens, ids, workspace_.embedded.f32(), false);
    linear(workspace_.embedded.f32(), weights[TensorRole::kEmbeddingProjection], nullptr, hidden,
           rows);
  } else {
    backend_.gather_rows(tokens, ids, hidden, false);
  }
  if (spec_.position == PositionKind::kLearned)
    backend_.gather_rows(weights[TensorRole::kPositionEmbedding], positions, hidden, true);
  if (spec_.embedding_norm)
    norm(hidden, weights[TensorRole::kEmbeddingNorm], weights[TensorRole::kEmbeddingNormBias],
         hidden, rows);
}

void StageRunner::linear(const float* x, const TensorView& weight, const float* bias, float* y,
                         std::int64_t rows) {
  backend_.matmul({.x = x,
                   .x_stride = weight.cols,
                   .weight = weight.data,
                   .weight_type = weight.type,
                   .bias = bias,
                   .y = y,
                   .y_stride = weight.rows,
                   .rows = rows,
                   .in = weight.cols,
                   .out = weight.rows,
                   .accumulate = false});
}

void StageRunner::norm(const float* x, const TensorView& weight, const TensorView& bias, float* y,
                       std::int64_t rows) {
  backend_.norm({.x = x,
                 .weight = weight.f32(),
                 .bias = bias.f32(),
                 .y = y,
                 .rows = rows,
                 .cols = spec_.hidden_size,
                 .epsilon = spec_.norm_epsilon,
                 .kind = norm_kind(spec_)});
}

void StageRunner::set_hidden(std::span<const float> hidden) {
  STAGECOACH_CHECK(static_cast<std::int64_t>(hidden.size_bytes()) <= workspace_.hidden.bytes());
  backend_.upload(workspace_.hidden.data(), std::as_bytes(hidden));
}

void StageRunner::get_hidden(std::span<float> hidden) {
  STAGECOACH_CHECK(static_cast<std::int64_t>(hidden.size_bytes()) <= workspace_.hidden.bytes());
  backend_.download(std::as_writable_bytes(hidden), workspace_.hidden.data());
}

void StageRunner::prepare_rotary(std::span<const TokenRun> runs) {
  std::vector<std::int64_t> positions;
  for (const TokenRun& run : runs)
    for (std::int64_t i = 0; i < run.count(); ++i) positions.push_back(run.position + i);
  backend_.rotary_table(positions, spec_.rotary_inv_freq, workspace_.cos.f32(),
                        workspace_.sin.f32());
}

void StageRunner::run_layers(std::int64_t begin, std::int64_t end, std::span<const TokenRun> runs,
                             const BatchLabel& label) {
  STAGECOACH_CHECK(total_rows(runs) <= workspace_.max_rows);
  kv_.reserve(runs);
  if (spec_.position == PositionKind::kRotary) prepare_rotary(runs);
  const BlockContext context{spec_, backend_, weights_, kv_, workspace_, timeline_};
  for (std::int64_t layer = begin; layer < end; ++layer) forward_block(context, layer, runs, label);
}

void StageRunner::head_rows(std::int64_t first, std::int64_t count, const BatchLabel& label) {
  const LayerLease head = weights_.lease(0, PartKind::kHead);
  // A tied head multiplies with the token embedding, which then is stored in panels.
  const LayerLease matrix_owner =
      weights_.lease(0, spec_.tied_head ? PartKind::kEmbedding : PartKind::kHead);
  const TensorView& matrix =
      matrix_owner[spec_.tied_head ? TensorRole::kTokenEmbedding : TensorRole::kHead];
  ScopedSpan timed(timeline_, {.kind = SpanKind::kHead,
                               .phase = label.phase,
                               .micro_batch = label.micro_batch,
                               .pass = label.pass,
                               .bytes = matrix.bytes(),
                               .flops = head_flops(spec_, count),
                               .tokens = count});
  const float* x = workspace_.hidden.f32() + first * spec_.hidden_size;
  if (spec_.final_norm) {
    norm(x, head[TensorRole::kFinalNorm], head[TensorRole::kFinalNormBias], workspace_.normed.f32(),
         count);
    x = workspace_.normed.f32();
  }
  if (spec_.projected_embedding()) {
    linear(x, head[TensorRole::kHeadProjection], nullptr, workspace_.embedded.f32(), count);
    x = workspace_.embedded.f32();
  }
  linear(x, matrix, head[TensorRole::kHeadBias].f32(), logits_.f32(), count);
  const std::span<float> used(host_logits_.data(),
                              static_cast<std::size_t>(count * spec_.vocab_size));
  backend_.download(std::as_writable_bytes(used), logits_.data());
}

void StageRunner::run_head(std::span<const TokenRun> runs, const BatchLabel& label,
                           const UseLogits& use) {
  struct Wanted {
    const TokenRun* run;
    std::int64_t row_in_run, row;
  };
  std::vector<Wanted> wanted;
  std::int64_t row = 0;
  for (const TokenRun& run : runs) {
    for (std::int64_t i = 0; i < run.count(); ++i, ++row) {
      const bool target = !run.targets.empty() && run.targets[static_cast<std::size_t>(i)] >= 0;
      if (target || (run.sample && i + 1 == run.count())) wanted.push_back({&run, i, row});
    }
  }
  if (wanted.empty()) return;
  if (host_logits_.empty()) {
    logits_ =
        backend_.allocate(kHeadRows * spec_.vocab_size * static_cast<std::int64_t>(sizeof(float)));
    host_logits_.resize(static_cast<std::size_t>(kHeadRows * spec_.vocab_size));
  }
  // Neighbouring rows go through the head together.
  for (std::size_t begin = 0; begin < wanted.size();) {
    std::size_t end = begin + 1;
    while (end < wanted.size() && end - begin < kHeadRows &&
           wanted[end].row == wanted[end - 1].row + 1)
      ++end;
    head_rows(wanted[begin].row, static_cast<std::int64_t>(end - begin), label);
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t offset = (i - begin) * static_cast<std::size_t>(spec_.vocab_size);
      use(*wanted[i].run, wanted[i].row_in_run,
          {host_logits_.data() + offset, static_cast<std::size_t>(spec_.vocab_size)});
    }
    begin = end;
  }
}

}  // namespace stagecoach
