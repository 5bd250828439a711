#include "engine/forward_block.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <span>

#include "base/error.h"
#include "engine/kernel_kinds.h"

namespace stagecoach {
namespace {

// y = x · weightᵀ + bias.
struct Linear {
  const TensorView& weight;
  const TensorView& bias;
  const Buffer& y;
};

// The ops below with everything filled in that is the same all through the block: rows and strides.
class RowOps {
 public:
  RowOps(const BlockContext& context, std::int64_t rows)
      : spec_(context.spec),
        backend_(context.backend),
        workspace_(context.workspace),
        rows_(rows) {}

  void norm(const Buffer& x, const TensorView& weight, const TensorView& bias, const Buffer& y) {
    backend_.norm(norm_args(x, weight, bias, y));
  }
  // The same as linear layers take it, until the next that does so.
  InputRows normed_input(const Buffer& x, const TensorView& weight, const TensorView& bias,
                         const Buffer& y, Backend::Unpacked unpacked) {
    const NormArgs args = norm_args(x, weight, bias, y);
    if (!workspace_.packing) {
      backend_.norm(args);
      return f32_rows(args.y, args.cols);
    }
    const PackInputArgs pack = packing_of(workspace_, args.y, rows_, args.cols);
    backend_.norm_and_pack(args, pack, unpacked);
    return packed_rows(pack);
  }
  // Of each head alone, in place.
  void norm_heads(const Buffer& x, std::int64_t heads, const TensorView& weight) {
    backend_.norm({.x = x.f32(),
                   .weight = weight.f32(),
                   .bias = nullptr,
                   .y = x.f32(),
                   .rows = rows_ * heads,
                   .cols = spec_.head_dim,
                   .epsilon = spec_.norm_epsilon,
                   .kind = NormKind::kRmsNorm});
  }

  // x (rows, width) as linear layers take it, until the next call.
  InputRows input(const Buffer& x, std::int64_t width) {
    return matmul_input(backend_, workspace_, x.f32(), rows_, width);
  }
  // Up to three of the same rows.
  void linear(const InputRows& x, std::initializer_list<Linear> layers) {
    std::array<MatmulArgs, 3> products;
    STAGECOACH_CHECK(layers.size() <= products.size());
    std::transform(layers.begin(), layers.end(), products.begin(),
                   [&](const Linear& layer) { return product(x, layer, false); });
    backend_.matmuls(std::span(products).first(layers.size()));
  }
  void add_linear(const InputRows& x, const Linear& layer) {
    backend_.matmul(product(x, layer, true));
  }

  // Rotates q and k where the model does, and appends k and v.
  void append_kv(const Buffer& q, const Buffer& k, const Buffer& v, std::span<const KvSpan> spans,
                 KvType type) {
    const AppendKvArgs append{.k = k.f32(),
                              .v = v.f32(),
                              .stride = spec_.key_value_size(),
                              .spans = spans.data(),
                              .num_spans = static_cast<std::int64_t>(spans.size()),
                              .kv_type = type,
                              .kv_heads = spec_.num_key_value_heads,
                              .head_dim = spec_.head_dim};
    if (spec_.position == PositionKind::kRotary)
      backend_.rotate_and_append(rotary(q, spec_.num_attention_heads),
                                 rotary(k, spec_.num_key_value_heads), append);
    else
      backend_.append_kv(append);
  }

  void attention(const Buffer& q, std::span<const KvSpan> spans, KvType type, const Buffer& slopes,
                 const Buffer& out) {
    backend_.attention({.q = q.f32(),
                        .q_stride = spec_.query_size(),
                        .out = out.f32(),
                        .out_stride = spec_.query_size(),
                        .spans = spans.data(),
                        .num_spans = static_cast<std::int64_t>(spans.size()),
                        .kv_type = type,
                        .heads = spec_.num_attention_heads,
                        .kv_heads = spec_.num_key_value_heads,
                        .head_dim = spec_.head_dim,
                        .scale = spec_.attention_scale,
                        .slopes = slopes.f32(),
                        .window = spec_.sliding_window});
  }

  // activation(x) [⊙ up] as linear layers take it, until the next that does so. x is gone.
  InputRows activated_input(const Buffer& x, const float* up) {
    const std::int64_t cols = spec_.intermediate_size;
    const ActivationArgs args{.x = x.f32(),
                              .up = up,
                              .y = x.f32(),
                              .count = rows_ * cols,
                              .kind = activation_kind(spec_)};
    if (!workspace_.packing) {
      backend_.activation(args);
      return f32_rows(args.y, cols);
    }
    const PackInputArgs pack = packing_of(workspace_, args.y, rows_, cols);
    backend_.activation_and_pack(args, pack);
    return packed_rows(pack);
  }

 private:
  NormArgs norm_args(const Buffer& x, const TensorView& weight, const TensorView& bias,
                     const Buffer& y) const {
    return {.x = x.f32(),
            .weight = weight.f32(),
            .bias = bias.f32(),
            .y = y.f32(),
            .rows = rows_,
            .cols = spec_.hidden_size,
            .epsilon = spec_.norm_epsilon,
            .kind = norm_kind(spec_)};
  }
  RotaryArgs rotary(const Buffer& x, std::int64_t heads) const {
    return {.x = x.f32(),
            .x_stride = heads * spec_.head_dim,
            .cos = workspace_.cos.f32(),
            .sin = workspace_.sin.f32(),
            .rows = rows_,
            .heads = heads,
            .head_dim = spec_.head_dim,
            .rotary_dim = spec_.rotary_dim};
  }

  MatmulArgs product(const InputRows& x, const Linear& layer, bool accumulate) const {
    return {.x = x,
            .weight = layer.weight.data,
            .weight_type = layer.weight.type,
            .bias = layer.bias.f32(),
            .y = layer.y.f32(),
            .y_stride = layer.weight.rows,
            .rows = rows_,
            .in = layer.weight.cols,
            .out = layer.weight.rows,
            .accumulate = accumulate};
  }

  const ModelSpec& spec_;
  Backend& backend_;
  const Workspace& workspace_;
  std::int64_t rows_;
};

LayerLease timed_lease(const BlockContext& c, std::int64_t layer, PartKind part,
                       const BatchLabel& label, NextUse next) {
  // Of a device: until its ops may go on.
  const OpSpan span(c.ops, {.kind = SpanKind::kWeightWait,
                            .phase = label.phase,
                            .layer = static_cast<std::int32_t>(layer),
                            .micro_batch = label.micro_batch,
                            .pass = label.pass});
  return c.weights.lease(layer, part, next);
}

// Σ over rows of the number of keys that a row attends to.
std::int64_t context_sum(std::span<const TokenRun> runs, std::int64_t window) {
  // Of the first `count` positions of a sequence.
  const auto from_start = [window](std::int64_t count) {
    const std::int64_t growing = window > 0 ? std::min(count, window) : count;
    return growing * (growing + 1) / 2 + (count - growing) * window;
  };
  std::int64_t sum = 0;
  for (const TokenRun& run : runs)
    sum += from_start(run.position + run.count()) - from_start(run.position);
  return sum;
}

}  // namespace

std::int64_t attention_flops(const ModelSpec& spec, std::span<const TokenRun> runs) {
  return attention_part_flops(spec, total_rows(runs), context_sum(runs, spec.sliding_window));
}

void forward_block(const BlockContext& c, std::int64_t layer, std::span<const TokenRun> runs,
                   std::span<const KvSpan> spans, const BatchLabel& label, NextUse next) {
  using enum TensorRole;
  const ModelSpec& spec = c.spec;
  Workspace& ws = c.workspace;
  const std::int64_t rows = total_rows(runs);
  RowOps ops(c, rows);
  const bool norm_first = spec.norm_placement == NormPlacement::kBefore;
  const bool sequential = spec.residual == ResidualForm::kSequential;
  Span template_span{.phase = label.phase,
                     .layer = static_cast<std::int32_t>(layer),
                     .micro_batch = label.micro_batch,
                     .pass = label.pass,
                     .tokens = rows};

  {
    const LayerLease w = timed_lease(c, layer, PartKind::kAttention, label, next);
    template_span.kind = SpanKind::kAttention;
    template_span.bytes = w.bytes();
    template_span.flops = attention_flops(spec, runs);
    const OpSpan timed(c.ops, template_span);

    // The MLP of a parallel block with one norm reads what is normed here.
    const bool shared = spec.residual == ResidualForm::kParallelSharedNorm;
    const InputRows x =
        norm_first
            ? ops.normed_input(ws.hidden, w[kAttentionNorm], w[kAttentionNormBias], ws.normed,
                               shared ? Backend::Unpacked::kKept : Backend::Unpacked::kNotRead)
            : ops.input(ws.hidden, spec.hidden_size);
    ops.linear(x, {{w[kQuery], w[kQueryBias], ws.query},
                   {w[kKey], w[kKeyBias], ws.key},
                   {w[kValue], w[kValueBias], ws.value}});
    if (spec.query_key_norm) {
      ops.norm_heads(ws.query, spec.num_attention_heads, w[kQueryNorm]);
      ops.norm_heads(ws.key, spec.num_key_value_heads, w[kKeyNorm]);
    }
    ops.append_kv(ws.query, ws.key, ws.value, spans, c.kv.type());
    ops.attention(ws.query, spans, c.kv.type(), ws.slopes, ws.attended);
    // What a parallel block's MLP reads is normed before the attention changes x.
    if (spec.residual == ResidualForm::kParallelTwoNorms)
      ops.norm(ws.hidden, w[kMlpNorm], w[kMlpNormBias], ws.normed);
    ops.add_linear(ops.input(ws.attended, spec.query_size()),
                   {w[kAttentionOutput], w[kAttentionOutputBias], ws.hidden});
    if (!norm_first) ops.norm(ws.hidden, w[kAttentionNorm], w[kAttentionNormBias], ws.hidden);
  }
  {
    const LayerLease w = timed_lease(c, layer, PartKind::kMlp, label, next);
    template_span.kind = SpanKind::kMlp;
    template_span.bytes = w.bytes();
    template_span.flops = mlp_part_flops(spec, rows);
    const OpSpan timed(c.ops, template_span);

    const bool gated = spec.mlp == MlpKind::kGated;
    const Buffer& inner = gated ? ws.gate : ws.up;
    // A parallel block's MLP reads what is still in ws.normed.
    const InputRows x = sequential && norm_first
                            ? ops.normed_input(ws.hidden, w[kMlpNorm], w[kMlpNormBias], ws.normed,
                                               Backend::Unpacked::kNotRead)
                            : ops.input(norm_first ? ws.normed : ws.hidden, spec.hidden_size);
    const Linear up{w[kUp], w[kUpBias], ws.up};
    if (gated)
      ops.linear(x, {up, {w[kGate], w[kGateBias], ws.gate}});
    else
      ops.linear(x, {up});
    ops.add_linear(ops.activated_input(inner, gated ? ws.up.f32() : nullptr),
                   {w[kDown], w[kDownBias], ws.hidden});
    if (!norm_first) ops.norm(ws.hidden, w[kMlpNorm], w[kMlpNormBias], ws.hidden);
  }
}

}  // namespace stagecoach
