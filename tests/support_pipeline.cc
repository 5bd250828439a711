#include "support_pipeline.h"

#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda_module.h"
#include "engine/stage_runner.h"
#include "pipeline/rank_loop.h"
#include "pipeline/text_batches.h"
#include "plan/stage_plan.h"
#include "stager/layer_stager.h"
#include "transport/loopback/loopback_transport.h"

namespace stagecoach {
namespace {

StagePlan make_plan(const LayerStore& store, const PipelineShape& shape) {
  const std::int64_t layers = store.manifest().spec.num_hidden_layers;
  if (!shape.windows.empty()) return explicit_plan(shape.windows, 0, layers, shape.ranks);
  return balanced_plan({.layer_bytes = 1}, 0, layers, shape.ranks, shape.rounds);
}

class PipelineRun {
 public:
  PipelineRun(const LayerStore& store, const PipelineShape& shape,
              const std::vector<PipelineRequest>& requests)
      : store_(store),
        shape_(shape),
        requests_(requests),
        plan_(make_plan(store, shape)),
        outputs_(requests.size()) {}

  std::vector<PipelineOutput> run() {
    auto transports =
        make_loopback(shape_.ranks, [](int, int) { throw Error(ErrorKind::kPeerLost, "aborted"); });
    if (shape_.device_messages != nullptr)
      for (auto& transport : transports)
        transport = std::make_unique<LateTransport>(
            std::move(transport), make_device(shape_.device, 1, {}), *shape_.device_messages);
    std::vector<std::thread> threads;
    for (int r = 0; r < shape_.ranks; ++r)
      threads.emplace_back([&, r] { run_rank(*transports[static_cast<std::size_t>(r)]); });
    for (std::thread& thread : threads) thread.join();
    if (error_) std::rethrow_exception(error_);
    return std::move(outputs_);
  }

 private:
  void run_rank(Transport& transport) {
    try {
      const ModelSpec& spec = store_.manifest().spec;
      const int rank = transport.rank();
      const auto backend = make_device(shape_.device, shape_.threads, shape_.isa);
      Timeline timeline;
      DeviceWeights weights(store_, staging(rank), *backend, timeline);
      const auto processor = make_device("cpu", shape_.threads, shape_.isa);
      std::optional<StageRunner::CpuLayers> cpu;
      if (!shape_.cpu_layers.empty())
        cpu.emplace(StageRunner::CpuLayers{.backend = *processor,
                                           .weights = weights.host_source(),
                                           .packing = shape_.packing,
                                           .layers = shape_.cpu_layers});
      StageRunner runner(spec, *backend, weights.source(), timeline,
                         {.max_rows = shape_.micro_batch,
                          .head_rows = shape_.head_rows,
                          .packing = shape_.packing,
                          .kv_type = shape_.kv},
                         cpu);
      RankContext context{.spec = spec,
                          .plan = plan_,
                          .runner = runner,
                          .transport = transport,
                          .timeline = timeline,
                          .wire = WireType::kF32,
                          .device_messages = transport.device_messages(),
                          .waiting_on_device = 2,  // and others on the host
                          .in_passes = shape_.streamed_layers > 0,
                          .has_head = true,
                          .interrupted = nullptr,
                          .observe_logits = nullptr};
      context.observe_logits = [this](SequenceId id, std::int64_t position,
                                      std::span<const float> logits) {
        outputs_[static_cast<std::size_t>(id)].logits[position].assign(logits.begin(),
                                                                       logits.end());
      };
      if (rank == 0) {
        TextBatches batches = make_batches(spec);
        run_rank_zero(context, batches);
      } else {
        run_other_rank(context);
      }
      transport.finalize();
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  // The first layers of a rank stream, and then its ends do, too. Through a device with memory of
  // its own they pass from the host's, of which they are in memory and on disk by turns.
  StagingPlan staging(int rank) const {
    StagingPlan staging = all_in_memory({.layers = plan_.layers_of(rank),
                                         .embedding = rank == 0,
                                         .head = rank == plan_.last_rank()});
    for (StagedLayer& layer : staging.layers)
      layer.on_cpu = shape_.cpu_layers.contains(layer.layer);
    if (shape_.streamed_layers == 0) return staging;
    staging.share_slabs = false;
    staging.attention_slots = shape_.attention_slots;
    staging.mlp_slots = shape_.mlp_slots;
    for (std::size_t i = 0; i < staging.layers.size(); ++i)
      staging.layers[i].pinned =
          static_cast<int>(i) >= shape_.streamed_layers || staging.layers[i].on_cpu;
    if (shape_.device != "cpu") {
      staging.device = {
          .attention_slots = shape_.attention_slots, .mlp_slots = shape_.mlp_slots, .head = false};
      for (std::size_t i = 0; i < staging.layers.size(); ++i) {
        StagedLayer& layer = staging.layers[i];
        if (layer.on_cpu) continue;
        layer.on_device = layer.pinned;
        layer.pinned = layer.pinned || i % 2 == 1;
      }
    }
    for (Residence* end : {&staging.embedding, &staging.head})
      if (*end == Residence::kMemory) *end = Residence::kDisk;
    return staging;
  }

  TextBatches make_batches(const ModelSpec& spec) {
    std::vector<TextRequest> requests;
    for (std::size_t i = 0; i < requests_.size(); ++i)
      requests.push_back({.sequence = static_cast<SequenceId>(i),
                          .tokens = requests_[i].tokens,
                          .score = requests_[i].score,
                          .max_new_tokens = requests_[i].max_new_tokens,
                          .sampling = requests_[i].sampling});
    TextEvents events;
    events.token = [this](SequenceId id, std::int32_t token) {
      outputs_[static_cast<std::size_t>(id)].drawn.push_back(token);
      return true;
    };
    events.log_probs = [this](SequenceId id, std::int64_t, std::span<const double> values) {
      auto& all = outputs_[static_cast<std::size_t>(id)].log_probs;
      all.insert(all.end(), values.begin(), values.end());
    };
    const bool forget_kv = shape_.streamed_layers > 0 && requests_.size() == 1 &&
                           requests_.front().score && shape_.pass_tokens == 0;
    return TextBatches({shape_.micro_batch, shape_.ranks, shape_.max_active,
                        shape_.streamed_layers == 0 ? 0
                        : shape_.pass_tokens > 0    ? shape_.pass_tokens
                                                    : 4096},
                       spec.max_position_embeddings, std::move(requests), events,
                       {.window = 0, .forget_kv = forget_kv});
  }

  const LayerStore& store_;
  const PipelineShape& shape_;
  const std::vector<PipelineRequest>& requests_;
  StagePlan plan_;
  // Rank 0's thread writes what was drawn, the last rank's the logits: different members.
  std::vector<PipelineOutput> outputs_;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace

std::string test_device() {
  const char* const device = std::getenv("STAGECOACH_TEST_DEVICE");
  return device == nullptr ? "cpu" : device;
}

std::unique_ptr<Backend> make_device(const std::string& device, int threads,
                                     const std::string& isa) {
  if (device == "cuda") return make_cuda_backend({.device = 0, .threads = threads});
  return make_cpu_backend({.threads = threads, .isa = isa});
}

DeviceWeights::DeviceWeights(const LayerStore& store, StagingPlan plan, Backend& backend,
                             Timeline& timeline) {
  StagerOptions options;
  if (!backend.is_host()) {
    options.pin = [&backend](std::span<std::byte> memory) { return backend.pin(memory); };
    if (!plan.device.streams())
      for (StagedLayer& layer : plan.layers) layer.on_device = !layer.on_cpu;
  }
  host_.emplace(store, plan, options, timeline);
  if (!backend.is_host()) device_.emplace(*host_, store, plan, options, backend, timeline);
}

std::string PipelineShape::name() const {
  const char* const kv_name = kv == KvType::kF32 ? "f32" : kv == KvType::kF16 ? "f16" : "q8";
  return fmt::format(
      "{} ranks, {} threads, {} rounds, micro-batch {}, {} at once, kv {} {}{}{}{}", ranks, threads,
      rounds, micro_batch, max_active, kv_name, isa, windows,
      streamed_layers == 0
          ? ""
          : fmt::format(", {} layers streamed in passes of {} through {} + {} slots",
                        streamed_layers, pass_tokens, attention_slots, mlp_slots),
      cpu_layers.empty() ? "" : fmt::format(", processor {}", fmt::join(cpu_layers, " ")));
}

std::vector<PipelineOutput> run_pipeline(const LayerStore& store, const PipelineShape& shape,
                                         const std::vector<PipelineRequest>& requests) {
  return PipelineRun(store, shape, requests).run();
}

SamplingParams greedy_sampling() {
  SamplingParams params;
  params.greedy = true;
  return params;
}

}  // namespace stagecoach
