#include "plan/simulator.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "plan/scheduler.h"

namespace stagecoach {
namespace {

// A rank's disk and the ring of slots that it reads into: layers come in the order in which they
// are used, each as soon as the disk and a slot are free.
class Ring {
 public:
  Ring(int slots, double read_seconds)
      : released_(static_cast<std::size_t>(slots)), read_seconds_(read_seconds) {}

  // When the next layer is in memory.
  double ready() {
    disk_free_ = std::max(disk_free_, released_[next_]) + read_seconds_;
    reading_ += read_seconds_;
    return disk_free_;
  }
  // The head has come by in tiles, beside its use.
  double pass_head(double time, double read_seconds) {
    disk_free_ = std::max(disk_free_, time) + read_seconds;
    reading_ += read_seconds;
    return disk_free_;
  }
  // That layer is not needed any more.
  void release(double time) {
    released_[next_] = time;
    next_ = (next_ + 1) % released_.size();
  }
  double reading() const { return reading_; }

 private:
  std::vector<double> released_;  // by slot: when its last layer was done with
  const double read_seconds_;
  std::size_t next_ = 0;
  double disk_free_ = 0, reading_ = 0;
};

struct Rank {
  Ring ring;
  double free = 0;       // when it has done what came so far
  double link_free = 0;  // when its hidden states are on their way
  double computing = 0;  // seconds
  // Of its own, in ring order: the next layer of the pass, of all and of those not on_cpu.
  std::size_t layer = 0, planned = 0;
};

// A micro-batch on its way: when it is where it goes next.
struct Travelling {
  ScheduledBatch batch;
  std::int64_t rows = 0, wanted = 0;  // those whose logits are wanted
  double time = 0;
  std::size_t window = 0;  // where it goes; one beyond the last: back to rank 0
  bool on_cpu = false;     // its hidden state is a processor's, beside a GPU
};

class Simulator {
 public:
  Simulator(const PlanQuestion& question, const ClusterPlan& plan,
            const std::function<bool()>& interrupted)
      : question_(question),
        plan_(plan),
        interrupted_(interrupted),
        costs_(question),
        scheduler_({.micro_batch_tokens = question.micro_batch,
                    .depth = plan.stages.ranks,
                    .max_active = static_cast<int>(question.sequences),
                    .pass_tokens = plan.in_passes ? question.largest_pass() : 0}),
        sequences_(static_cast<std::size_t>(question.sequences)) {
    for (const HostPlan& host : plan.hosts) {
      const Residency& ring = host.device ? *host.device : host.residency;
      const int slots = (ring.attention_slots + ring.mlp_slots) / 2;
      ranks_.push_back({Ring(std::max(1, slots), read_seconds(host))});
    }
    for (std::int64_t i = 0; i < question.sequences; ++i)
      scheduler_.submit(i, question.prompt_tokens, true);
  }

  Simulation run() {
    if (plan_.in_passes) {
      while (!scheduler_.idle()) run_pass();
    } else {
      run_in_memory();
    }
    return result();
  }

 private:
  // What the scheduler lets in now.
  std::vector<Travelling> enter() {
    std::vector<Travelling> entered;
    while (auto batch = scheduler_.next()) {
      Travelling one{.batch = *std::move(batch), .time = now_};
      for (const ScheduledRun& run : one.batch.runs) {
        one.rows += run.count;
        one.wanted += run.last_of_prompt ? 1 : 0;
      }
      entered.push_back(std::move(one));
    }
    micro_batches_ += static_cast<std::int64_t>(entered.size());
    return entered;
  }

  // A pass: each rank works on one window after another, all micro-batches on one layer after
  // another. Of a window of several layers none begins before all have come, nor leaves before all
  // are done.
  // Of a layer that streams. To a device layers come from the host's memory and from disk by turns,
  // over the bus while the next one is read.
  double read_seconds(const HostPlan& host) const {
    const double disk = costs_.layer_read_seconds(host.host);
    if (!host.device) return disk;
    const double bus = costs_.layer_copy_seconds(host.host);
    const auto passing = static_cast<double>(host.residency.pinned.size());
    const double from_disk =
        passing - static_cast<double>(host.layers_in_memory() - host.layers_on_cpu());
    return passing == 0 ? bus : std::max(bus, disk * from_disk / passing);
  }

  void run_pass() {
    std::vector<Travelling> pass = enter();
    STAGECOACH_CHECK(!pass.empty());
    for (Rank& rank : ranks_) rank.layer = rank.planned = 0;
    for (const Window& window : plan_.stages.windows) {
      Rank& rank = rank_of(window);
      const bool gathers = pass.size() > 1 && window.end - window.begin > 1;
      if (gathers)
        for (Travelling& one : pass) one.time = pass.back().time;
      for (std::int64_t layer = window.begin; layer < window.end; ++layer) {
        const HostPlan& host = host_of(window);
        const bool on_cpu = !host.on_cpu.empty() && host.on_cpu[rank.layer++];
        const bool streams =
            !on_cpu && !(host.device ? *host.device : host.residency).pinned[rank.planned++];
        const double ready = streams ? rank.ring.ready() : 0;
        for (Travelling& one : pass) run_layer(window, one, ready, on_cpu);
        if (streams) rank.ring.release(rank.free);
      }
      if (gathers)
        for (Travelling& one : pass) one.time = rank.free;
      for (Travelling& one : pass) leave(one);
    }
    for (const Travelling& one : pass) come_back(one);
  }

  // Micro-batches are served as they come.
  void run_in_memory() {
    const auto later = [](const Travelling& a, const Travelling& b) {
      return a.time != b.time ? a.time > b.time : a.batch.number > b.batch.number;
    };
    std::vector<Travelling> heap = enter();
    const auto push = [&](Travelling one) {
      heap.push_back(std::move(one));
      std::push_heap(heap.begin(), heap.end(), later);
    };
    std::make_heap(heap.begin(), heap.end(), later);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), later);
      Travelling one = std::move(heap.back());
      heap.pop_back();
      if (one.window == plan_.stages.windows.size()) {
        come_back(one);
        for (Travelling& next : enter()) push(std::move(next));
        continue;
      }
      const Window& window = plan_.stages.windows[one.window];
      const std::vector<bool>& on_cpu = host_of(window).on_cpu;
      for (std::int64_t layer = window.begin; layer < window.end; ++layer)
        run_layer(window, one, 0,
                  !on_cpu.empty() && on_cpu[static_cast<std::size_t>(layer - window.begin)]);
      leave(one);
      push(std::move(one));
    }
  }

  Rank& rank_of(const Window& window) { return ranks_[static_cast<std::size_t>(window.rank)]; }
  const HostPlan& host_of(const Window& window) const {
    return plan_.hosts[static_cast<std::size_t>(window.rank)];
  }

  // Hidden states cross where the rank's other side had the layer before.
  void run_layer(const Window& window, Travelling& one, double ready, bool on_cpu) {
    const std::size_t host = host_of(window).host;
    const CostModel::LayerRows rows =
        one.batch.decode ? costs_.step_rows(one.rows) : costs_.prompt_rows(one.rows);
    const Work work = on_cpu ? costs_.cpu_layer(host, rows, host_of(window).device->streamed > 0)
                             : costs_.layer(host, rows);
    const bool crosses = std::exchange(one.on_cpu, on_cpu) != on_cpu;
    compute(window, one, ready, work.seconds + (crosses ? costs_.crossing(host, one.rows) : 0));
  }
  void compute(const Window& window, Travelling& one, double ready, double seconds) {
    Rank& rank = rank_of(window);
    one.time = rank.free = std::max({rank.free, one.time, ready}) + seconds;
    rank.computing += seconds;
  }

  void leave(Travelling& one) {
    const Window& window = plan_.stages.windows[one.window++];
    one.on_cpu = false;  // it leaves from the host's memory, and is there already
    const bool last = one.window == plan_.stages.windows.size();
    if (last && one.wanted > 0) {
      const HostPlan& host = host_of(window);
      const double from_disk =
          host.residency.head_in_memory || (host.device && host.device->head_in_memory)
              ? 0
              : rank_of(window).ring.pass_head(one.time,
                                               costs_.head_read_seconds(host.host, one.wanted));
      compute(window, one, from_disk, costs_.head(host.host, one.wanted, plan_.in_passes).seconds);
    }
    if (plan_.stages.ranks == 1) return;
    double& link_free = rank_of(window).link_free;
    link_free = std::max(link_free, one.time) + costs_.transfer(last ? 0 : one.rows);
    one.time = link_free + question_.cluster.network.latency;
  }

  void come_back(const Travelling& one) {
    if (interrupted_()) throw Error(ErrorKind::kInterrupted, "interrupted");
    now_ = std::max(now_, one.time);
    for (const ScheduledRun& run : one.batch.runs) {
      if (!run.last_of_prompt) continue;
      Sequence& sequence = sequences_[static_cast<std::size_t>(run.sequence)];
      if (++sequence.tokens == 1) sequence.first = first_tokens_ = now_;
      sequence.last = now_;
      drawn_.push_back(now_);
      if (sequence.tokens >= question_.new_tokens) scheduler_.finish(run.sequence);
    }
    scheduler_.returned(one.batch.number);
  }

  Simulation result() const {
    Simulation simulation;
    simulation.time_to_first_token = first_tokens_;
    simulation.seconds = now_;
    simulation.micro_batches = micro_batches_;
    if (question_.new_tokens > 1) {
      for (const Sequence& sequence : sequences_)
        simulation.step_seconds += (sequence.last - sequence.first) /
                                   static_cast<double>(question_.new_tokens - 1) /
                                   static_cast<double>(sequences_.size());
      const auto after =
          drawn_.end() - std::upper_bound(drawn_.begin(), drawn_.end(), first_tokens_);
      if (after > 0)
        simulation.tokens_per_second = static_cast<double>(after) / (now_ - first_tokens_);
    }
    for (const Rank& rank : ranks_)
      simulation.hosts.push_back({rank.computing / now_, rank.ring.reading() / now_});
    return simulation;
  }

  struct Sequence {
    std::int64_t tokens = 0;
    double first = 0, last = 0;  // when they were drawn
  };

  const PlanQuestion& question_;
  const ClusterPlan& plan_;
  const std::function<bool()>& interrupted_;
  const CostModel costs_;
  Scheduler scheduler_;
  std::vector<Rank> ranks_;
  std::vector<Sequence> sequences_;
  std::vector<double> drawn_;  // when each token was, ascending
  std::int64_t micro_batches_ = 0;
  double now_ = 0, first_tokens_ = 0;
};

}  // namespace

Simulation simulate(const PlanQuestion& question, const ClusterPlan& plan,
                    const std::function<bool()>& interrupted) {
  return Simulator(question, plan, interrupted).run();
}

}  // namespace stagecoach
