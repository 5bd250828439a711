// Decode steps on simulated devices: recorded as graphs they leave the bits and the spans that they
// leave op by op, and are as many launches as docs/cuda.md says.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda_module.h"
#include "backend/device_scratch.h"
#include "base/error.h"
#include "base/version.h"
#include "conformance/random_data.h"
#include "cuda_sim.h"
#include "engine/stage_runner.h"
#include "model/tensor_catalog.h"
#include "support_gpu.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kLayers = 4;

ModelSpec llama_like() {
  ModelSpec spec;
  spec.vocab_size = 40;
  spec.hidden_size = spec.embedding_size = 64;
  spec.intermediate_size = 96;
  spec.num_hidden_layers = kLayers;
  spec.num_attention_heads = 4;
  spec.num_key_value_heads = 2;
  spec.head_dim = 16;
  spec.max_position_embeddings = 2048;
  spec.norm = NormAxis::kRmsNorm;
  spec.norm_bias = false;
  spec.position = PositionKind::kRotary;
  spec.rotary_dim = 16;
  for (int i = 0; i < 8; ++i) spec.rotary_inv_freq.push_back(1.0f / static_cast<float>(1 + i));
  spec.attention_scale = 0.25f;
  spec.mlp = MlpKind::kGated;
  spec.activation = ActivationKind::kSilu;
  return spec;
}

ModelSpec gptj_like() {
  ModelSpec spec = llama_like();
  spec.norm = NormAxis::kLayerNorm;
  spec.norm_bias = true;
  spec.num_key_value_heads = 4;
  spec.rotary_dim = 8;
  spec.rotary_inv_freq.resize(4);
  spec.residual = ResidualForm::kParallelSharedNorm;
  spec.mlp = MlpKind::kPlain;
  spec.mlp_bias = true;
  spec.activation = ActivationKind::kGeluTanh;
  return spec;
}

ModelSpec bloom_like() {
  ModelSpec spec = gptj_like();
  spec.position = PositionKind::kAlibi;
  spec.rotary_dim = 0;
  spec.rotary_inv_freq.clear();
  spec.alibi_slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
  spec.residual = ResidualForm::kSequential;
  return spec;
}

// Random layers on the device. Those that do not stay only say so: their weights are where the
// others' are.
class Layers : public LayerSource, RandomData {
 public:
  Layers(const ModelSpec& spec, Backend& backend, std::vector<bool> stays)
      : RandomData(7), stays_(std::move(stays)) {
    for (std::int64_t layer = 0; layer < spec.num_hidden_layers; ++layer)
      for (const TensorSpec& tensor : slab_tensors(spec, SlabKind::kLayer, DType::kQ8)) {
        Floats values = random(tensor.rows * tensor.cols, tensor.is_vector() ? 0.5f : 0.2f);
        std::vector<std::byte> packed(static_cast<std::size_t>(tensor.bytes()));
        pack_rows(tensor.layout, tensor.type, values.data(), tensor.rows, tensor.cols,
                  packed.data());
        Buffer& memory = memory_.emplace_back(backend.allocate(tensor.bytes()));
        backend.upload(memory.data(), packed);
        parts_[{layer, tensor.part}].views[static_cast<int>(tensor.role)] = {
            memory.data(), tensor.type, tensor.layout, tensor.rows, tensor.cols};
      }
    backend.synchronize();
  }
  LayerLease lease(std::int64_t layer, PartKind part, NextUse) override {
    return {parts_.at({layer, part}), nullptr};
  }
  bool stays(std::int64_t layer) const override {
    return stays_.at(static_cast<std::size_t>(layer));
  }
  LayerLease lease_ends(PartKind) override { throw std::logic_error("no ends"); }
  void gather(TensorRole, std::span<const std::int32_t>, const UseRows&) override {
    throw std::logic_error("no embedding");
  }
  void head_matrix(const UseTile&) override { throw std::logic_error("no head"); }

 private:
  std::vector<bool> stays_;
  std::vector<Buffer> memory_;
  std::map<std::pair<std::int64_t, PartKind>, PartTensors> parts_;
};

enum class Graphs { kOff, kOn, kCpu };  // kCpu: no device at all

// Three, or the one that STAGECOACH_CUDA_SIM_SEED names.
std::vector<std::uint64_t> seeds() {
  if (std::getenv("STAGECOACH_CUDA_SIM_SEED") != nullptr)
    return {cuda_sim::config_from_environment().seed};
  return {1, 2, 3};
}

// A rank's runner with its device. Seeds let what is unordered happen in another order.
class Rank : RandomData {
 public:
  Rank(const ModelSpec& spec, Graphs graphs,
       cuda_sim::Config config = cuda_sim::config_from_environment(),
       std::vector<bool> stays = std::vector<bool>(kLayers, true))
      : RandomData(11), spec_(spec) {
    cuda_sim::reset(config);
    ::setenv("STAGECOACH_CUDA_GRAPHS", graphs == Graphs::kOn ? "on" : "off", 1);
    CudaOptions options;
    options.build = STAGECOACH_BUILD;
    if (graphs == Graphs::kCpu)
      backend_ = make_cpu_backend({.threads = 1, .isa = {}});
    else
      backend_.reset(stagecoach_open_cuda_backend_v1(options));
    layers_ = std::make_unique<Layers>(spec_, *backend_, std::move(stays));
    runner_ = std::make_unique<StageRunner>(
        spec_, *backend_, *layers_, timeline_,
        StageRunner::Limits{.max_rows = 64, .packing = InputType::kInt8, .kv_type = KvType::kF16});
    runner_->add_layers(0, spec_.num_hidden_layers);
  }

  StageRunner& runner() { return *runner_; }
  Backend& backend() { return *backend_; }
  Timeline& timeline() { return timeline_; }

  struct Row {
    SequenceId sequence;
    std::int64_t position;
  };
  static TokenRun run_of(SequenceId sequence, std::int64_t position, std::size_t count) {
    return {.sequence = sequence,
            .position = position,
            .ids = std::vector<TokenId>(count),
            .targets = {}};
  }
  static std::vector<TokenRun> runs_of(const std::vector<Row>& rows) {
    std::vector<TokenRun> runs;
    for (const Row& row : rows) runs.push_back(run_of(row.sequence, row.position, 1));
    return runs;
  }
  // Random rows through the layers. What was before in positions that nobody computed is 0.
  void queue(const std::vector<TokenRun>& runs, std::int64_t begin = 0,
             std::int64_t end = kLayers) {
    runner_->set_hidden(random(total_rows(runs) * spec_.hidden_size));
    runner_->run_layers(begin, end, runs, {.micro_batch = step_, .pass = step_++});
  }
  Floats run(const std::vector<TokenRun>& runs) {
    queue(runs);
    return hidden(runs);
  }
  Floats decode(const std::vector<Row>& rows) { return run(runs_of(rows)); }
  Floats hidden(const std::vector<TokenRun>& runs) {
    Floats result(static_cast<std::size_t>(total_rows(runs) * spec_.hidden_size));
    runner_->get_hidden(result);
    return result;
  }

 private:
  struct LeaksNothing {
    ~LeaksNothing() { EXPECT_EQ(cuda_sim::leaks(), ""); }
  };

  ModelSpec spec_;
  LeaksNothing when_all_below_are_gone_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Layers> layers_;
  Timeline timeline_;
  std::unique_ptr<StageRunner> runner_;
  std::int64_t step_ = 0;
};

// Sequences that come and go, over borders of pages (64 positions) and of launches' shapes (256,
// 512), among prefill; all hidden states.
std::vector<Floats> everyday(Rank& rank) {
  std::vector<Floats> all;
  for (std::int64_t i = 0; i < 9; ++i) {
    std::vector<Rank::Row> rows{{0, 250 + i}};
    if (i >= 2) rows.push_back({1, 58 + i});
    if (i == 5 || i == 6) rows.push_back({2, i});
    all.push_back(rank.decode(rows));
    if (i == 6) rank.runner().drop(2);
    if (i == 7)  // takes the pages of the one that left
      all.push_back(rank.run({Rank::run_of(3, 0, 40)}));
  }
  for (std::int64_t i = 0; i < 5; ++i) all.push_back(rank.decode({{0, 509 + i}, {3, 40 + i}}));
  rank.runner().kv(0).truncate(0, 100);
  for (std::int64_t i = 0; i < 3; ++i) all.push_back(rank.decode({{0, 100 + i}}));
  // Another shape, for which there is memory already.
  for (std::int64_t i = 0; i < 3; ++i) all.push_back(rank.decode({{0, 300 + i}}));
  rank.runner().kv(0).truncate(0, 103);
  // Two steps of one shape whose results are awaited together.
  for (std::int64_t i = 0; i < 2; ++i) {
    rank.queue(Rank::runs_of({{0, 103 + 2 * i}}));
    const std::vector<TokenRun> second = Rank::runs_of({{0, 104 + 2 * i}});
    rank.queue(second);
    all.push_back(rank.hidden(second));
  }
  return all;
}

struct Labels {
  explicit Labels(const Span& span)
      : all(span.kind, span.layer, span.micro_batch, span.pass, span.bytes, span.flops,
            span.tokens) {}
  std::tuple<SpanKind, std::int32_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
             std::int64_t>
      all;
  bool operator==(const Labels&) const = default;
};

// A copy from or to memory that is not page-locked waits for all that the device has queued.
TEST(HostRows, ArePageLockedAsLongAsTheyLive) {
  constexpr std::int64_t kRows = 2000;
  const ModelSpec spec = llama_like();
  Rank rank(spec, Graphs::kOff);
  const std::size_t before = cuda_sim::statistics().pinned;
  {
    const StageRunner::HostRows rows = rank.runner().make_host_rows(kRows);
    EXPECT_EQ(rows.values.size(), static_cast<std::size_t>(kRows * spec.hidden_size));
    EXPECT_GE(cuda_sim::statistics().pinned, before + rows.values.size() * sizeof(float));
  }
  EXPECT_EQ(cuda_sim::statistics().pinned, before);
}

// Of what is assigned over, too.
TEST(HostRows, AreUnlockedBeforeTheyAreFreed) {
  StageRunner::HostRows rows;
  rows.values.resize(10);
  bool unlocked = false;
  rows.lock = {rows.values.data(), [&](float* values) {
                 EXPECT_EQ(rows.values.data(), values);
                 unlocked = true;
               }};
  rows = {};
  EXPECT_TRUE(unlocked);
}

TEST(Events, ThatCannotBeRecordedAreNotLeft) {
  for (const char* fault : {"cudaEventRecord:1:cudaErrorMemoryAllocation",
                            "cudaEventRecordWithFlags:1:cudaErrorMemoryAllocation"}) {
    cuda_sim::reset({.faults = fault});
    CudaOptions options;
    options.build = STAGECOACH_BUILD;
    const auto use = [&] {
      const std::unique_ptr<Backend> backend(stagecoach_open_cuda_backend_v1(options));
      backend->mark();
    };
    EXPECT_THROW(use(), Error) << fault;
    EXPECT_EQ(cuda_sim::reset({}), "") << fault;
  }
}

// Whoever spins for the device has no other use for a processor.
TEST(Waits, SpinOnlyWhereNothingElseWantsTheHost) {
  CudaOptions options;
  options.build = STAGECOACH_BUILD;
  const auto spins = [&](int ranks_here, bool copies) {
    // The first of these waits is in the constructor.
    cuda_sim::reset({.faults = "cudaStreamSynchronize:2:cudaErrorMemoryAllocation"});
    options.ranks_here = ranks_here;
    const std::unique_ptr<Backend> backend(stagecoach_open_cuda_backend_v1(options));
    const Buffer slot = backend->allocate(64);
    const std::vector<std::byte> host(64);
    if (copies) backend->copy_ahead(slot.data(), host, backend->mark())->synchronize();
    try {
      backend->synchronize();
      return false;
    } catch (const Error&) {
      return true;
    }
  };
  EXPECT_TRUE(spins(1, false));
  EXPECT_FALSE(spins(1, true));
  EXPECT_FALSE(spins(2, false));
}

// However tables grow: the budget knows the largest.
TEST(Spans, TakeOfTheHostWhatItsBudgetHas) {
  Rank rank(llama_like(), Graphs::kOff);
  const std::size_t before = cuda_sim::statistics().pinned, first = 4 * (kSpanTableBytes / 4);
  std::byte page[1];
  std::byte* const pages[] = {page};
  for (const std::int64_t count : {20'000, 23'000, 50'000}) {
    const std::vector<KvSpan> spans(
        static_cast<std::size_t>(count),
        {.row = 0, .rows = 1, .position = 0, .key_pages = pages, .value_pages = pages});
    rank.backend().send_spans(spans);
    rank.backend().synchronize();
    EXPECT_LE(cuda_sim::statistics().pinned - (before - first),
              4 * static_cast<std::size_t>(span_table_bytes(count, 1, 1)));
  }
}

// As an MPI that knows CUDA does: only who has it locked by pin() leaves it as it is.
TEST(Uploads, ReadAtOnceWhatOthersHaveLocked) {
  for (const std::uint64_t seed : seeds()) {
    Rank rank(llama_like(), Graphs::kOff, {.seed = seed});
    std::vector<std::byte> source(5000, std::byte{7});
    const std::vector<std::byte> expected = source;
    ASSERT_EQ(cudaHostRegister(source.data(), source.size(), cudaHostRegisterPortable),
              cudaSuccess);
    const Buffer buffer = rank.backend().allocate(static_cast<std::int64_t>(source.size()));
    rank.backend().upload(buffer.data(), source);
    source.assign(source.size(), std::byte{0xee});
    std::vector<std::byte> found(source.size());
    rank.backend().download(found, buffer.data());
    EXPECT_TRUE(found == expected) << "seed " << seed;
    cudaHostUnregister(source.data());
  }
}

using SpecMaker = ModelSpec (*)();
constexpr SpecMaker kModels[] = {llama_like, gptj_like, bloom_like};

TEST(Decode, GraphsLeaveTheSameBitsAndSpans) {
  struct Run {
    std::vector<Floats> bits;
    std::vector<Span> spans;
  };
  const auto run = [](SpecMaker model, Graphs graphs, std::uint64_t seed) {
    Rank rank(model(), graphs, {.seed = seed});
    Run result{everyday(rank), rank.timeline().take()};
    const bool on = graphs == Graphs::kOn;
    EXPECT_EQ(rank.runner().replays() > 0, on);
    EXPECT_EQ(cuda_sim::statistics().graph_launches > 0, on);
    EXPECT_EQ(rank.backend().records(), on) << "graphs were given up";
    return result;
  };
  for (const SpecMaker model : kModels) {
    const Run expected = run(model, Graphs::kOff, 1);
    for (const std::uint64_t seed : seeds()) {
      if (model != llama_like && seed != seeds().front()) continue;
      SCOPED_TRACE("seed " + std::to_string(seed));
      const Run found = run(model, Graphs::kOn, seed);
      ASSERT_EQ(found.bits, expected.bits);
      ASSERT_EQ(found.spans.size(), expected.spans.size());
      std::int64_t reached = 0;
      for (std::size_t i = 0; i < found.spans.size(); ++i) {
        const Span& span = found.spans[i];
        ASSERT_EQ(Labels(span), Labels(expected.spans[i])) << "span " << i;
        constexpr std::int64_t kResolution = 1000;  // ns: milliseconds between events are floats
        ASSERT_LE(reached, span.begin_ns + kResolution) << "span " << i;
        ASSERT_LE(span.begin_ns, span.end_ns) << "span " << i;
        reached = span.end_ns;
      }
    }
  }
}

// The same steps on a CPU, whose quants of activations may be others by one where sums round
// otherwise.
TEST(Decode, AgreesWithTheCpu) {
  for (const SpecMaker model : kModels) {
    std::vector<Floats> results[2];
    for (const bool cpu : {false, true}) {
      Rank rank(model(), cpu ? Graphs::kCpu : Graphs::kOn);
      results[cpu] = everyday(rank);
    }
    double squares = 0, wrong = 0;
    for (std::size_t step = 0; step < results[1].size(); ++step)
      for (std::size_t i = 0; i < results[1][step].size(); ++i) {
        const double expected = results[1][step][i], error = results[0][step][i] - expected;
        squares += expected * expected;
        wrong += error * error;
      }
    EXPECT_LT(std::sqrt(wrong / squares), 0.03);
  }
}

// Layers that pass through are launched op by op; those between them that stay, together.
TEST(Decode, OnlyLayersThatStayAreRecorded) {
  for (const std::uint64_t seed : seeds()) {
    std::vector<Floats> bits[2];
    std::int64_t replays[2] = {};
    for (const bool streams : {false, true}) {
      Rank rank(llama_like(), Graphs::kOn, {.seed = seed}, {true, true, !streams, true});
      for (std::int64_t i = 0; i < 6; ++i)
        bits[streams].push_back(rank.decode({{0, 60 + i}, {1, i}}));
      replays[streams] = rank.runner().replays();
    }
    EXPECT_EQ(bits[0], bits[1]);
    EXPECT_EQ(replays[0], 5);
    EXPECT_EQ(replays[1], 2 * 5);
    Rank none(llama_like(), Graphs::kOn, {.seed = seed}, std::vector<bool>(kLayers, false));
    for (std::int64_t i = 0; i < 6; ++i)
      EXPECT_EQ(none.decode({{0, 60 + i}, {1, i}}), bits[0][static_cast<std::size_t>(i)]);
    EXPECT_EQ(none.runner().replays(), 0);
  }
}

// The same layers alone and among others find their spans at other places.
TEST(Decode, RangesThatBeginElsewhereAreOtherSteps) {
  std::vector<Floats> bits[2];
  for (const Graphs graphs : {Graphs::kOff, Graphs::kOn}) {
    Rank rank(llama_like(), graphs, cuda_sim::config_from_environment(), {false, true, true, true});
    for (std::int64_t i = 0; i < 8; ++i) {
      const std::vector<TokenRun> runs = Rank::runs_of({{0, 60 + i}, {1, i}});
      if (i % 2 == 0) {
        rank.queue(runs);
      } else {
        rank.queue(runs, 0, 1);
        rank.queue(runs, 1, kLayers);
      }
      bits[static_cast<int>(graphs)].push_back(rank.hidden(runs));
    }
  }
  EXPECT_EQ(bits[0], bits[1]);
}

TEST(Decode, ADriverThatRefusesGraphsCostsNothingButTime) {
  std::vector<Floats> expected;
  {
    Rank rank(llama_like(), Graphs::kOff, {});
    expected = everyday(rank);
  }
  constexpr const char* kFaults[] = {"cudaStreamBeginCapture:1:cudaErrorNotSupported",
                                     "cudaGraphInstantiate:1:cudaErrorMemoryAllocation",
                                     "cudaGraphUpload:1:cudaErrorMemoryAllocation"};
  for (const char* fault : kFaults) {
    Rank rank(llama_like(), Graphs::kOn, {.faults = fault});
    EXPECT_TRUE(rank.backend().records());
    EXPECT_EQ(everyday(rank), expected) << fault;
    EXPECT_EQ(rank.runner().replays(), 0);
    EXPECT_FALSE(rank.backend().records());
  }
}

// Any call may return what the device has failed with.
TEST(Decode, ADeviceThatFailsIsNotTakenForADriverThatRefuses) {
  for (const char* function : {"cudaStreamBeginCapture", "cudaGraphInstantiate"}) {
    Rank rank(llama_like(), Graphs::kOn,
              {.faults = std::string(function) + ":1:cudaErrorECCUncorrectable"});
    EXPECT_THROW(everyday(rank), Error);
    EXPECT_TRUE(rank.backend().records()) << function << " is taken for a refusal";
  }
  Rank rank(llama_like(), Graphs::kOff, {.faults = "cudaHostRegister:1:cudaErrorECCUncorrectable"});
  EXPECT_THROW(rank.runner().make_host_rows(10), Error);
}

std::uint64_t kernels_of(const cuda_sim::Statistics& stats) {
  return std::accumulate(stats.launches.begin(), stats.launches.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const auto& one) { return sum + one.second; });
}

TEST(Decode, LaunchErrorsWhileRecordingAreTheOps) {
  std::uint64_t one_step = 0;
  {
    Rank rank(llama_like(), Graphs::kOn);
    rank.decode({{0, 0}});
    one_step = kernels_of(cuda_sim::statistics());
  }
  // The step that is recorded, in its third layer.
  const std::string fault =
      "launch:" + std::to_string(one_step * 3 / 2) + ":cudaErrorLaunchOutOfResources";
  Rank failing(llama_like(), Graphs::kOn, {.faults = fault});
  failing.decode({{0, 0}});
  try {
    failing.decode({{0, 1}});
    FAIL() << "no launch failed";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("too many resources requested for launch"),
              std::string::npos)
        << error.what();
  }
}

// What docs/cuda.md says of a layer's launches, and that a replayed step is one.
TEST(Decode, LaunchesOfALayer) {
  struct Case {
    SpecMaker model;
    std::int64_t position;
    std::uint64_t kernels;  // of a layer
  };
  for (const auto& [model, position, kernels] :
       {Case{llama_like, 70, 10}, Case{llama_like, 300, 11}, Case{gptj_like, 70, 10},
        Case{bloom_like, 70, 10}})
    for (const Graphs graphs : {Graphs::kOff, Graphs::kOn}) {
      Rank rank(model(), graphs);
      rank.decode({{0, position}});
      rank.decode({{0, position + 1}});
      const cuda_sim::Statistics before = cuda_sim::statistics();
      rank.decode({{0, position + 2}});
      const cuda_sim::Statistics after = cuda_sim::statistics();
      // Spans, the hidden state, two tables of angles.
      const std::uint64_t fetches = model == bloom_like ? 2 : 4;
      EXPECT_EQ(kernels_of(after) - kernels_of(before), kLayers * kernels + fetches);
      const bool on = graphs == Graphs::kOn;
      EXPECT_EQ(after.calls.at("launch") - before.calls.at("launch"),
                on ? fetches : kLayers * kernels + fetches);
      EXPECT_EQ(after.graph_launches - before.graph_launches, on ? 1u : 0u);
    }
}

// What ctest shows as skipped on a PC without a GPU, and what it must not.
TEST(MissingGpus, AreToldFromFailingOnes) {
  const auto error_of = [](const cuda_sim::Config& config) {
    cuda_sim::reset(config);
    try {
      CudaOptions options;
      options.build = STAGECOACH_BUILD;
      const std::unique_ptr<Backend> opened(stagecoach_open_cuda_backend_v1(options));
    } catch (const Error& error) {
      return error;
    }
    throw std::logic_error("no error");
  };
  for (const cuda_sim::Config& config :
       {cuda_sim::Config{.devices = 0}, {.driver = 0}, {.driver = 11080}, {.capability = 61}})
    EXPECT_TRUE(says_no_gpu(error_of(config)));
  for (const char* fault :
       {"cudaMalloc:1:cudaErrorMemoryAllocation", "cudaSetDevice:1:cudaErrorDevicesUnavailable",
        "cublasCreate:1:CUBLAS_STATUS_INTERNAL_ERROR"}) {
    cuda_sim::Config config;
    config.faults = fault;
    EXPECT_FALSE(says_no_gpu(error_of(config))) << fault;
  }
  cuda_sim::reset({});
}

}  // namespace
}  // namespace stagecoach
