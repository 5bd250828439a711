#include "pipeline/rank_loop.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::chrono::milliseconds kPoll{100};  // how often a waiting rank looks at `interrupted`
// For sends that the next rank has had, all but MPI's word that it has them.
constexpr std::chrono::seconds kLastSendLimit{10};

// A message, and the time that this rank has stood waiting for it.
struct Arrival {
  std::vector<std::byte> payload;
  DeviceBytes device_rows{};  // the hidden state, where it has come to the device
  std::int64_t asked_ns = 0, came_ns = 0;
  std::size_t bytes() const { return payload.size() + device_rows.size; }
};

// Every message leaves a span, one that was there already a short one: the label and the bytes tie
// it to the span of its sending.
void record_arrival(Timeline& timeline, const Arrival& arrival, const BatchLabel& label) {
  timeline.record({.kind = SpanKind::kIdle,
                   .phase = label.phase,
                   .micro_batch = label.micro_batch,
                   .pass = label.pass,
                   .bytes = static_cast<std::int64_t>(arrival.bytes()),
                   .begin_ns = arrival.asked_ns,
                   .end_ns = arrival.came_ns});
}

class Worker {
 public:
  explicit Worker(const RankContext& context)
      : c_(context),
        waiting_rows_(c_.runner.make_waiting_rows(c_.waiting_on_device)),
        rows_(c_.runner.make_host_rows(c_.runner.max_rows())) {
    for (std::size_t w = 0; w < c_.plan.windows.size(); ++w)
      if (c_.plan.windows[w].rank == c_.transport.rank())
        last_window_ = static_cast<std::int32_t>(w);
    for (const auto& [begin, end] : c_.plan.layers_of(c_.transport.rank()))
      c_.runner.add_layers(begin, end);
    if (c_.device_messages == nullptr) return;
    STAGECOACH_CHECK(c_.wire == WireType::kF32);
    device_rows_ = c_.runner.make_device_rows(kDeviceRows);
    STAGECOACH_CHECK(device_rows_ != nullptr);
    c_.device_messages->lend(
        {.use_device = [rows = device_rows_.get()] { rows->use_device(); },
         .take = [rows = device_rows_.get()](std::size_t bytes) { return rows->take(bytes); }});
  }
  ~Worker() {
    if (device_rows_ != nullptr) c_.device_messages->lend({});
    try {
      c_.runner.host_rows_are_free();  // after an error ops may still be about to read ours
    } catch (const Error&) {           // a device that has failed reads nothing any more
    }
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // A micro-batch that enters the ring here.
  void enter(MicroBatch batch, BatchSource& source) {
    const std::int64_t rows = total_rows(batch.runs);
    make_room(rows);
    if (rows > 0 && !goes_on(batch)) {
      if (source.fill_hidden(batch, hidden_)) {
        c_.runner.set_hidden(hidden_);
      } else {
        c_.runner.embed(batch.runs, batch.label);
      }
    }
    arrive(std::move(batch));
  }

  // A micro-batch that another rank (or this one, a round earlier) has sent.
  void receive(Arrival arrival) {
    c_.runner.host_rows_are_free();
    MicroBatch batch =
        decode_micro_batch(arrival.payload, c_.spec.hidden_size, hidden_, arrival.device_rows.size);
    if (!batch.runs.empty()) record_arrival(c_.timeline, arrival, batch.label);
    if (batch.window <= 0 || batch.window >= windows() ||
        window_of(batch).rank != c_.transport.rank())
      throw data_error(fmt::format("micro-batch for window {} arrived at rank {}", batch.window,
                                   c_.transport.rank()));
    check_against_model(batch.runs);
    if (const DeviceBytes rows = std::exchange(arrival.device_rows, {}); rows.size > 0) {
      c_.runner.set_device_hidden(rows.data, rows.size);
      if (keeps(batch)) {
        hidden_.resize(rows.size / sizeof(float));
        c_.runner.get_hidden(hidden_);
        keep(window_of(batch).begin, batch);
      }
    } else if (!hidden_.empty()) {
      keep(window_of(batch).begin, batch);
      c_.runner.set_hidden(hidden_);
    }
    arrive(std::move(batch));
  }

  bool finished() const { return finished_; }
  // Before the end: memory of the device may be on its way out of it.
  void finish() {
    if (device_rows_ != nullptr) c_.transport.flush(Clock::now() + kLastSendLimit);
  }

 private:
  // Sampler, head and KV cache index by what stands here.
  void check_against_model(const std::vector<TokenRun>& runs) const {
    const auto known = [&](TokenId id) { return id < c_.spec.vocab_size; };
    for (const TokenRun& run : runs) {
      if (run.position + run.count() > c_.spec.max_position_embeddings ||
          !std::all_of(run.ids.begin(), run.ids.end(), known) ||
          !std::all_of(run.targets.begin(), run.targets.end(), known))
        throw data_error(
            fmt::format("micro-batch: sequence {} at position {} does not fit the model",
                        run.sequence, run.position));
    }
  }

  std::int32_t windows() const { return static_cast<std::int32_t>(c_.plan.windows.size()); }
  const Window& window_of(const MicroBatch& batch) const {
    return c_.plan.windows[static_cast<std::size_t>(batch.window)];
  }

  // The hidden state of `batch`, if it carries one, is in the runner.
  void arrive(MicroBatch batch) {
    if (batch.window == first_window()) apply(batch.controls);
    finished_ = batch.last && batch.window == last_window_;
    if (batch.runs.empty()) return pass_through(std::move(batch));
    if (batch.window < batch.pass.resume) {
      restore_window(batch);
      return leave(std::move(batch));
    }
    if (goes_on(batch) && batch.window == batch.pass.resume) restore(batch);
    const Window& window = window_of(batch);
    const std::int64_t begin = first_layer(batch);
    const bool alone = batch.pass.row == 0 && batch.pass.last;
    if (batch.pass.rows > 0 && !alone && window.end - begin > 1) return gather(std::move(batch));
    // Keys that nobody reads again make room for the next layer's.
    const std::int64_t step = batch.pass.forget_kv ? 1 : window.end - begin;
    const NextUse next = batch.pass.last ? NextUse::kNextPass : NextUse::kThisPass;
    for (std::int64_t layer = begin; layer < window.end; layer += step) {
      c_.runner.run_layers(layer, layer + step, batch.runs, batch.label, next);
      after_layers(layer, layer + step, batch);
    }
    leave(std::move(batch));
  }

  // Nothing to compute: controls, or the end of the job.
  void pass_through(MicroBatch batch) {
    if (batch.window + 1 < windows()) {
      make_room(0);
      pass_on(std::move(batch), {});
    } else if (!batch.last) {
      answer(batch);
    }
  }

  // In a pass of several micro-batches a window of several layers would be streamed once for each.
  // They wait for each other instead, and all go through a layer before the next one is read.
  void gather(MicroBatch batch) {
    const bool complete = batch.pass.last;
    Gathered& last = gathered_.emplace_back(begin_to_wait(std::move(batch)));
    set_aside(last);
    if (!complete) return;
    const Window& window = window_of(last.batch);
    for (std::int64_t layer = first_layer(last.batch); layer < window.end; ++layer)
      for (Gathered& one : gathered_) {
        const NextUse next = one.batch.pass.last ? NextUse::kNextPass : NextUse::kThisPass;
        take_up(one);
        c_.runner.run_layers(layer, layer + 1, one.batch.runs, one.batch.label, next);
        set_aside(one);
        after_layers(layer, layer + 1, one.batch);
      }
    // They stay till all have left: where leaving fails, a device may still be about to read them.
    for (Gathered& one : gathered_) {
      take_up(one);
      leave(std::move(one.batch));
      if (one.hidden.lock != nullptr) spare_.push_back(std::move(one.hidden));
    }
    gathered_.clear();
  }

  struct Gathered {
    MicroBatch batch;
    std::shared_ptr<std::byte> on_device;  // null: in `hidden`
    StageRunner::HostRows hidden;
  };
  Gathered begin_to_wait(MicroBatch batch) {
    const std::int64_t rows = total_rows(batch.runs);
    Gathered one{std::move(batch), nullptr, {}};
    if (waiting_rows_ != nullptr)
      one.on_device =
          waiting_rows_->take(static_cast<std::size_t>(StageRunner::waiting_bytes(c_.spec, rows)));
    if (one.on_device == nullptr) {
      one.hidden = take_rows(rows);
      one.hidden.values.resize(static_cast<std::size_t>(rows * c_.spec.hidden_size));
    }
    return one;
  }
  void set_aside(Gathered& one) {
    if (one.on_device != nullptr)
      c_.runner.set_aside(one.on_device.get(), one.batch.runs);
    else
      c_.runner.get_hidden(one.hidden.values);
  }
  void take_up(const Gathered& one) {
    if (one.on_device != nullptr)
      c_.runner.take_up(one.on_device.get(), one.batch.runs);
    else
      c_.runner.set_hidden(one.hidden.values);
  }

  // For hidden states that wait here.
  StageRunner::HostRows take_rows(std::int64_t rows) {
    c_.runner.host_rows_are_free();  // resizing writes
    StageRunner::HostRows taken;
    if (!spare_.empty()) {
      taken = std::move(spare_.back());
      spare_.pop_back();
    }
    // Too small a one goes: all of them together have the rows of a pass.
    if (taken.values.capacity() < static_cast<std::size_t>(rows * c_.spec.hidden_size)) {
      taken = {};
      taken = c_.runner.make_host_rows(rows);
    }
    return taken;
  }
  // In hidden_, to be written.
  void make_room(std::int64_t rows) {
    c_.runner.host_rows_are_free();
    hidden_.resize(static_cast<std::size_t>(rows * c_.spec.hidden_size));
  }

  // What becomes of the keys and values that a micro-batch has left in layers [begin, end).
  void after_layers(std::int64_t begin, std::int64_t end, const MicroBatch& batch) {
    if (batch.pass.rows == 0) return;
    if (keeps(batch) && !batch.pass.forget_kv)
      for (std::int64_t layer = begin; layer < end; ++layer)
        c_.checkpoint->keep_kv(layer, batch, c_.runner.kv(layer));
    if (batch.pass.last && batch.pass.forget_kv)
      for (std::int64_t layer = begin; layer < end; ++layer) c_.runner.kv(layer).drop_layer(layer);
  }

  bool keeps(const MicroBatch& batch) const { return c_.checkpoint != nullptr && batch.pass.keep; }
  // Of the pass that a run before has begun.
  bool goes_on(const MicroBatch& batch) const { return keeps(batch) && c_.resume_layers > 0; }
  // Of the window; where the pass goes on, of what is left of it: that run may have had others.
  std::int64_t first_layer(const MicroBatch& batch) const {
    const std::int64_t begin = window_of(batch).begin;
    return goes_on(batch) ? std::max(begin, c_.resume_layers) : begin;
  }
  // hidden_ is what the first `layers` have made of the batch.
  void keep(std::int64_t layers, const MicroBatch& batch) {
    if (keeps(batch)) c_.checkpoint->keep_hidden(layers, batch, hidden_);
  }
  void restore(const MicroBatch& batch) {
    STAGECOACH_CHECK(keeps(batch));
    make_room(total_rows(batch.runs));
    c_.checkpoint->restore_hidden(c_.resume_layers, batch, hidden_);
    c_.runner.set_hidden(hidden_);
  }
  // Of a window that a run before has finished: its keys and values, and after the last window the
  // hidden state for the head.
  void restore_window(const MicroBatch& batch) {
    STAGECOACH_CHECK(keeps(batch));
    const Window& window = window_of(batch);
    if (!batch.pass.forget_kv)
      for (std::int64_t layer = window.begin; layer < window.end; ++layer)
        c_.checkpoint->restore_kv(layer, batch, c_.runner.kv(layer));
    if (batch.window + 1 == windows()) restore(batch);
  }

  // After its window: the hidden state is in the runner.
  void leave(MicroBatch batch) {
    if (batch.window + 1 < windows()) {
      const bool carries = batch.window + 1 > batch.pass.resume || batch.pass.resume == 0;
      if (DeviceBytes rows = carries ? device_rows_for(batch) : DeviceBytes{}; rows.size > 0) {
        c_.runner.get_device_hidden(rows.data.get(), rows.size);
        const Span span = send_span(batch);
        return pass_on(std::move(batch), span, std::move(rows));
      }
      make_room(carries ? total_rows(batch.runs) : 0);
      if (carries) c_.runner.get_hidden(hidden_);
      const Span span = send_span(batch);
      return pass_on(std::move(batch), span);
    }
    if (keeps(batch) && batch.window >= batch.pass.resume) {
      make_room(total_rows(batch.runs));
      c_.runner.get_hidden(hidden_);
      keep(window_of(batch).end, batch);
    }
    answer(batch);
  }

  std::int32_t first_window() const { return c_.transport.rank(); }

  void apply(const std::vector<Control>& controls) {
    const bool samples = c_.transport.rank() == c_.plan.last_rank();
    for (const Control& control : controls) {
      if (control.kind == Control::Kind::kDrop) {
        c_.runner.drop(control.sequence);
        sampler_.drop(control.sequence);
      } else if (samples) {
        sampler_.admit(control.sequence, control.sampling, control.prompt_length);
      }
    }
  }

  // For the hidden state of `batch` on its way to another rank; nothing: it goes through the host.
  DeviceBytes device_rows_for(const MicroBatch& batch) {
    const int to = c_.plan.windows[static_cast<std::size_t>(batch.window) + 1].rank;
    if (device_rows_ == nullptr || to == c_.transport.rank() || !c_.runner.hidden_on_device())
      return {};
    const std::size_t bytes =
        static_cast<std::size_t>(total_rows(batch.runs) * c_.spec.hidden_size) * sizeof(float);
    auto rows = device_rows_->take(bytes);
    if (rows == nullptr) return {};
    return {std::move(rows), bytes};
  }

  // To the next window, with `device_rows` or hidden_. `span` counts only where there are rows.
  void pass_on(MicroBatch batch, Span span, DeviceBytes device_rows = {}) {
    ++batch.window;
    const bool timed = !batch.runs.empty();
    const bool on_device = device_rows.size > 0;
    std::vector<std::byte> payload =
        on_device ? encode_description(batch, c_.spec.hidden_size, c_.wire)
                  : encode_micro_batch(batch, hidden_, c_.spec.hidden_size, c_.wire);
    span.bytes = static_cast<std::int64_t>(payload.size() + device_rows.size);
    const int to = window_of(batch).rank;
    if (on_device)
      c_.device_messages->send_from_device(to, Channel::kData, std::move(payload),
                                           std::move(device_rows));
    else
      c_.transport.send(to, Channel::kData, std::move(payload));
    span.end_ns = now_ns();
    if (timed) c_.timeline.record(span);
  }

  // Of a message that begins to be made now.
  static Span send_span(const MicroBatch& batch) {
    return {.kind = SpanKind::kSend,
            .phase = batch.label.phase,
            .micro_batch = batch.label.micro_batch,
            .pass = batch.label.pass,
            .tokens = total_rows(batch.runs),
            .begin_ns = now_ns()};
  }

  // The last window's rank: logits, samples, probabilities.
  void answer(const MicroBatch& batch) {
    BatchResult result;
    result.micro_batch = batch.label.micro_batch;
    for (const TokenRun& run : batch.runs) {
      sampler_.observe(run.sequence, run.ids);
      if (!run.targets.empty()) result.log_probs.push_back({run.sequence, run.position, {}});
    }
    if (c_.has_head) {
      c_.runner.run_head(batch.runs, batch.label,
                         [&](const TokenRun& run, std::int64_t row, std::span<float> logits) {
                           use_logits(run, row, logits, batch.label, result);
                         });
    }
    c_.runner.finish();
    Span span = send_span(batch);
    std::vector<std::byte> payload = encode_result(result);
    span.bytes = static_cast<std::int64_t>(payload.size());
    c_.transport.send(0, Channel::kData, std::move(payload));
    span.end_ns = now_ns();
    c_.timeline.record(span);
  }

  void use_logits(const TokenRun& run, std::int64_t row, std::span<float> logits,
                  const BatchLabel& label, BatchResult& result) {
    if (c_.observe_logits) c_.observe_logits(run.sequence, run.position + row, logits);
    ScopedSpan timed(c_.timeline, {.kind = SpanKind::kSample,
                                   .phase = label.phase,
                                   .micro_batch = label.micro_batch,
                                   .pass = label.pass,
                                   .tokens = 1});
    if (!run.targets.empty() && run.targets[static_cast<std::size_t>(row)] >= 0) {
      for (BatchResult::LogProbs& values : result.log_probs)
        if (values.sequence == run.sequence && values.position == run.position)
          values.values.push_back(
              log_probability(logits, run.targets[static_cast<std::size_t>(row)]));
    }
    if (run.sample && row + 1 == run.count()) {
      const TokenId id = sampler_.sample(run.sequence, run.position + run.count(), logits);
      result.tokens.push_back({run.sequence, id});
    }
  }

  const RankContext& c_;
  Sampler sampler_;
  std::unique_ptr<DeviceRows> waiting_rows_;  // null: batches wait in the host's memory
  std::vector<Gathered> gathered_;            // of one pass and window, in order
  std::vector<StageRunner::HostRows> spare_;
  std::unique_ptr<DeviceRows> device_rows_;  // null: messages are in the host's memory
  StageRunner::HostRows rows_;
  PageFloats& hidden_ = rows_.values;  // host copy on its way in or out
  std::int32_t last_window_ = 0;
  bool finished_ = false;
};

void stop_if_interrupted(const RankContext& c) {
  if (c.interrupted != nullptr && c.interrupted->load())
    throw Error(ErrorKind::kInterrupted, "interrupted");
}

// The message that is here already, if any.
std::optional<Arrival> look_for_message(const RankContext& c) {
  const std::int64_t asked_ns = now_ns();
  auto message = c.transport.receive(Channel::kData, Clock::now());
  if (!message) return std::nullopt;
  return Arrival{std::move(message->payload), std::move(message->device_end), asked_ns, now_ns()};
}

// The next message, however long it takes.
Arrival wait_for_message(const RankContext& c) {
  const std::int64_t asked_ns = now_ns();
  while (true) {
    stop_if_interrupted(c);
    if (auto message = c.transport.receive(Channel::kData, Clock::now() + kPoll))
      return {std::move(message->payload), std::move(message->device_end), asked_ns, now_ns()};
  }
}

}  // namespace

void run_rank_zero(const RankContext& c, BatchSource& source) {
  Worker worker(c);
  const auto handle = [&](Arrival arrival) {
    if (is_micro_batch(arrival.payload)) {
      worker.receive(std::move(arrival));
    } else {
      const BatchResult result = decode_result(arrival.payload);
      record_arrival(c.timeline, arrival, {.micro_batch = result.micro_batch});
      source.returned(result);
    }
  };
  while (!source.done()) {
    stop_if_interrupted(c);
    // What is under way goes before what is new: it empties the ring. In passes it is the other way
    // round: all micro-batches meet a layer before the next one is read.
    if (c.in_passes) {
      if (auto batch = source.next()) {
        worker.enter(*std::move(batch), source);
      } else {
        handle(wait_for_message(c));
      }
    } else if (auto arrival = look_for_message(c)) {
      handle(*std::move(arrival));
    } else if (auto batch = source.next()) {
      worker.enter(*std::move(batch), source);
    } else {
      handle(wait_for_message(c));
    }
  }
  MicroBatch goodbye;
  goodbye.last = true;
  worker.enter(std::move(goodbye), source);
  while (!worker.finished()) handle(wait_for_message(c));
  worker.finish();
}

void run_other_rank(const RankContext& c) {
  Worker worker(c);
  while (!worker.finished()) worker.receive(wait_for_message(c));
  worker.finish();
}

}  // namespace stagecoach
