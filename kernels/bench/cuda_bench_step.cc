// A decode step of a few layers: its kernels launched one by one, and all at once as a graph. What
// the card does is the same; the difference is what starting kernels costs.
#include <cstring>
#include <functional>
#include <initializer_list>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/cuda_kernels.h"

namespace stagecoach::cuda_bench {
namespace {

constexpr std::int64_t kLayers = 4;
constexpr DType kWeights = DType::kQ8;

// Layers with a sequential block and an MLP without a gate; one sequence, at the end of the
// context.
class StepBench {
 public:
  StepBench(Bench& bench, const Model& model)
      : bench_(bench),
        model_(model),
        packed_(packed_row_stride(InputType::kInt8, model.mlp())),
        norm_(bench.on_device(bench.random(model.hidden))),
        input_(bench.on_device(bench.random(model.hidden))),
        hidden_(bench.unwritten(model.hidden * kFloat)),
        query_(bench.unwritten(model.hidden * kFloat)),
        key_(bench.unwritten(model.hidden * kFloat)),
        value_(bench.unwritten(model.hidden * kFloat)),
        attended_(bench.unwritten(model.hidden * kFloat)),
        up_(bench.unwritten(model.mlp() * kFloat)),
        angles_(bench.on_device(bench.random(model.rotary_dim))) {
    for (std::int64_t i = 0; i < kLayers; ++i) layers_.push_back(make_layer());
    scratch_ = Memory(kFloat * cuda::decode_scratch_floats(attention_args(), spans(layers_[0])));
  }

  void run(const std::string& name) {
    const Work work{.bytes = bytes_};
    step();
    check(cudaGetLastError(), "starting a kernel");
    const Floats expected = bench_.floats_of(hidden_);
    bench_.report(name + ", kernel by kernel", work, kNotCompared, 1,
                  [&](std::int64_t) { step(); });

    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    check(cudaStreamBeginCapture(bench_.stream(), cudaStreamCaptureModeThreadLocal), "capturing");
    step();
    check(cudaStreamEndCapture(bench_.stream(), &graph), "capturing");
    check(cudaGraphInstantiate(&exec, graph, 0), "making a graph");
    check(cudaGraphDestroy(graph), "making a graph");
    bench_.fill_with_nan(hidden_);
    const auto queue = [&](std::int64_t) {
      check(cudaGraphLaunch(exec, bench_.stream()), "launching a graph");
    };
    queue(0);
    const Floats found = bench_.floats_of(hidden_);
    double wrong = 0;
    for (std::size_t i = 0; i < found.size(); ++i) wrong += found[i] != expected[i];
    bench_.report(name + ", as a graph", work, {wrong, 0}, 1, queue);
    check(cudaGraphExecDestroy(exec), "making a graph");
  }

 private:
  static constexpr std::int64_t kFloat = 4;
  struct Layer {
    Memory query, key, value, out, up, down;
    Memory pages, table;  // the span, then its pages of keys and of values
  };

  // Panels of random weights, over and over.
  Memory make_weight(std::int64_t in, std::int64_t out) {
    const Layout layout = matrix_layout(kWeights);
    Floats values = bench_.random(kPanelRows * in);
    for (float& value : values) value *= 0.01f;
    Bytes panel(static_cast<std::size_t>(layout_bytes(layout, kWeights, kPanelRows, in)));
    pack_rows(layout, kWeights, values.data(), kPanelRows, in, panel.data());
    const std::int64_t panels = (out + kPanelRows - 1) / kPanelRows;
    bytes_ += static_cast<double>(panels) * static_cast<double>(panel.size());
    return bench_.copies_on_device(panel, panels);
  }
  Layer make_layer() {
    const std::int64_t h = model_.hidden;
    Layer layer{.query = make_weight(h, h),
                .key = make_weight(h, h),
                .value = make_weight(h, h),
                .out = make_weight(h, h),
                .up = make_weight(h, model_.mlp()),
                .down = make_weight(model_.mlp(), h),
                .pages = {},
                .table = {}};
    const std::int64_t count = (model_.context + kKvPageTokens - 1) / kKvPageTokens;
    const std::int64_t page = model_.heads * kv_head_bytes(KvType::kF16, model_.head_dim);
    layer.pages = bench_.copies_on_device(Bytes(static_cast<std::size_t>(page)), 2 * count);
    bytes_ += static_cast<double>(2 * count * page);
    const auto pointers = static_cast<std::size_t>(2 * count);
    Bytes table(sizeof(KvSpan) + pointers * sizeof(std::byte*));
    layer.table = Memory(static_cast<std::int64_t>(table.size()));
    auto* const lists = reinterpret_cast<std::byte* const*>(layer.table.data() + sizeof(KvSpan));
    const KvSpan span{.row = 0,
                      .rows = 1,
                      .position = model_.context - 1,
                      .key_pages = lists,
                      .value_pages = lists + count};
    std::memcpy(table.data(), &span, sizeof span);
    for (std::size_t i = 0; i < pointers; ++i) {
      std::byte* const at = layer.pages.data() + static_cast<std::int64_t>(i) * page;
      std::memcpy(&table[sizeof span + i * sizeof at], &at, sizeof at);
    }
    const Memory sent = bench_.on_device(table);
    bench_.copy(layer.table.data(), sent.data(), sent.bytes());
    bench_.synchronize();
    return layer;
  }

  cuda::DeviceSpans spans(const Layer& layer) const {
    return {.spans = reinterpret_cast<const KvSpan*>(layer.table.data()),
            .count = 1,
            .rows = 1,
            .largest_rows = 1,
            .splits = decode_splits(model_.context)};
  }
  AttentionArgs attention_args() const {
    return {.q = query_.f32(),
            .q_stride = model_.hidden,
            .out = attended_.f32(),
            .out_stride = model_.hidden,
            .spans = nullptr,
            .num_spans = 1,
            .kv_type = KvType::kF16,
            .heads = model_.heads,
            .kv_heads = model_.heads,
            .head_dim = model_.head_dim,
            .scale = 0.1f};
  }
  RotaryArgs rotary(const Memory& x) const {
    return {.x = x.f32(),
            .x_stride = model_.hidden,
            .cos = angles_.f32(),
            .sin = angles_.f32() + model_.rotary_dim / 2,
            .rows = 1,
            .heads = model_.heads,
            .head_dim = model_.head_dim,
            .rotary_dim = model_.rotary_dim};
  }
  PackInputArgs packing(const Memory& x, std::int64_t cols) const {
    return {.x = x.f32(),
            .x_stride = cols,
            .packed = packed_.data(),
            .rows = 1,
            .cols = cols,
            .type = InputType::kInt8};
  }
  MatmulArgs product(const Memory& weight, std::int64_t in, std::int64_t out, const Memory& y,
                     bool add) const {
    return {.x = {packed_.data(), packed_row_stride(InputType::kInt8, in), InputType::kInt8},
            .weight = weight.data(),
            .weight_type = kWeights,
            .bias = nullptr,
            .y = y.f32(),
            .y_stride = out,
            .rows = 1,
            .in = in,
            .out = out,
            .accumulate = add};
  }
  void multiply(std::initializer_list<MatmulArgs> products) const {
    cuda::matmul_few_rows(std::span(products.begin(), products.size()), bench_.stream());
  }
  void normed_input() {
    cuda::norm_and_pack({.x = hidden_.f32(),
                         .weight = norm_.f32(),
                         .bias = nullptr,
                         .y = nullptr,
                         .rows = 1,
                         .cols = model_.hidden,
                         .epsilon = 1e-5f,
                         .kind = NormKind::kRmsNorm},
                        packing(hidden_, model_.hidden), bench_.stream());
  }

  void step() {
    const std::int64_t h = model_.hidden, mlp = model_.mlp();
    const cudaStream_t stream = bench_.stream();
    bench_.copy(hidden_.data(), input_.data(), h * kFloat);
    for (const Layer& layer : layers_) {
      normed_input();
      multiply({product(layer.query, h, h, query_, false), product(layer.key, h, h, key_, false),
                product(layer.value, h, h, value_, false)});
      cuda::rotate_and_append(rotary(query_), rotary(key_),
                              {.k = key_.f32(),
                               .v = value_.f32(),
                               .stride = h,
                               .spans = nullptr,
                               .num_spans = 1,
                               .kv_type = KvType::kF16,
                               .kv_heads = model_.heads,
                               .head_dim = model_.head_dim},
                              spans(layer), stream);
      cuda::attention_decode(attention_args(), spans(layer),
                             reinterpret_cast<float*>(scratch_.data()), stream);
      cuda::pack_input(packing(attended_, h), stream);
      multiply({product(layer.out, h, h, hidden_, true)});
      normed_input();
      multiply({product(layer.up, h, mlp, up_, false)});
      cuda::activation_and_pack({.x = up_.f32(),
                                 .up = nullptr,
                                 .y = nullptr,
                                 .count = mlp,
                                 .kind = Activation::kGeluTanh},
                                packing(up_, mlp), stream);
      multiply({product(layer.down, mlp, h, hidden_, true)});
    }
  }

  Bench& bench_;
  const Model& model_;
  double bytes_ = 0;  // of weights, keys and values
  Memory packed_, norm_, input_, hidden_, query_, key_, value_, attended_, up_, angles_, scratch_;
  std::vector<Layer> layers_;
};

}  // namespace

void bench_step(Bench& bench, const Model& model) {
  const std::string name = std::string(model.name) + " decode step q8, " + std::to_string(kLayers) +
                           " layers at " + std::to_string(model.context);
  if (bench.wanted(name)) bench.attempt(name, [&] { StepBench(bench, model).run(name); });
}

}  // namespace stagecoach::cuda_bench
