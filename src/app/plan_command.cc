// plan: what a cluster that is only described would make of a store.
#include <algorithm>
#include <memory>

#include "app/command.h"
#include "app/output.h"
#include "app/plan_inputs.h"
#include "app/settings.h"
#include "app/signals.h"
#include "base/byte_size.h"
#include "base/dtype_names.h"
#include "base/error.h"
#include "launcher/processes.h"
#include "plan/planner.h"
#include "plan/simulator.h"
#include "store/layer_store.h"

namespace stagecoach {
namespace {

struct PlanFlags {
  RunSettings run;  // of the run that is planned
  std::string cluster;
  std::int64_t tokens = 512, new_tokens = 128, sequences = 1;
  bool explain = false, simulate = false;
};

class PlanRun {
 public:
  explicit PlanRun(const PlanFlags& flags)
      : flags_(flags), inputs_(read_manifest(flags.run.store), work_of(flags)) {
    const std::int64_t positions = flags.tokens + flags.new_tokens;
    if (positions > spec().max_position_embeddings)
      throw usage_error(
          fmt::format("--tokens {} and --new-tokens {} need {} positions, the model's context "
                      "is {}",
                      flags.tokens, flags.new_tokens, positions, spec().max_position_embeddings),
          fmt::format("--tokens and --new-tokens of {} together at most",
                      spec().max_position_embeddings));
  }

  void print_plan() {
    ClusterSpec cluster = read_cluster(flags_.cluster, "the cluster file", "--cluster");
    complete(cluster);
    const PlanQuestion question = inputs_.question(std::move(cluster));
    const ClusterPlan plan = plan_cluster(question);
    const std::vector<Change> changes = what_would_change(question, plan);
    std::optional<Simulation> simulation;
    if (flags_.simulate)
      simulation = simulate(question, plan, [] { return interrupt_requested.load(); });
    if (flags_.run.json) {
      Json json = as_json(question, plan, changes);
      if (simulation) json["simulation"] = as_json(*simulation);
      print_json_line(json);
    } else {
      print(as_text(question, plan, changes));
      if (simulation) print(as_text(question, plan, *simulation));
      print("\n" + command(question, plan) + "\n");
    }
  }

 private:
  // Another cluster, and the tokens a second that it would give.
  struct Change {
    std::string what;
    double tokens_per_second;
  };

  static PlannedWork work_of(const PlanFlags& flags) {
    return {.tokens = flags.tokens,
            .new_tokens = flags.new_tokens,
            .sequences = flags.sequences,
            .micro_batch = flags.run.micro_batch,
            .kv_type = flags.run.kv_type(),
            .activations = flags.run.activations,
            .cpu_layers = parse_cpu_layers(flags.run.cpu_layers)};
  }
  const Manifest& manifest() const { return inputs_.manifest(); }
  const ModelSpec& spec() const { return manifest().spec; }

  // Nothing is guessed: what neither the file nor `probe` says is an error.
  void complete(ClusterSpec& cluster) {
    if (cluster.hosts.empty())
      throw usage_error(
          fmt::format("{}: there is no [nodes.NAME], no host to plan for", flags_.cluster),
          "see configs/clusters/four-pcs.toml");
    const std::optional<HostRates> here = rates_of_this_machine(flags_.run.store);
    for (HostSpec& host : cluster.hosts) {
      if (host.memory == 0)
        throw usage_error(fmt::format("{}: nodes.{}.memory is missing", flags_.cluster, host.name),
                          "memory = \"8GiB\": what a rank there may take");
      const bool like_this = host.on_device() && !host.device.complete();
      if (like_this) host.device = host.device.or_else(device_rates_of_this_machine());
      check_device_rates(fmt::format("{}: nodes.{} has device_memory", flags_.cluster, host.name),
                         host);
      if (host.rates.complete()) {
        if (like_this) like_this_.push_back(host.name);
        continue;
      }
      if (here) host.rates = host.rates.or_else(*here);
      if (!host.rates.complete())
        throw usage_error(
            fmt::format(
                "{}: nodes.{} does not say how fast it is (memory_gb_per_s, f32_gflop_per_s, "
                "bf16_gflop_per_s, int8_gop_per_s, disk_gb_per_s), and this machine, which "
                "could stand for it, has not been probed",
                flags_.cluster, host.name),
            fmt::format("stagecoach probe --store {}, here or on {} with --json for the figures",
                        flags_.run.store, host.name));
      like_this_.push_back(host.name);
    }
    check_cpu_layers(cluster);
  }
  // A run would refuse them.
  void check_cpu_layers(const ClusterSpec& cluster) const {
    const std::int64_t wanted = parse_cpu_layers(flags_.run.cpu_layers).value_or(0);
    if (wanted > 0 && std::ranges::none_of(cluster.hosts, &HostSpec::on_device))
      throw usage_error(
          fmt::format("--cpu-layers {} needs a GPU for the other layers: no host of {} has one",
                      wanted, flags_.cluster),
          "device_memory in [nodes.NAME], or --cpu-layers auto");
  }

  static std::vector<Change> what_would_change(const PlanQuestion& question,
                                               const ClusterPlan& plan) {
    std::vector<Change> changes;
    const auto consider = [&](const std::string& what, ClusterSpec cluster) {
      PlanQuestion other = question;
      other.cluster = std::move(cluster);
      try {
        changes.push_back({what, plan_cluster(other).tokens_per_second});
      } catch (const Error&) {  // does not help
      }
    };
    const HostSpec& bound = question.cluster.hosts[plan.bound_host];
    ClusterSpec more = question.cluster;
    more.hosts.push_back(bound);
    consider(fmt::format("one more PC like {}", bound.name), std::move(more));
    if (plan.in_passes) {
      ClusterSpec faster = question.cluster;
      for (HostSpec& host : faster.hosts) host.rates.disk *= 2;
      consider("disks twice as fast", std::move(faster));
      ClusterSpec roomier = question.cluster;
      for (HostSpec& host : roomier.hosts) host.device_memory *= 2;
      if (roomier.hosts[plan.bound_host].on_device())
        consider("GPUs with twice the memory", std::move(roomier));
    }
    return changes;
  }

  std::string explanation(const PlanQuestion& question, const ClusterPlan& plan,
                          const HostPlan& host) const;
  Json as_json(const PlanQuestion& question, const ClusterPlan& plan,
               const std::vector<Change>& changes) const;
  std::string as_text(const PlanQuestion& question, const ClusterPlan& plan,
                      const std::vector<Change>& changes) const;
  static Json as_json(const Simulation& simulation);
  static std::string as_text(const PlanQuestion& question, const ClusterPlan& plan,
                             const Simulation& simulation);
  std::string command(const PlanQuestion& question, const ClusterPlan& plan) const;

  const PlanFlags& flags_;
  const PlanInputs inputs_;
  std::vector<std::string> like_this_;  // hosts whose rates this machine stands for
};

Bound bound_of(const HostPlan& host) {
  return host.wait_seconds() > host.step_seconds ? host.wait_bound() : host.step_bound;
}

// Why it has as many layers as it has.
std::string PlanRun::explanation(const PlanQuestion& question, const ClusterPlan& plan,
                                 const HostPlan& host) const {
  const HostSpec& spec = question.cluster.hosts[host.host];
  const std::string on_cpu =
      host.layers_on_cpu() > 0
          ? fmt::format(", {} of which the processor computes", host.layers_on_cpu())
          : "";
  const std::string limit =
      host.device && host.device->streamed > 0
          ? fmt::format(
                "its GPU holds {} of them, {} are in the host's memory{}; the bus takes {:.3g} s a "
                "step for what passes through, the disk {:.3g} s",
                host.layers_on_device(), host.layers_in_memory(), on_cpu, host.bus_seconds,
                host.disk_seconds)
      : host.layers_on_cpu() > 0
          ? fmt::format("its GPU holds {} of them, {} are in the host's memory{}",
                        host.layers_on_device(), host.layers_in_memory(), on_cpu)
      : host.residency.streamed > 0
          ? fmt::format(
                "its memory holds {} of them, and its disk takes {:.3g} s a step for the rest",
                host.layers_in_memory(), host.disk_seconds)
      : host.full
          ? std::string(host.device ? "its GPU's memory is full" : "its memory is full")
          : fmt::format("it has room for more; with {} of a step's computing it is bound by {}",
                        plan.step_seconds > 0
                            ? fmt::format("{:.0f} %", 100 * host.step_seconds / plan.step_seconds)
                            : "all",
                        bound_name(bound_of(host)));
  return fmt::format("{}: {} layers: {}", spec.name, host.layers, limit);
}

std::string PlanRun::command(const PlanQuestion& question, const ClusterPlan& plan) const {
  std::string hosts;
  for (const HostPlan& host : plan.hosts)
    hosts += (hosts.empty() ? "" : ",") + question.cluster.hosts[host.host].reached_as();
  const bool on_device =
      std::ranges::any_of(plan.hosts, [](const HostPlan& host) { return host.device.has_value(); });
  return fmt::format(
      "mpirun --oversubscribe --bind-to none --host {} \\\n  stagecoach generate --store {} "
      "--windows {} --micro-batch {} --kv {} --activations {}{} --job {}",
      shell_word(hosts), shell_word(flags_.run.store), windows_flag(plan.stages),
      question.micro_batch, flags_.run.kv, flags_.run.activations,
      flags_.run.cpu_layers == "auto" || !on_device ? "" : " --cpu-layers " + flags_.run.cpu_layers,
      shell_word(flags_.cluster));
}

Json PlanRun::as_json(const PlanQuestion& question, const ClusterPlan& plan,
                      const std::vector<Change>& changes) const {
  Json hosts = Json::array(), left_out = Json::array(), what_if = Json::array();
  for (std::size_t rank = 0; rank < plan.hosts.size(); ++rank) {
    const HostPlan& host = plan.hosts[rank];
    const HostSpec& spec = question.cluster.hosts[host.host];
    hosts.push_back({{"rank", rank},
                     {"host", spec.name},
                     {"layers", host.layers},
                     {"layers_in_memory", host.layers_in_memory()},
                     {"memory", host.memory},
                     {"memory_budget", spec.memory},
                     {"streamed_bytes", host.residency.streamed},
                     {"disk_seconds", host.disk_seconds},
                     {"device", host.device ? Json{{"layers", host.layers_on_device()},
                                                   {"cpu_layers", host.layers_on_cpu()},
                                                   {"memory", host.device_memory},
                                                   {"memory_budget", spec.device_memory},
                                                   {"copied_bytes", host.device->streamed},
                                                   {"bus_seconds", host.bus_seconds}}
                                            : Json()},
                     {"compute_seconds", host.step_seconds},
                     {"bound_by", bound_name(bound_of(host))},
                     {"explanation", explanation(question, plan, host)}});
  }
  for (const LeftOut& out : plan.left_out)
    left_out.push_back({{"host", question.cluster.hosts[out.host].name}, {"reason", out.reason}});
  for (const Change& change : changes)
    what_if.push_back({{"change", change.what}, {"tokens_per_second", change.tokens_per_second}});
  return {{"store", flags_.run.store},
          {"windows", windows_flag(plan.stages)},
          {"rounds", plan.rounds},
          {"hosts", hosts},
          {"left_out", left_out},
          {"time_to_first_token", plan.time_to_first_token},
          {"step_seconds", plan.step_seconds},
          {"network_seconds", plan.hop_seconds},
          {"tokens_per_second", plan.tokens_per_second},
          {"bound_by", bound_name(plan.bound)},
          {"bound_host", question.cluster.hosts[plan.bound_host].name},
          {"what_if", what_if},
          {"rates_of_this_machine", like_this_},
          {"command", command(question, plan)}};
}

std::string PlanRun::as_text(const PlanQuestion& question, const ClusterPlan& plan,
                             const std::vector<Change>& changes) const {
  std::string text = fmt::format(
      "{}, {}: {} layers of {}; {} sequence{} of {} tokens and {} new ones\n\n"
      "{:<16} {:>7} {:>10} {:>21} {:>14} {:>10} {:>10}  {}\n",
      manifest().name, dtype_name(manifest().weights), spec().num_hidden_layers,
      format_bytes(question.layer_bytes), flags_.sequences, flags_.sequences == 1 ? "" : "s",
      flags_.tokens, flags_.new_tokens, "host", "layers", "in memory", "memory", "read a step",
      "disk s", "compute s", "bound by");
  for (const HostPlan& host : plan.hosts) {
    const HostSpec& spec = question.cluster.hosts[host.host];
    text +=
        fmt::format("{:<16} {:>7} {:>10} {:>21} {:>14} {:>10.3g} {:>10.3g}  {}\n", spec.name,
                    host.layers, host.layers_in_memory(),
                    fmt::format("{} of {}", format_bytes(host.memory), format_bytes(spec.memory)),
                    format_bytes(host.residency.streamed), host.disk_seconds, host.step_seconds,
                    bound_name(bound_of(host)));
    if (host.device)
      text += fmt::format("{:<16} {:>7} {:>10} {:>21} {:>14} {:>10.3g}\n", "  its GPU", "",
                          host.layers_on_device(),
                          fmt::format("{} of {}", format_bytes(host.device_memory),
                                      format_bytes(spec.device_memory)),
                          format_bytes(host.device->streamed), host.bus_seconds);
    if (host.layers_on_cpu() > 0)
      text += fmt::format("{:<16} {:>7} {:>10}\n", "  its processor", "", host.layers_on_cpu());
  }
  for (const LeftOut& out : plan.left_out)
    text += fmt::format("{} is left out: {}\n", question.cluster.hosts[out.host].name, out.reason);
  if (flags_.explain)
    for (const HostPlan& host : plan.hosts) text += explanation(question, plan, host) + "\n";
  if (!like_this_.empty())
    text += fmt::format("rates of this machine stand for: {}\n", fmt::join(like_this_, ", "));
  text += fmt::format(
      "\nfirst token after {:.3g} s; then {:.3g} tokens/s ({:.3g} s a step, {:.2g} s of it between "
      "hosts), "
      "bound by the {} of {}\n",
      plan.time_to_first_token, plan.tokens_per_second, plan.step_seconds, plan.hop_seconds,
      bound_name(plan.bound), question.cluster.hosts[plan.bound_host].name);
  for (const Change& change : changes)
    text += fmt::format("with {}: {:.3g} tokens/s\n", change.what, change.tokens_per_second);
  return text;
}

Json PlanRun::as_json(const Simulation& simulation) {
  Json hosts = Json::array();
  for (const SimulatedHost& host : simulation.hosts)
    hosts.push_back({{"computing", host.computing}, {"reading", host.reading}});
  return {{"time_to_first_token", simulation.time_to_first_token},
          {"step_seconds", simulation.step_seconds},
          {"tokens_per_second", simulation.tokens_per_second},
          {"seconds", simulation.seconds},
          {"micro_batches", simulation.micro_batches},
          {"hosts", hosts}};
}

std::string PlanRun::as_text(const PlanQuestion& question, const ClusterPlan& plan,
                             const Simulation& simulation) {
  std::string text = fmt::format(
      "\nsimulated, {} micro-batches: first tokens after {:.3g} s, then {:.3g} tokens/s ({:.3g} s "
      "a step); all in {:.4g} s\n",
      simulation.micro_batches, simulation.time_to_first_token, simulation.tokens_per_second,
      simulation.step_seconds, simulation.seconds);
  for (std::size_t rank = 0; rank < simulation.hosts.size(); ++rank)
    text +=
        fmt::format("{:<16} computes {:>4.0f} % of the time, reads {:>4.0f} %\n",
                    question.cluster.hosts[plan.hosts[rank].host].name,
                    100 * simulation.hosts[rank].computing, 100 * simulation.hosts[rank].reading);
  return text;
}

}  // namespace

Command plan_command(CLI::App& parent) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* app = parent.add_subcommand(
      "plan", "Which host would run which layers, and how fast: nothing is run or changed");
  app->add_option("--store", flags->run.store, "The store; its manifest is enough")
      ->type_name("STORE");
  app->add_option("--cluster", flags->cluster,
                  "TOML file with [nodes.NAME] and [network], or a job file")
      ->type_name("FILE.toml");
  app->add_option("--tokens", flags->tokens, "Tokens of each prompt")
      ->capture_default_str()
      ->check(integer_in(1, 1 << 24));
  app->add_option("--new-tokens", flags->new_tokens, "Tokens that each sequence gains")
      ->capture_default_str()
      ->check(integer_in(0, 1 << 24));
  app->add_option("--sequences", flags->sequences, "Sequences at once")
      ->capture_default_str()
      ->check(integer_in(1, 65536));
  add_micro_batch_flag(*app, flags->run);
  add_type_flags(*app, flags->run);
  add_cpu_layers_flag(*app, flags->run);
  app->add_flag("--explain", flags->explain, "What keeps each host from more");
  app->add_flag("--simulate", flags->simulate,
                "Run the job with the scheduler of a real one, event by event");
  app->add_flag("--json", flags->run.json, "One object");
  return {app, [flags, app] {
            require_flag(*app, "--store");
            require_flag(*app, "--cluster");
            PlanRun(*flags).print_plan();
            return 0;
          }};
}

}  // namespace stagecoach
