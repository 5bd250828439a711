#include "engine/stage_runner.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "backend/device_scratch.h"
#include "base/error.h"
#include "engine/kernel_kinds.h"

namespace stagecoach {
namespace {

// Steps in which each sequence decodes a row. Of more rows the products take longer than starting
// them does.
bool recordable(const Backend& backend, std::span<const TokenRun> runs) {
  const auto decodes = [](const TokenRun& run) { return run.count() == 1; };
  return backend.records() && static_cast<std::int64_t>(runs.size()) <= kMostFewRows &&
         std::ranges::all_of(runs, decodes);
}

// Of all rows, in order.
std::vector<std::int64_t> positions_of(std::span<const TokenRun> runs) {
  std::vector<std::int64_t> positions;
  for (const TokenRun& run : runs)
    for (std::int64_t i = 0; i < run.count(); ++i) positions.push_back(run.position + i);
  return positions;
}

}  // namespace

StageRunner::StageRunner(const ModelSpec& spec, Backend& backend, LayerSource& weights,
                         Timeline& timeline, const Limits& limits,
                         const std::optional<CpuLayers>& cpu)
    : spec_(spec),
      limits_(limits),
      main_(spec, backend, weights, timeline, limits, limits.packing) {
  if (!cpu) return;
  cpu_.emplace(spec, cpu->backend, cpu->weights, timeline, limits, cpu->packing);
  cpu_layers_ = cpu->layers;
}

void StageRunner::add_layers(std::int64_t begin, std::int64_t end) {
  for (std::int64_t layer = begin; layer < end; ++layer) kv(layer).add_layers(layer, layer + 1);
}

void StageRunner::drop(SequenceId sequence) {
  main_.kv.drop(sequence);
  if (cpu_) cpu_->kv.drop(sequence);
}

std::int64_t StageRunner::host_kv_bytes() const {
  return (backend_.is_host() ? main_.kv.bytes() : 0) + (cpu_ ? cpu_->kv.bytes() : 0);
}

std::int64_t StageRunner::device_kv_bytes() const {
  return backend_.is_host() ? 0 : main_.kv.bytes();
}

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
  const LayerLease weights = weights_.lease_ends(PartKind::kEmbedding);
  const auto rows = static_cast<std::int64_t>(ids.size());
  STAGECOACH_CHECK(rows <= workspace_.max_rows);
  OpSpan timed(ops_, {.kind = SpanKind::kEmbedding,
                      .phase = label.phase,
                      .micro_batch = label.micro_batch,
                      .pass = label.pass,
                      .tokens = rows});
  hidden_at_ = &main_;
  float* const hidden = workspace_.hidden.f32();
  if (spec_.projected_embedding()) {
    timed.span().bytes += gather(TensorRole::kTokenEmbedding, ids, workspace_.embedded.f32(),
                                 spec_.embedding_size, false);
    linear(workspace_.embedded.f32(), weights[TensorRole::kEmbeddingProjection], nullptr, hidden,
           rows);
  } else {
    timed.span().bytes +=
        gather(TensorRole::kTokenEmbedding, ids, hidden, spec_.hidden_size, false);
  }
  if (spec_.position == PositionKind::kLearned)
    timed.span().bytes +=
        gather(TensorRole::kPositionEmbedding, positions, hidden, spec_.hidden_size, true);
  if (spec_.embedding_norm)
    norm(hidden, weights[TensorRole::kEmbeddingNorm], weights[TensorRole::kEmbeddingNormBias],
         hidden, rows);
}

// Returns the bytes of the rows.
std::int64_t StageRunner::gather(TensorRole table, std::span<const TokenId> ids, float* out,
                                 std::int64_t width, bool accumulate) {
  std::int64_t bytes = 0;
  weights_.gather(
      table, ids,
      [&](std::size_t first, const TensorView& rows, std::span<const std::int32_t> local) {
        backend_.gather_rows(rows, local, out + static_cast<std::int64_t>(first) * width,
                             accumulate);
        bytes += static_cast<std::int64_t>(local.size()) *
                 layout_row_bytes(rows.layout, rows.type, rows.cols);
      });
  return bytes;
}

void StageRunner::linear(const float* x, const TensorView& weight, const float* bias, float* y,
                         std::int64_t rows) {
  backend_.matmul({.x = matmul_input(backend_, workspace_, x, rows, weight.cols),
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

StageRunner::HostRows StageRunner::make_host_rows(std::int64_t rows) {
  HostRows made;
  if (backend_.is_host()) return made;  // nothing is copied: memory comes as it is needed
  made.values.resize(static_cast<std::size_t>(rows * spec_.hidden_size));
  made.lock = backend_.pin(std::as_writable_bytes(std::span(made.values)));
  return made;
}

void StageRunner::set_hidden(std::span<const float> hidden) {
  STAGECOACH_CHECK(static_cast<std::int64_t>(hidden.size_bytes()) <= workspace_.hidden.bytes());
  // Beside the host's own layers it may be that no op of the device comes next.
  hidden_at_ = cpu_ ? &*cpu_ : &main_;
  hidden_at_->backend.upload(hidden_at_->workspace.hidden.data(), std::as_bytes(hidden));
  hidden_copied_ = hidden_at_->backend.mark();
}

void StageRunner::host_rows_are_free() {
  if (const EventPtr copied = std::exchange(hidden_copied_, nullptr)) copied->synchronize();
  device_rows_.reset();
}

void StageRunner::get_hidden(std::span<float> hidden) {
  STAGECOACH_CHECK(static_cast<std::int64_t>(hidden.size_bytes()) <= workspace_.hidden.bytes());
  hidden_at_->backend.download(std::as_writable_bytes(hidden), hidden_at_->workspace.hidden.data());
  hidden_at_->ops.resolve();
}

std::unique_ptr<DeviceRows> StageRunner::make_device_rows(int pieces) {
  if (backend_.is_host()) return nullptr;
  return std::make_unique<DeviceRows>(backend_, pieces, workspace_.hidden.bytes());
}

void StageRunner::set_device_hidden(std::shared_ptr<const std::byte> rows, std::size_t bytes) {
  STAGECOACH_CHECK(static_cast<std::int64_t>(bytes) <= workspace_.hidden.bytes());
  host_rows_are_free();
  hidden_at_ = &main_;
  backend_.copy(workspace_.hidden.data(), {rows.get(), bytes});
  hidden_copied_ = backend_.mark();
  device_rows_ = std::move(rows);
}

void StageRunner::get_device_hidden(std::byte* rows, std::size_t bytes) {
  STAGECOACH_CHECK(hidden_on_device());
  STAGECOACH_CHECK(static_cast<std::int64_t>(bytes) <= workspace_.hidden.bytes());
  backend_.copy(rows, {workspace_.hidden.data(), bytes});
  finish();
}

// The processor's memory is the host's: the device's backend copies from and to it.
void StageRunner::move_hidden(Side& to, std::int64_t rows) {
  if (hidden_at_ == &to) return;
  const auto bytes = static_cast<std::size_t>(rows * spec_.hidden_size) * sizeof(float);
  std::byte* const device = main_.workspace.hidden.data();
  const std::span<std::byte> host(cpu_->workspace.hidden.data(), bytes);
  if (&to == &main_) {
    main_.backend.upload(device, host);
  } else {
    main_.backend.download(host, device);
    main_.ops.resolve();
  }
  hidden_at_ = &to;
}

std::int64_t StageRunner::waiting_bytes(const ModelSpec& spec, std::int64_t rows) {
  const std::int64_t angles = spec.position == PositionKind::kRotary ? spec.rotary_dim : 0;
  return rows * (spec.hidden_size + angles) * static_cast<std::int64_t>(sizeof(float));
}

std::unique_ptr<DeviceRows> StageRunner::make_waiting_rows(int batches) {
  if (backend_.is_host() || cpu_ || batches == 0) return nullptr;
  return std::make_unique<DeviceRows>(backend_, batches, waiting_bytes(spec_, workspace_.max_rows));
}

// Of the workspace, what is a batch's own between its layers.
std::vector<StageRunner::Piece> StageRunner::pieces_of(std::span<const TokenRun> runs) {
  const auto rows = static_cast<std::size_t>(total_rows(runs));
  const auto floats = [&](const Buffer& buffer, std::int64_t width) {
    return Piece{buffer.data(), rows * static_cast<std::size_t>(width) * sizeof(float)};
  };
  std::vector<Piece> pieces{floats(workspace_.hidden, spec_.hidden_size)};
  if (spec_.position == PositionKind::kRotary)
    for (const Buffer* angles : {&workspace_.cos, &workspace_.sin})
      pieces.push_back(floats(*angles, spec_.rotary_dim / 2));
  return pieces;
}

void StageRunner::set_aside(std::byte* to, std::span<const TokenRun> runs) {
  if (spec_.position == PositionKind::kRotary) prepare_rotary(main_, runs);
  for (const Piece& piece : pieces_of(runs)) {
    backend_.copy(to, {piece.data, piece.bytes});
    to += piece.bytes;
  }
}

void StageRunner::take_up(const std::byte* from, std::span<const TokenRun> runs) {
  hidden_at_ = &main_;
  main_.angles_of = positions_of(runs);
  for (const Piece& piece : pieces_of(runs)) {
    backend_.copy(piece.data, {from, piece.bytes});
    from += piece.bytes;
  }
}

void StageRunner::finish() {
  backend_.synchronize();
  ops_.resolve();
}

// A batch comes layer by layer, and finds its angles from the first on.
void StageRunner::prepare_rotary(Side& side, std::span<const TokenRun> runs) {
  std::vector<std::int64_t> positions = positions_of(runs);
  if (positions == side.angles_of) return;
  side.backend.rotary_table(positions, spec_.rotary_inv_freq, side.workspace.cos.f32(),
                            side.workspace.sin.f32());
  side.angles_of = std::move(positions);
}

void StageRunner::run_layers(std::int64_t begin, std::int64_t end, std::span<const TokenRun> runs,
                             const BatchLabel& label, NextUse next) {
  STAGECOACH_CHECK(total_rows(runs) <= workspace_.max_rows);
  for (std::int64_t first = begin; first < end;) {
    std::int64_t last = first + 1;
    while (last < end && on_cpu(last) == on_cpu(first)) ++last;
    run_on(side_of(first), first, last, runs, label, next);
    first = last;
  }
}

void StageRunner::run_on(Side& side, std::int64_t begin, std::int64_t end,
                         std::span<const TokenRun> runs, const BatchLabel& label, NextUse next) {
  move_hidden(side, total_rows(runs));
  side.kv.reserve(begin, end, runs);
  if (spec_.position == PositionKind::kRotary) prepare_rotary(side, runs);
  const BlockContext context{spec_, side.backend, side.weights, side.kv, side.workspace, side.ops};
  std::vector<KvSpan> spans;  // (layers, runs)
  for (std::int64_t layer = begin; layer < end; ++layer) {
    const std::vector<KvSpan> view = side.kv.view(layer, runs);
    spans.insert(spans.end(), view.begin(), view.end());
  }
  side.backend.send_spans(spans);
  const auto run = [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t layer = first; layer < last; ++layer)
      forward_block(context, layer, runs,
                    std::span(spans).subspan(static_cast<std::size_t>(layer - begin) * runs.size(),
                                             runs.size()),
                    label, next);
  };
  // A layer of many rows takes seconds.
  const auto run_interruptibly = [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t layer = first; layer < last; ++layer) {
      if (limits_.before_layer) limits_.before_layer();
      run(layer, layer + 1);
    }
  };
  if (!recordable(side.backend, runs)) return run_interruptibly(begin, end);
  // Layers that stay are recorded together, as far as others that pass through let them.
  const SpanShape shape = shape_of(std::span(spans).first(runs.size()));
  const std::int64_t flops = attention_flops(spec_, runs);
  for (std::int64_t first = begin, last = begin; first < end; first = last) {
    const bool stays = side.weights.stays(first);
    while (last < end && side.weights.stays(last) == stays) ++last;
    if (!stays) {
      run_interruptibly(first, last);
      continue;
    }
    side.steps.run(
        {.first_span = (first - begin) * shape.count, .begin = first, .end = last, .shape = shape},
        [&] { run(first, last); },
        [&](Span& span) {
          span.phase = label.phase;
          span.micro_batch = label.micro_batch;
          span.pass = label.pass;
          if (span.kind == SpanKind::kAttention) span.flops = flops;
        });
  }
}

// `rows` of workspace.hidden → their logits on the host. They are brought together first, so that
// the head's weights pass once for all of them.
void StageRunner::head_rows(std::span<const TokenId> rows, const BatchLabel& label) {
  const LayerLease head = weights_.lease_ends(PartKind::kHead);
  const auto count = static_cast<std::int64_t>(rows.size());
  std::optional<CutOpSpan> timed(std::in_place, ops_,
                                 Span{.kind = SpanKind::kHead,
                                      .phase = label.phase,
                                      .micro_batch = label.micro_batch,
                                      .pass = label.pass,
                                      .tokens = count});
  backend_.gather_rows({.data = workspace_.hidden.data(),
                        .type = DType::kF32,
                        .layout = Layout::kRows,
                        .rows = workspace_.max_rows,
                        .cols = spec_.hidden_size},
                       rows, workspace_.normed.f32(), false);
  float* x = workspace_.normed.f32();
  if (spec_.final_norm)
    norm(x, head[TensorRole::kFinalNorm], head[TensorRole::kFinalNormBias], x, count);
  if (spec_.projected_embedding()) {
    linear(x, head[TensorRole::kHeadProjection], nullptr, workspace_.embedded.f32(), count);
    x = workspace_.embedded.f32();
  }
  const float* const bias = head[TensorRole::kHeadBias].f32();
  const InputRows input = matmul_input(backend_, workspace_, x, count, spec_.embedding_size);
  // The matrix may come from disk, a tile at a time.
  std::int64_t flops = head_flops(spec_, count), asked_ns = now_ns();
  weights_.head_matrix([&](std::int64_t first, const TensorView& tile) {
    timed->stood_still_since(asked_ns);
    timed->span().bytes += tile.bytes();
    timed->span().flops += 2 * count * tile.rows * tile.cols;
    flops -= 2 * count * tile.rows * tile.cols;
    backend_.matmul({.x = input,
                     .weight = tile.data,
                     .weight_type = tile.type,
                     .bias = bias != nullptr ? bias + first : nullptr,
                     .y = logits_.f32() + first,
                     .y_stride = spec_.vocab_size,
                     .rows = count,
                     .in = tile.cols,
                     .out = tile.rows,
                     .accumulate = false});
    asked_ns = now_ns();
  });
  timed->span().flops += flops;  // of what is not the matrix
  const std::span<float> used(host_logits_.data(),
                              static_cast<std::size_t>(count * spec_.vocab_size));
  timed.reset();
  backend_.download(std::as_writable_bytes(used), logits_.data());
  ops_.resolve();
}

void StageRunner::run_head(std::span<const TokenRun> runs, const BatchLabel& label,
                           const UseLogits& use) {
  struct Wanted {
    const TokenRun* run;
    std::int64_t row_in_run;
  };
  std::vector<Wanted> wanted;
  std::vector<TokenId> rows;  // of workspace.hidden
  TokenId row = 0;
  for (const TokenRun& run : runs) {
    for (std::int64_t i = 0; i < run.count(); ++i, ++row) {
      const bool target = !run.targets.empty() && run.targets[static_cast<std::size_t>(i)] >= 0;
      if (!target && !(run.sample && i + 1 == run.count())) continue;
      wanted.push_back({&run, i});
      rows.push_back(row);
    }
  }
  if (wanted.empty()) return;
  move_hidden(main_, total_rows(runs));
  const auto vocab = static_cast<std::size_t>(spec_.vocab_size);
  if (host_logits_.empty()) {
    logits_ = backend_.allocate(limits_.head_rows * spec_.vocab_size *
                                static_cast<std::int64_t>(sizeof(float)));
    host_logits_.resize(static_cast<std::size_t>(limits_.head_rows) * vocab);
    logits_lock_ = backend_.pin(std::as_writable_bytes(std::span(host_logits_)));
  }
  for (std::size_t begin = 0; begin < wanted.size();) {
    const std::size_t count =
        std::min(wanted.size() - begin, static_cast<std::size_t>(limits_.head_rows));
    head_rows(std::span(rows).subspan(begin, count), label);
    for (std::size_t i = 0; i < count; ++i)
      use(*wanted[begin + i].run, wanted[begin + i].row_in_run,
          {host_logits_.data() + i * vocab, vocab});
    begin += count;
  }
}

}  // namespace stagecoach
