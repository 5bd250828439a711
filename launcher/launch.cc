#include "launcher/launch.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>

#include "base/byte_size.h"
#include "base/error.h"
#include "launcher/distribution.h"
#include "launcher/doctor.h"
#include "launcher/hosts.h"
#include "launcher/job_runner.h"
#include "launcher/mpi_command.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

// Of the memory that a host has free, where [nodes] does not say.
constexpr double kShareOfFree = 0.85;
// A store in memory, or on a file system without direct reads: bytes a second.
constexpr double kUnmeasurableDisk = 1e9;

std::string launch_name() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32] = {};
  std::strftime(text, sizeof(text), "%Y%m%d-%H%M%S", &utc);
  return fmt::format("{}-{}", text, ::getpid());
}

// A launch up to the start of its ranks.
class Launch {
 public:
  Launch(const LaunchJob& job, const LaunchOptions& options) : job_(job), options_(options) {
    planned_.name = launch_name();
  }

  int run();

 private:
  void reach();
  void complete_specs();
  void make_plan();
  void check_plan() const;
  void same_build_everywhere();
  void ship(const JobRunner& runner);
  std::string plan_text() const;
  int dry_run(const JobRunner& runner);

  void check_interrupted() const {
    if (options_.interrupted()) throw Error(ErrorKind::kInterrupted, "interrupted");
  }
  std::vector<Host>& hosts() { return hosts_->all(); }

  const LaunchJob& job_;
  const LaunchOptions& options_;
  PlannedJob planned_;
  std::optional<Hosts> hosts_;
  std::optional<Model> model_;
  std::string prediction_;
  Json prediction_json_;
};

// ---- Before the job ----

void Launch::reach() {
  options_.note(fmt::format("reaching {} host{}", job_.cluster.hosts.size(),
                            job_.cluster.hosts.size() == 1 ? "" : "s"));
  hosts_.emplace(job_, HostsOptions{.state = options_.state, .interrupted = options_.interrupted});
  check_interrupted();
  if (!options_.dry_run) {
    hosts_->throw_problems("hosts cannot be reached");
  } else {
    for (Host& host : hosts()) {
      if (!host.problem) continue;
      options_.warn(fmt::format("{}; planned from the file alone", host.problem->what()));
      host.problem.reset();
      host.client.reset();
    }
  }
  std::vector<const Host*> reached;
  for (const Host& host : hosts())
    if (host.reached()) reached.push_back(&host);
  std::string problems, fix;
  ErrorKind kind = ErrorKind::kResources;
  for (const Finding& finding : check_together(reached, hosts_->source(), job_)) {
    const std::string text =
        finding.host.empty() ? finding.text : finding.host + ": " + finding.text;
    if (!finding.serious) {
      options_.warn(text);
      continue;
    }
    if (problems.empty()) {
      kind = finding.kind;
      fix = finding.fix;
    }
    problems += (problems.empty() ? "" : "\n  ") + text;
  }
  if (!problems.empty()) throw Error(kind, problems, fix);
  planned_.network =
      job_.cluster.network.subnet.empty() ? common_network(reached) : job_.cluster.network.subnet;
}

void Launch::complete_specs() {
  const std::string run_memory = job_.run_value("memory");
  const std::int64_t memory = run_memory.empty() ? 0 : parse_byte_size(run_memory);
  const std::string run_device_memory = job_.run_value("device_memory");
  const std::optional<HostRates> own = options_.own_rates(hosts_->source().store);
  hosts_->each([&](Host& host) {
    HostSpec& spec = host.spec;
    if (spec.memory == 0)
      spec.memory = memory > 0 ? memory
                               : static_cast<std::int64_t>(
                                     kShareOfFree * static_cast<double>(host.facts.free_memory));
    if (spec.device_memory == 0 && !run_device_memory.empty())
      spec.device_memory = parse_byte_size(run_device_memory);
    if (!job_.run_value("windows").empty()) return;  // nothing is to be planned
    const auto take_rates = [&] {
      spec.rates = spec.rates.or_else(host.facts.rates);
      spec.device = spec.device.or_else(device_rates(host.facts.gpu_rates));
      const HostRates& rates = spec.rates;
      return rates.memory > 0 && rates.f32 > 0 && rates.bf16 > 0 && rates.int8 > 0 &&
             (!spec.on_device() || spec.device.complete());
    };
    if (!take_rates() && !options_.dry_run) {
      options_.note(
          fmt::format("{}: measuring how fast it is, which takes some seconds", host.name()));
      host.client->probe(host.store);
      host.facts = host.client->facts(host.store);
      take_rates();
    }
    if (spec.rates.disk == 0) spec.rates.disk = host.client->disk_rate(host.store);
    if (spec.rates.disk == 0) spec.rates.disk = kUnmeasurableDisk;
  });
  hosts_->throw_problems("hosts cannot be measured");
  if (!job_.run_value("windows").empty()) return;
  for (Host& host : hosts()) {
    const HostSpec* const own_spec = job_.cluster.find(host.name());
    const bool of_node = own_spec != nullptr && own_spec->on_device();
    check_device_rates(
        of_node
            ? fmt::format("{}: nodes.{} has device_memory", job_.file, host.name())
            : fmt::format("{} is for nodes.{}, too", job_.run_place("device_memory"), host.name()),
        host.spec);
    if (!host.spec.on_device() && !host.facts.gpus.empty() && job_.run_value("device") != "cpu")
      options_.note(
          fmt::format("{}: its processor computes, not its {}: device_memory = \"8GiB\", "
                      "say, in [nodes.{}] makes it do so",
                      host.name(), host.facts.gpus.front(), host.name()));
    if (own && host.here) host.spec.rates = host.spec.rates.or_else(*own);
    if (host.spec.memory > 0 && host.spec.rates.complete()) continue;
    throw usage_error(
        fmt::format("{}: nodes.{}: {}", job_.file, host.name(),
                    host.reached()
                        ? "how fast it is has not been measured, and a dry run changes nothing"
                        : "without reaching it, its memory and rates are needed to plan"),
        host.reached()
            ? fmt::format(
                  "stagecoach probe --store {} there; or launch without --dry-run, which does that",
                  host.store)
            : "memory, memory_gb_per_s, f32_gflop_per_s, bf16_gflop_per_s, int8_gop_per_s, "
              "disk_gb_per_s in the file; or run its agent");
  }
}

void Launch::make_plan() {
  const std::string windows = job_.run_value("windows");
  if (!windows.empty()) {
    const auto count = static_cast<int>(hosts().size());
    planned_.stages = explicit_plan(windows, 0, model_->manifest().spec.num_hidden_layers, count);
    for (std::size_t i = 0; i < hosts().size(); ++i) planned_.ranks.push_back(i);
    prediction_ = "windows as [run] says\n";
    prediction_json_ = {{"rounds", nullptr}};
    return;
  }
  ClusterSpec cluster;
  cluster.network = job_.cluster.network;
  for (const Host& host : hosts()) cluster.hosts.push_back(host.spec);
  const ClusterPlan plan = options_.plan(model_->manifest(), cluster);
  planned_.stages = plan.stages;
  for (const HostPlan& host : plan.hosts) planned_.ranks.push_back(host.host);
  for (const LeftOut& out : plan.left_out)
    options_.warn(fmt::format("{} is left out: {}", hosts()[out.host].name(), out.reason));
  prediction_ =
      fmt::format("first token after {:.3g} s, then {:.3g} tokens/s; bound by the {} of {}\n",
                  plan.time_to_first_token, plan.tokens_per_second, bound_name(plan.bound),
                  hosts()[plan.bound_host].name());
  prediction_json_ = {{"rounds", plan.rounds},
                      {"time_to_first_token", plan.time_to_first_token},
                      {"tokens_per_second", plan.tokens_per_second},
                      {"bound_by", bound_name(plan.bound)},
                      {"bound_host", hosts()[plan.bound_host].name()}};
}

void Launch::ship(const JobRunner& runner) {
  const auto some = [&](const std::vector<SlabNames>& wanted, const char* what) {
    std::int64_t bytes = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i)
      bytes += model_->bytes(model_->missing(hosts()[i], wanted[i]));
    if (bytes > 0) options_.note(fmt::format("shipping {} of {}", format_bytes(bytes), what));
    try {
      model_->ship(*hosts_, wanted, options_.shipping);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInterrupted) throw;
      throw Error(error.kind(), "interrupted; what was shipped stays for the next launch");
    }
  };
  some(runner.by_host(own_slabs(planned_.stages, model_->manifest())), "slabs");
  if (job_.replicas < 2) return;
  some(runner.by_host(replica_slabs(planned_.stages, model_->manifest())), "second copies");
}

// What would only be noticed after hours of shipping.
void Launch::check_plan() const {
  if (job_.replicas > 1 && planned_.stages.ranks < 2)
    throw usage_error(fmt::format("{}: replicas = 2 needs two hosts that take part", job_.file));
  if (!options_.dry_run && ::geteuid() == 0 && std::getenv("OMPI_ALLOW_RUN_AS_ROOT") == nullptr)
    throw resource_error("Open MPI does not run as root unless it is told to",
                         "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1, or "
                         "another user");
}

void Launch::same_build_everywhere() {
  const HostFacts& own = hosts_->source().facts;
  planned_.binaries.assign(hosts_->count(), own.binary);
  const std::vector<std::string> files = files_of_build(own.binary);
  hosts_->each([&](Host& host) {
    const auto i = static_cast<std::size_t>(&host - hosts().data());
    if (host.facts.content == own.content) {
      planned_.binaries[i] = host.facts.binary;
      return;
    }
    if (options_.dry_run) return;
    options_.note(fmt::format("{}: has another build of Stagecoach ({} {}); copying this one there",
                              host.name(), host.facts.version, host.facts.build));
    planned_.binaries[i] = host.client->install(own.content, files, root_of_build(own.binary));
  });
  hosts_->throw_problems("this build of Stagecoach does not run on all hosts");
}

std::string Launch::plan_text() const {
  std::string text = fmt::format("{:<5} {:<16} {:<16} {:>10} {:>10}  {}\n", "rank", "host",
                                 "address", "memory", "of its GPU", "layers");
  for (std::size_t rank = 0; rank < planned_.ranks.size(); ++rank) {
    const HostSpec& spec = hosts_->at(planned_.ranks[rank]).spec;
    text += fmt::format("{:<5} {:<16} {:<16} {:>10} {:>10}  {}\n", rank, spec.name,
                        spec.reached_as(), format_bytes(spec.memory),
                        spec.on_device() ? format_bytes(spec.device_memory) : "-",
                        planned_.stages.describe(static_cast<int>(rank)));
  }
  return text + prediction_;
}

int Launch::dry_run(const JobRunner& runner) {
  const MpiJob mpi = runner.mpi_job();
  const Words words = mpi_command(mpi);
  const std::vector<SlabNames> own = own_slabs(planned_.stages, model_->manifest());
  const std::vector<SlabNames> second = job_.replicas > 1
                                            ? replica_slabs(planned_.stages, model_->manifest())
                                            : std::vector<SlabNames>(own.size());
  Json ranks = Json::array();
  std::string text = plan_text();
  for (std::size_t rank = 0; rank < planned_.ranks.size(); ++rank) {
    Host& host = hosts()[planned_.ranks[rank]];
    SlabNames wanted = own[rank];
    wanted.insert(second[rank].begin(), second[rank].end());
    const std::vector<std::string> missing = model_->missing(host, wanted);
    ranks.push_back({{"rank", rank},
                     {"host", host.name()},
                     {"address", host.spec.reached_as()},
                     {"reached", host.reached()},
                     {"store", host.store},
                     {"memory", host.spec.memory},
                     {"device_memory", host.spec.device_memory},
                     {"layers", planned_.stages.describe(static_cast<int>(rank))},
                     {"slabs_to_ship", missing},
                     {"bytes_to_ship", model_->bytes(missing)}});
    text += missing.empty() ? fmt::format("{} has all of its slabs\n", host.name())
                            : fmt::format("{} would get {} slabs, {}\n", host.name(),
                                          missing.size(), format_bytes(model_->bytes(missing)));
  }
  if (!options_.json) {
    options_.out(fmt::format("{}\nhostfile:\n{}\nrankfile:\n{}\n{}\n", text, hostfile(mpi),
                             rankfile(mpi), shell_command(words)));
    return 0;
  }
  Json json = prediction_json_;
  json["windows"] = windows_flag(planned_.stages);
  json["ranks"] = ranks;
  json["command"] = words;
  json["hostfile"] = hostfile(mpi);
  json["rankfile"] = rankfile(mpi);
  options_.out(json.dump() + "\n");
  return 0;
}

int Launch::run() {
  reach();
  model_.emplace(*hosts_);
  check_interrupted();
  complete_specs();
  check_interrupted();
  make_plan();
  check_plan();
  same_build_everywhere();
  JobRunner runner(job_, options_, *hosts_, *model_, planned_);
  if (options_.dry_run) return dry_run(runner);
  mpi_command(runner.mpi_job());  // what it refuses, not after hours of shipping
  options_.err(plan_text());
  ship(runner);
  check_interrupted();
  return runner.run();
}

}  // namespace

int launch(const LaunchJob& job, const LaunchOptions& options) {
  return Launch(job, options).run();
}

}  // namespace stagecoach
