#include "launcher/job_runner.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <thread>

#include "base/byte_size.h"
#include "base/clock.h"
#include "base/error.h"
#include "launcher/launch_session.h"
#include "launcher/leftovers.h"
#include "launcher/token_mirror.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

// mpirun may take so long to end its ranks, before it is killed.
constexpr Seconds kEndPatience{2};
// mpirun may be without ranks for so long: until it has started some, and at the job's end.
constexpr std::chrono::seconds kStartPatience{120}, kLinger{10};
// After Ctrl-C, of five seconds: until hosts are no longer told to end the job, and to forget its
// files. What comes behind is the end of ssh.
constexpr Seconds kToldToEnd{3}, kToldToForget{3.6};
constexpr const char* kTokens = "tokens/tokens.json";
constexpr int kPeerLostCode = static_cast<int>(ErrorKind::kPeerLost);

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

// In a thread of its own, or in this one where there can be no more.
template <typename Work>
void start(std::vector<std::jthread>& threads, const Work& work) {
  try {
    threads.emplace_back(work);
  } catch (const std::exception&) {
    work();
  }
}

}  // namespace

JobRunner::JobRunner(const LaunchJob& job, const LaunchOptions& options, Hosts& hosts, Model& model,
                     PlannedJob planned)
    : job_(job),
      options_(options),
      grace_(options.interrupted),
      hosts_(hosts),
      model_(model),
      planned_(std::move(planned)),
      in_rounds_(planned_.stages.windows.size() > planned_.ranks.size()),
      output_(job.run_value("json") == "true", options.out,
              [this](std::string_view line) { messages_.take_line(line); }),
      messages_(options.terminal, options.messages) {}

JobRunner::~JobRunner() {
  if (runs_ == 0) return;
  std::error_code ignored;
  fs::remove_all(folder(), ignored);
  std::vector<std::jthread> threads;  // joined when it goes
  for (std::size_t i = 0; i < hosts_.count(); ++i)
    if (const Host& host = hosts_.at(i); host.client != nullptr && !host.lost)
      start(threads, [this, &host, i] {
        try {
          AgentClient(host.agent, hosts_.key(), host.name(), grace_.after(kToldToForget))
              .forget_job(files_tag(i));
        } catch (const std::exception&) {  // gone; they go when its agent starts
        }
      });
}

// ---- Names ----

std::size_t JobRunner::rank_of(std::size_t host) const {
  return static_cast<std::size_t>(std::find(planned_.ranks.begin(), planned_.ranks.end(), host) -
                                  planned_.ranks.begin());
}

std::string JobRunner::layers_of(std::size_t host) const {
  return planned_.stages.describe(static_cast<int>(rank_of(host)));
}

std::string JobRunner::files_tag(std::size_t host) const {
  return fmt::format("{}@{}", planned_.name, host);
}

std::string JobRunner::run_tag(std::size_t host) const {
  return fmt::format("{}-{}@{}", planned_.name, runs_, host);
}

std::string JobRunner::own_tag() const {
  for (const std::size_t host : planned_.ranks)
    if (hosts_.at(host).here) return run_tag(host);
  return run_tag(hosts_.count());
}

std::vector<SlabNames> JobRunner::by_host(const std::vector<SlabNames>& by_rank) const {
  std::vector<SlabNames> names(hosts_.count());
  for (std::size_t rank = 0; rank < by_rank.size(); ++rank)
    names[planned_.ranks[rank]] = by_rank[rank];
  return names;
}

// ---- One run ----

MpiJob JobRunner::mpi_job() const {
  const bool alone_here = planned_.ranks.size() == 1 && hosts_.at(planned_.ranks[0]).here;
  MpiJob mpi{.job = job_,
             .plan = planned_.stages,
             .ranks = {},
             .network = alone_here ? "" : planned_.network,
             .shell = fmt::format("{} agent-shell {}", hosts_.source().facts.binary,
                                  (folder() / "session.json").string()),
             .as_root = ::geteuid() == 0 && std::getenv("OMPI_ALLOW_RUN_AS_ROOT") != nullptr};
  for (const std::size_t place : planned_.ranks) {
    const Host& host = hosts_.at(place);
    mpi.ranks.push_back({.address = host.spec.reached_as(),
                         .binary = planned_.binaries[place],
                         .store = host.store,
                         .facts = host.reached() ? &host.facts : nullptr,
                         .memory = host.spec.memory,
                         .device_memory = host.spec.device_memory,
                         .extra = {}});
    if (options_.quiet && job_.run_value("quiet").empty())
      mpi.ranks.back().extra.emplace_back("--quiet");
  }
  return mpi;
}

// With the folders of a job that runs.
MpiJob JobRunner::placed_job() {
  MpiJob mpi = mpi_job();
  std::vector<std::string> folders;
  for (const std::size_t host : planned_.ranks) {
    const auto [path, free_bytes] = hosts_.at(host).client->job_folder(files_tag(host));
    folders.push_back(path);
    if (keeps_pass()) look_for_room(host, free_bytes);
  }
  for (std::size_t rank = 0; rank < planned_.ranks.size(); ++rank) {
    const std::string& files = folders[rank];
    std::vector<std::string>& extra = mpi.ranks[rank].extra;
    if (keeps_tokens())
      extra.insert(extra.end(), {"--checkpoint=" + files + "/tokens", "--checkpoint-keeps=tokens"});
    if (keeps_pass())
      extra.insert(extra.end(), {"--checkpoint=" + files + "/pass", "--checkpoint-newest"});
    // What the lost host's plan has kept may not fit the next one, and is no reason to end.
    if (job_.replicas > 1 && job_.command == "score")
      extra.push_back("--checkpoint-launch=" + planned_.name);
    extra.push_back("--done-file=" + files + "/" + done_name());
    if (!job_.run_value("report").empty()) extra.push_back("--report=" + files + "/report");
  }
  return mpi;
}

// What windows have computed, for those who go on after a loss; where the user keeps it, that does.
// A pass that goes through resident windows as a stream of micro-batches has nothing finished until
// its end, and keeping it would make ranks wait for each other: only rounds are kept.
bool JobRunner::keeps_pass() const {
  const std::string& isa = hosts_.at(planned_.ranks[0]).facts.isa;
  const bool one_isa =
      std::all_of(planned_.ranks.begin(), planned_.ranks.end(),
                  [&](std::size_t host) { return hosts_.at(host).facts.isa == isa; });
  return job_.replicas > 1 && job_.command == "score" && in_rounds_ && room_.everywhere() &&
         one_isa && job_.run_value("checkpoint").empty() && job_.run_value("wire") != "bf16";
}

// For as many tokens as the text can have.
void JobRunner::look_for_room(std::size_t host, std::optional<std::int64_t> free_bytes) {
  constexpr std::int64_t kFiles = 3;     // two that are kept, one that is written
  constexpr std::int64_t kSpecial = 16;  // tokens that a tokenizer adds
  constexpr std::int64_t kSpare = std::int64_t{64} << 20;
  const ModelSpec& spec = model_.manifest().spec;
  const std::int64_t rows = std::min(spec.max_position_embeddings, options_.text_bytes + kSpecial);
  const std::int64_t most =
      kFiles * rows * spec.hidden_size * static_cast<std::int64_t>(sizeof(float)) + kSpare;
  if (room_.look(host, free_bytes, most)) return;
  options_.warn(fmt::format(
      "{}: hidden states of this score, up to {}, have no room where its agent keeps "
      "files, {} are free: after a loss it starts from its first layer",
      hosts_.at(host).name(), format_bytes(most), format_bytes(free_bytes.value_or(0))));
}

// The host that had rank 0 has them, and newer ones.
void JobRunner::place_tokens() {
  if (tokens_ && tokens_host_ != planned_.ranks[0])
    host_of(0).client->put_job_file(files_tag(planned_.ranks[0]), kTokens, *tokens_);
  tokens_host_ = planned_.ranks[0];
}

std::vector<WatchedHost> JobRunner::with_ranks() const {
  std::vector<WatchedHost> hosts;
  for (const std::size_t host : planned_.ranks)
    hosts.push_back(
        {hosts_.at(host).name(), hosts_.at(host).agent, run_tag(host), files_tag(host)});
  return hosts;
}

std::vector<WatchedHost> JobRunner::watched() const {
  std::vector<WatchedHost> watched = with_ranks();
  // mpirun itself ends with this process, too.
  watched.push_back({hosts_.source().name(), hosts_.source().agent, own_tag(), own_tag()});
  return watched;
}

void JobRunner::write_files(const MpiJob& mpi) {
  LaunchSession session{.key = hosts_.key(), .hosts = {}};
  for (const std::size_t host : planned_.ranks) {
    const Host& place = hosts_.at(host);
    session.hosts.push_back(
        {place.name(), place.spec.reached_as(), place.agent.port, run_tag(host)});
  }
  fs::create_directories(folder());
  if (!lock_) lock_.emplace(FileLock::of_file(folder() / kLaunchLock, "another launch runs there"));
  fs::remove(folder() / "session.json");
  write_session(folder() / "session.json", session);
  write_file_atomically(folder() / "hostfile", hostfile(mpi));
  write_file_atomically(folder() / "rankfile", rankfile(mpi));
  write_file_atomically(folder() / "command", shell_command(mpi_command(mpi)) + "\n");
}

JobRunner::Outcome JobRunner::run_once() {
  ++runs_;
  Outcome outcome;
  // Connections that have waited for a long job may be gone, and so may hosts.
  hosts_.reconnect();
  take_unreached(outcome);
  if (!outcome.lost_hosts.empty()) return outcome;
  try {
    return run_ranks();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kPeerLost) throw;
    // Between two steps a host has gone, or stumbled.
    hosts_.reconnect();
    take_unreached(outcome);
    outcome.rank_lost = outcome.lost_hosts.empty();
    if (outcome.rank_lost) outcome.reason = error.what();
    outcome.code = kPeerLostCode;
    return outcome;
  }
}

JobRunner::Outcome JobRunner::run_ranks() {
  const MpiJob mpi = placed_job();
  write_files(mpi);
  place_tokens();
  const char* const setting = stdin_setting(job_);
  const Input input(setting == nullptr ? "" : job_.run_value(setting));
  const HostWatch watch(watched(), hosts_.key(), options_.interrupted);
  std::optional<TokenMirror> mirror;
  if (keeps_tokens())
    mirror.emplace(host_of(0).agent, hosts_.key(), host_of(0).name(), files_tag(planned_.ranks[0]),
                   kTokens);
  Child mpirun(mpi_command(mpi), {fmt::format("{}={}", kJobVariable, own_tag())},
               Child::Streams::kCapture, input.descriptor());
  const RankCount ranks(with_ranks(), hosts_.key());
  messages_.begin();
  Outcome outcome;
  try {
    outcome = follow(mpirun, watch, ranks);
    settle(outcome, mpirun, watch);
  } catch (...) {  // Ctrl-C, or nobody takes the output any more
    messages_.end(true);
    end_everywhere(mpirun);
    throw;
  }
  end_everywhere(mpirun);
  if (mirror && mirror->latest()) tokens_ = mirror->latest();
  messages_.end(outcome.explained || outcome.lost());
  return outcome;
}

// What mpirun says now, after at most a moment. Whether it said anything.
bool JobRunner::relay_some(Child& mpirun) {
  bool heard = false;
  std::array<char, 65536> buffer;
  const auto forward = [&](int file, const auto& take) {
    const ssize_t size = ::read(file, buffer.data(), buffer.size());
    if (size > 0) take(std::string_view(buffer.data(), static_cast<std::size_t>(size)));
    heard = heard || size > 0;
    return size > 0 || (size < 0 && errno == EINTR);
  };
  std::array<pollfd, 2> files{pollfd{mpirun.out(), POLLIN, 0}, pollfd{mpirun.err(), POLLIN, 0}};
  ::poll(files.data(), files.size(), 100);
  if (files[0].revents != 0 &&
      !forward(mpirun.out(), [&](std::string_view text) { output_.take(text); }))
    mpirun.close_out();
  if (files[1].revents != 0 &&
      !forward(mpirun.err(), [&](std::string_view text) { messages_.take(text); }))
    mpirun.close_err();
  if (options_.interrupted())
    throw Error(ErrorKind::kInterrupted, "interrupted: the job was ended on all hosts");
  return heard;
}

// Of an mpirun that says nothing. Open MPI 5.0.8's may wait for a lock of its own for ever, once a
// rank has ended with an error.
bool JobRunner::is_hung(const HostWatch& watch, const RankCount& ranks, Outcome& outcome) const {
  const Seconds deserted = ranks.without_ranks();
  if (deserted < kLinger) return false;
  // Those of a short job may have come and gone between two looks.
  const bool ended = ranks.had_ranks() || messages_.saw_error() || last_word(watch);
  if (!ended && deserted < kStartPatience) return false;
  outcome.hung = true;
  outcome.code = kPeerLostCode;
  outcome.reason =
      ended ? fmt::format("mpirun has not ended {} s after its ranks", kLinger.count())
            : fmt::format("mpirun has started no rank within {} s", kStartPatience.count());
  return true;
}

// Until mpirun ends or hangs, a host is lost or the user ends it, who gets kInterrupted.
JobRunner::Outcome JobRunner::follow(Child& mpirun, const HostWatch& watch,
                                     const RankCount& ranks) {
  Outcome outcome;
  std::optional<int> code;
  // An mpirun whose words nobody takes, so that it still has some, is not silent.
  Seconds silence{0}, to_ask{kLinger};
  while (mpirun.out() >= 0 || mpirun.err() >= 0 || !(code = mpirun.poll())) {
    const auto begin = Clock::now();
    if (relay_some(mpirun)) {
      silence = Seconds(0);
      to_ask = kLinger;
    } else {
      silence += Clock::now() - begin;
    }
    take_lost(outcome, watch);
    if (!outcome.lost_hosts.empty()) return outcome;
    if (silence < to_ask) continue;
    if (is_hung(watch, ranks, outcome)) return outcome;
    to_ask = silence + Seconds(1);
  }
  outcome.code = *code;
  return outcome;
}

void JobRunner::end_everywhere(Child& mpirun) {
  const Interrupted enough = grace_.after(kToldToEnd);
  enough();  // its time begins here, with mpirun's
  if (!mpirun.poll()) {
    mpirun.signal(SIGTERM);
    mpirun.wait(kEndPatience);
  }
  std::vector<std::jthread> threads;
  const auto end = [&](const Host& host, const std::string& tag) {
    start(threads, [&, tag] {
      try {
        AgentClient(host.agent, hosts_.key(), host.name(), enough).end(tag);
      } catch (const std::exception&) {  // gone; its agent ends them when it misses the launcher
      }
    });
  };
  for (const std::size_t host : planned_.ranks)
    if (!hosts_.at(host).lost) end(hosts_.at(host), run_tag(host));
  end(hosts_.source(), own_tag());
}

// ---- All of it ----

int JobRunner::run() {
  sweep_launches(options_.state);
  for (int restarts = 0;; ++restarts) {
    const Outcome outcome = run_once();
    if (outcome.code == 0) break;
    if (options_.interrupted()) throw Error(ErrorKind::kInterrupted, "interrupted");
    if (!outcome.lost()) {
      if (messages_.saw_error()) return outcome.code;  // the ranks have said why
      throw resource_error(
          fmt::format("the job ended with code {}, and no rank has said why", outcome.code),
          "what Open MPI says is above; stagecoach doctor JOB.toml looks at the hosts");
    }
    if (job_.replicas < 2 || restarts >= job_.restarts) {
      // A rank that missed another has named it.
      if (outcome.rank_lost && outcome.code == kPeerLostCode && messages_.saw_error())
        return outcome.code;
      throw stopped(outcome);
    }
    recover(outcome);
  }
  collect_report();
  return 0;
}

void JobRunner::collect_report() {
  const std::string report = job_.run_value("report");
  if (report.empty()) return;
  const Host& host = host_of(0);
  AgentClient first(host.agent, hosts_.key(), host.name(), options_.interrupted);
  const std::string tag = files_tag(planned_.ranks[0]);
  constexpr std::string_view kReport = "report/";
  for (const StoreFile& file : first.job_files(tag)) {
    if (!file.name.starts_with(kReport)) continue;
    const std::string name = file.name.substr(kReport.size());
    if (fs::path(name).filename() != name) continue;  // a report has no folders
    fs::create_directories(report);
    const std::vector<std::byte> content = first.read_job_file(tag, file.name);
    write_file_atomically(fs::path(report) / name,
                          {reinterpret_cast<const char*>(content.data()), content.size()});
  }
  options_.note(fmt::format("the report is in {}", report));
}

}  // namespace stagecoach
