#include "launcher/launch.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>

#include "base/byte_size.h"
#include "base/error.h"
#include "launcher/distribution.h"
#include "launcher/doctor.h"
#include "launcher/host_watch.h"
#include "launcher/hosts.h"
#include "launcher/launch_session.h"
#include "launcher/mpi_command.h"
#include "launcher/relay.h"
#include "launcher/token_mirror.h"
#include "plan/replicas.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Of the memory that a host has free, where [nodes] does not say.
constexpr double kShareOfFree = 0.85;
// mpirun may take so long to end its ranks, before it is killed.
constexpr Seconds kEndPatience{2};
// After ranks have missed one of them: for a host to answer, and for the watch to miss one that
// does not.
constexpr Seconds kAnswerPatience{2};
constexpr Seconds kJudgement{kSilence + Seconds(2)};

std::string launch_name() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32] = {};
  std::strftime(text, sizeof(text), "%Y%m%d-%H%M%S", &utc);
  return fmt::format("{}-{}", text, ::getpid());
}

// A file that is given to rank 0's stdin.
class Input {
 public:
  explicit Input(const std::string& file) {
    if (file.empty()) return;
    descriptor_ = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) throw data_error(fmt::format("cannot open {}", file), "check [run]");
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;
  ~Input() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_ = -1;
};

class Launch {
 public:
  Launch(const LaunchJob& job, const LaunchOptions& options)
      : job_(job),
        options_(options),
        name_(launch_name()),
        output_(job.run_value("json") == "true", options.out),
        messages_(options.terminal, options.err) {}

  int run();

 private:
  struct Outcome {
    int code = 0;
    std::optional<std::size_t> lost_host;  // in all()
    std::string reason;
    bool rank_lost = false;  // a rank, of a host that answers
  };

  void reach();
  void complete_specs();
  void make_plan();
  void ship();
  void same_build_everywhere();
  int run_until_done();
  Outcome run_ranks();
  Outcome follow(Child& mpirun, const HostWatch& watch);
  void name_lost(Outcome& outcome, std::size_t rank, const HostWatch& watch);
  void judge(Outcome& outcome, const HostWatch& watch);
  void end_everywhere(Child& mpirun);
  void recover(const Outcome& outcome);
  Error stopped(const Outcome& outcome) const;
  void collect_report();
  void forget();

  MpiJob mpi_job();
  std::string plan_text() const;
  int dry_run();

  std::vector<Host>& hosts() { return hosts_->all(); }
  Host& host_of(std::size_t rank) { return hosts()[ranks_[rank]]; }
  std::string tag(std::size_t host) const { return fmt::format("{}@{}", name_, host); }
  bool keeps_tokens() const { return job_.replicas > 1 && job_.command == "generate"; }
  fs::path folder() const { return options_.state / "launches" / name_; }
  std::vector<SlabNames> by_host(const std::vector<SlabNames>& by_rank) const;

  const LaunchJob& job_;
  const LaunchOptions& options_;
  const std::string name_;
  std::optional<Hosts> hosts_;
  std::optional<Model> model_;
  StagePlan stages_;
  std::vector<std::size_t> ranks_;     // hosts, in all()
  std::vector<std::string> binaries_;  // by host
  std::string network_, plan_text_;
  Json plan_json_;
  OutputRelay output_;
  MessageRelay messages_;
  std::optional<std::vector<std::byte>> tokens_;  // drawn before a restart
};

// ---- Before the job ----

void Launch::reach() {
  options_.note(fmt::format("reaching {} hosts", job_.cluster.hosts.size()));
  hosts_.emplace(job_);
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
  for (const Finding& finding : check_together(reached, job_)) {
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
  network_ =
      job_.cluster.network.subnet.empty() ? common_network(reached) : job_.cluster.network.subnet;
}

void Launch::complete_specs() {
  const std::optional<HostRates> own = options_.own_rates(hosts_->source().store);
  hosts_->each([&](Host& host) {
    HostSpec& spec = host.spec;
    if (spec.memory == 0)
      spec.memory =
          static_cast<std::int64_t>(kShareOfFree * static_cast<double>(host.facts.free_memory));
    if (!job_.run_value("windows").empty()) return;  // nothing is to be planned
    spec.rates = spec.rates.or_else(host.facts.rates);
    if (!spec.rates.complete() && !options_.dry_run &&
        !(spec.rates.disk == 0 && spec.rates.memory > 0)) {
      options_.note(
          fmt::format("{}: measuring how fast it is, which takes some seconds", host.name()));
      host.client->probe(host.store);
      host.facts = host.client->facts(host.store);
      spec.rates = spec.rates.or_else(host.facts.rates);
    }
    if (spec.rates.disk == 0) spec.rates.disk = host.client->disk_rate(host.store);
  });
  hosts_->throw_problems("hosts cannot be measured");
  if (!job_.run_value("windows").empty()) return;
  for (Host& host : hosts()) {
    if (own) host.spec.rates = host.spec.rates.or_else(*own);
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
    stages_ = explicit_plan(windows, 0, model_->manifest().spec.num_hidden_layers, count);
    for (std::size_t i = 0; i < hosts().size(); ++i) ranks_.push_back(i);
    plan_text_ = "windows as [run] says\n";
    plan_json_ = {{"rounds", nullptr}};
    return;
  }
  ClusterSpec cluster;
  cluster.network = job_.cluster.network;
  for (const Host& host : hosts()) cluster.hosts.push_back(host.spec);
  const ClusterPlan plan = options_.plan(model_->manifest(), cluster);
  stages_ = plan.stages;
  for (const HostPlan& host : plan.hosts) ranks_.push_back(host.host);
  for (const LeftOut& out : plan.left_out)
    options_.warn(fmt::format("{} is left out: {}", hosts()[out.host].name(), out.reason));
  plan_text_ =
      fmt::format("first token after {:.3g} s, then {:.3g} tokens/s; bound by the {} of {}\n",
                  plan.time_to_first_token, plan.tokens_per_second, bound_name(plan.bound),
                  hosts()[plan.bound_host].name());
  plan_json_ = {{"rounds", plan.rounds},
                {"time_to_first_token", plan.time_to_first_token},
                {"tokens_per_second", plan.tokens_per_second},
                {"bound_by", bound_name(plan.bound)},
                {"bound_host", hosts()[plan.bound_host].name()}};
}

std::vector<SlabNames> Launch::by_host(const std::vector<SlabNames>& by_rank) const {
  std::vector<SlabNames> names(hosts_->count());
  for (std::size_t rank = 0; rank < by_rank.size(); ++rank) names[ranks_[rank]] = by_rank[rank];
  return names;
}

void Launch::ship() {
  const auto some = [&](const std::vector<SlabNames>& wanted, const char* what) {
    std::int64_t bytes = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i)
      bytes += model_->bytes(model_->missing(hosts()[i], wanted[i]));
    if (bytes > 0) options_.note(fmt::format("shipping {} of {}", format_bytes(bytes), what));
    model_->ship(*hosts_, wanted, options_.shipping);
  };
  some(by_host(own_slabs(stages_, model_->manifest())), "slabs");
  if (job_.replicas < 2) return;
  if (stages_.ranks < 2)
    throw usage_error(fmt::format("{}: replicas = 2 needs two hosts that take part", job_.file));
  some(by_host(replica_slabs(stages_, model_->manifest())), "second copies");
}

void Launch::same_build_everywhere() {
  const HostFacts& own = hosts_->source().facts;
  binaries_.assign(hosts_->count(), own.binary);
  const std::vector<std::string> files = files_of_build(own.binary);
  hosts_->each([&](Host& host) {
    const auto i = static_cast<std::size_t>(&host - hosts().data());
    if (host.facts.content == own.content) {
      binaries_[i] = host.facts.binary;
      return;
    }
    if (options_.dry_run) return;
    options_.note(fmt::format("{}: has another build of Stagecoach ({} {}); copying this one there",
                              host.name(), host.facts.version, host.facts.build));
    binaries_[i] = host.client->install(own.content, files, root_of_build(own.binary));
  });
  hosts_->throw_problems("this build of Stagecoach does not run on all hosts");
}

MpiJob Launch::mpi_job() {
  MpiJob mpi{.job = job_,
             .plan = stages_,
             .ranks = {},
             .network = ranks_.size() > 1 || !host_of(0).here ? network_ : "",
             .shell = fmt::format("{} agent-shell {}", hosts_->source().facts.binary,
                                  (folder() / "session.json").string()),
             .as_root = ::geteuid() == 0 && std::getenv("OMPI_ALLOW_RUN_AS_ROOT") != nullptr};
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    const Host& host = host_of(rank);
    RankPlace place{.address = host.spec.reached_as(),
                    .binary = binaries_[ranks_[rank]],
                    .store = host.store,
                    .memory = host.spec.memory,
                    .extra = {}};
    if (host.reached() && !options_.dry_run) {
      const std::string files = host.client->job_folder(tag(ranks_[rank]));
      if (keeps_tokens())
        place.extra.insert(place.extra.end(),
                           {"--checkpoint=" + files + "/tokens", "--checkpoint-keeps=tokens"});
      if (!job_.run_value("report").empty()) place.extra.push_back("--report=" + files + "/report");
    }
    mpi.ranks.push_back(std::move(place));
  }
  return mpi;
}

std::string Launch::plan_text() const {
  std::string text = fmt::format("{:<5} {:<16} {:<16} {:>10}  {}\n", "rank", "host", "address",
                                 "memory", "layers");
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    const HostSpec& spec = hosts_->at(ranks_[rank]).spec;
    text += fmt::format("{:<5} {:<16} {:<16} {:>10}  {}\n", rank, spec.name, spec.reached_as(),
                        format_bytes(spec.memory), stages_.describe(static_cast<int>(rank)));
  }
  return text + plan_text_;
}

int Launch::dry_run() {
  const MpiJob mpi = mpi_job();
  const Words words = mpi_command(mpi);
  const std::vector<SlabNames> own = own_slabs(stages_, model_->manifest());
  const std::vector<SlabNames> second = job_.replicas > 1 && stages_.ranks > 1
                                            ? replica_slabs(stages_, model_->manifest())
                                            : std::vector<SlabNames>(own.size());
  Json ranks = Json::array();
  std::string text = plan_text();
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    Host& host = host_of(rank);
    SlabNames wanted = own[rank];
    wanted.insert(second[rank].begin(), second[rank].end());
    const std::vector<std::string> missing = model_->missing(host, wanted);
    ranks.push_back({{"rank", rank},
                     {"host", host.name()},
                     {"address", host.spec.reached_as()},
                     {"reached", host.reached()},
                     {"store", host.store},
                     {"memory", host.spec.memory},
                     {"layers", stages_.describe(static_cast<int>(rank))},
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
  Json json = plan_json_;
  json["windows"] = windows_flag(stages_);
  json["ranks"] = ranks;
  json["command"] = words;
  json["hostfile"] = hostfile(mpi);
  json["rankfile"] = rankfile(mpi);
  options_.out(json.dump() + "\n");
  return 0;
}

// ---- The job ----

Launch::Outcome Launch::run_ranks() {
  const MpiJob mpi = mpi_job();
  LaunchSession session{.key = hosts_->key(), .hosts = {}};
  std::vector<WatchedHost> watched;
  std::string own_tag = tag(hosts_->count());  // of mpirun itself, where no rank is here
  for (const std::size_t host : ranks_) {
    const Host& place = hosts()[host];
    session.hosts.push_back({place.name(), place.spec.reached_as(), place.agent.port, tag(host)});
    watched.push_back({place.name(), place.agent, tag(host)});
    if (place.here) own_tag = tag(host);
  }
  fs::create_directories(folder());
  fs::remove(folder() / "session.json");
  write_session(folder() / "session.json", session);
  write_file_atomically(folder() / "hostfile", hostfile(mpi));
  write_file_atomically(folder() / "rankfile", rankfile(mpi));
  const Words words = mpi_command(mpi);
  write_file_atomically(folder() / "command", shell_command(words) + "\n");

  if (tokens_) host_of(0).client->put_job_file(tag(ranks_[0]), "tokens/tokens.json", *tokens_);
  const HostWatch watch(watched, hosts_->key());
  std::optional<TokenMirror> mirror;
  if (keeps_tokens())
    mirror.emplace(host_of(0).agent, hosts_->key(), host_of(0).name(), tag(ranks_[0]),
                   "tokens/tokens.json");
  const char* const setting = stdin_setting(job_);
  const Input input(setting == nullptr ? "" : job_.run_value(setting));
  Child mpirun(words, {fmt::format("{}={}", kJobVariable, own_tag)}, Child::Streams::kCapture,
               input.descriptor());
  Outcome outcome = follow(mpirun, watch);
  if (outcome.code != 0) judge(outcome, watch);
  end_everywhere(mpirun);
  if (mirror && mirror->latest()) tokens_ = mirror->latest();
  messages_.end(outcome.lost_host.has_value() || outcome.rank_lost);
  return outcome;
}

// Until mpirun ends, a host is lost or the user ends it, who gets kInterrupted.
Launch::Outcome Launch::follow(Child& mpirun, const HostWatch& watch) {
  Outcome outcome;
  std::array<char, 65536> buffer;
  const auto forward = [&](int file, const auto& take) {
    const ssize_t size = ::read(file, buffer.data(), buffer.size());
    if (size > 0) take(std::string_view(buffer.data(), static_cast<std::size_t>(size)));
    return size > 0 || (size < 0 && errno == EINTR);
  };
  std::optional<int> code;
  while (mpirun.out() >= 0 || mpirun.err() >= 0 || !(code = mpirun.poll())) {
    std::array<pollfd, 2> files{pollfd{mpirun.out(), POLLIN, 0}, pollfd{mpirun.err(), POLLIN, 0}};
    ::poll(files.data(), files.size(), 100);
    if (files[0].revents != 0 &&
        !forward(mpirun.out(), [&](std::string_view text) { output_.take(text); }))
      mpirun.close_out();
    if (files[1].revents != 0 &&
        !forward(mpirun.err(), [&](std::string_view text) { messages_.take(text); }))
      mpirun.close_err();
    if (options_.interrupted()) {
      messages_.end(true);
      end_everywhere(mpirun);
      throw Error(ErrorKind::kInterrupted, "interrupted: the job was ended on all hosts");
    }
    if (const auto lost = watch.lost(); !lost.empty()) {
      outcome.code = static_cast<int>(ErrorKind::kPeerLost);
      name_lost(outcome, lost.front(), watch);
      return outcome;
    }
  }
  outcome.code = *code;
  return outcome;
}

// At once: what follows takes its time.
void Launch::name_lost(Outcome& outcome, std::size_t rank, const HostWatch& watch) {
  Host& host = host_of(rank);
  host.lost = true;
  outcome.lost_host = ranks_[rank];
  outcome.reason = watch.reason(rank);
  if (job_.replicas > 1)
    options_.warn(
        fmt::format("lost, with {}: {}", stages_.describe(static_cast<int>(rank)), outcome.reason));
}

// Ranks that end for want of another may be sooner than the watch: all hosts are asked once more.
void Launch::judge(Outcome& outcome, const HostWatch& watch) {
  if (outcome.lost_host) return;
  const bool signalled = outcome.code > 128 && outcome.code != 130;
  if (outcome.code != static_cast<int>(ErrorKind::kPeerLost) && !signalled) return;
  std::vector<std::thread> threads;
  std::atomic<int> answers{0};
  for (const std::size_t host : ranks_)
    threads.emplace_back([&, host] {
      try {
        AgentClient(hosts()[host].agent, hosts_->key(), hosts()[host].name()).ping(kAnswerPatience);
        ++answers;
      } catch (const std::exception&) {
      }
    });
  for (std::thread& thread : threads) thread.join();
  const auto deadline = Clock::now() + kJudgement;
  while (answers < static_cast<int>(ranks_.size()) && watch.lost().empty() &&
         Clock::now() < deadline && !options_.interrupted())
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  if (const auto lost = watch.lost(); !lost.empty()) {
    name_lost(outcome, lost.front(), watch);
  } else {
    outcome.rank_lost = true;
    outcome.reason = signalled ? fmt::format("a rank was ended by signal {}", outcome.code - 128)
                               : "a rank fell silent";
  }
}

void Launch::end_everywhere(Child& mpirun) {
  if (!mpirun.poll()) {
    mpirun.signal(SIGTERM);
    mpirun.wait(kEndPatience);
  }
  std::vector<std::thread> threads;
  for (const std::size_t host : ranks_) {
    if (hosts()[host].lost) continue;
    threads.emplace_back([&, host] {
      try {
        AgentClient agent(hosts()[host].agent, hosts_->key(), hosts()[host].name());
        agent.end(tag(host));
      } catch (const std::exception&) {  // gone; its agent ends them when it misses the launcher
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void Launch::recover(const Outcome& outcome) {
  if (outcome.lost_host) {
    const auto rank = static_cast<std::size_t>(
        std::find(ranks_.begin(), ranks_.end(), *outcome.lost_host) - ranks_.begin());
    if (stages_.ranks < 2) throw stopped(outcome);
    stages_ = take_over(stages_, static_cast<int>(rank));
    ranks_.erase(ranks_.begin() + static_cast<std::ptrdiff_t>(rank));
    // After a second loss some second copies are no longer where the plan looks for them.
    model_->ship(*hosts_, by_host(own_slabs(stages_, model_->manifest())), options_.shipping);
    options_.warn(fmt::format("going on with {} hosts: {}", ranks_.size(), windows_flag(stages_)));
  } else {
    options_.warn(fmt::format("{}; all hosts answer: starting again", outcome.reason));
  }
  output_.restart();
}

Error Launch::stopped(const Outcome& outcome) const {
  if (!outcome.lost_host)
    return {
        ErrorKind::kPeerLost,
        fmt::format("{}, though its host answers: it may have run out of memory", outcome.reason),
        "dmesg on the hosts says what ended it; lower nodes.*.memory, or run the same command "
        "again"};
  const Host& host = hosts_->at(*outcome.lost_host);
  const auto rank = static_cast<std::size_t>(
      std::find(ranks_.begin(), ranks_.end(), *outcome.lost_host) - ranks_.begin());
  const std::string layers =
      rank < ranks_.size() ? stages_.describe(static_cast<int>(rank)) : "its layers";
  return {ErrorKind::kPeerLost, fmt::format("lost, with {}: {}", layers, outcome.reason),
          fmt::format("bring {} back and run the same command again; without it, take [nodes.{}] "
                      "out of {}, and launch ships {} to "
                      "others if a host still has them; replicas = 2 goes on by itself",
                      host.name(), host.name(), job_.file, layers)};
}

int Launch::run_until_done() {
  for (int restarts = 0;; ++restarts) {
    const Outcome outcome = run_ranks();
    if (outcome.code == 0) return 0;
    if (!outcome.lost_host && !outcome.rank_lost) return outcome.code;  // the ranks have said why
    if (job_.replicas < 2 || restarts >= job_.restarts) {
      // A rank that missed another has named it.
      if (outcome.rank_lost && outcome.code == static_cast<int>(ErrorKind::kPeerLost))
        return outcome.code;
      throw stopped(outcome);
    }
    recover(outcome);
  }
}

void Launch::collect_report() {
  const std::string folder = job_.run_value("report");
  if (folder.empty()) return;
  Host& first = host_of(0);
  constexpr std::string_view kReport = "report/";
  for (const StoreFile& file : first.client->job_files(tag(ranks_[0]))) {
    if (!file.name.starts_with(kReport)) continue;
    const fs::path path = fs::path(folder) / file.name.substr(kReport.size());
    fs::create_directories(path.parent_path());
    const std::vector<std::byte> content = first.client->read_job_file(tag(ranks_[0]), file.name);
    write_file_atomically(path, {reinterpret_cast<const char*>(content.data()), content.size()});
  }
  options_.note(fmt::format("the report is in {}", folder));
}

void Launch::forget() {
  hosts_->each([&](Host& host) {
    host.client->forget_job(tag(static_cast<std::size_t>(&host - hosts().data())));
  });
  std::error_code ignored;
  fs::remove_all(folder(), ignored);
}

int Launch::run() {
  reach();
  model_.emplace(*hosts_);
  complete_specs();
  make_plan();
  same_build_everywhere();
  if (options_.dry_run) return dry_run();
  options_.err(plan_text());
  ship();
  const int code = run_until_done();
  if (code == 0) collect_report();
  forget();
  return code;
}

}  // namespace

int launch(const LaunchJob& job, const LaunchOptions& options) {
  return Launch(job, options).run();
}

}  // namespace stagecoach
