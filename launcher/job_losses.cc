// A JobRunner's other half: what went wrong, and what becomes of the job then.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "launcher/job_runner.h"
#include "plan/replicas.h"

namespace stagecoach {
namespace {

// After ranks have missed one of them: for a host to answer, and for the watch to miss one that
// does not.
constexpr Seconds kAnswerPatience{2};
constexpr Seconds kJudgement{kSilence + Seconds(2)};
// For mpirun to hand on what rank 0 has printed.
constexpr Seconds kHandOn{2};
constexpr int kPeerLostCode = static_cast<int>(ErrorKind::kPeerLost);

// A process that a signal has ended, as mpirun and shells tell it.
std::optional<int> signal_of(int code) {
  constexpr int kLastSignal = 64;
  if (code <= 128 || code > 128 + kLastSignal || code == static_cast<int>(ErrorKind::kInterrupted))
    return std::nullopt;
  return code - 128;
}

// That ends the name of one of these files, behind `name` and a dot.
std::optional<int> code_behind(const std::string& name, const std::vector<StoreFile>& files) {
  for (const StoreFile& file : files)
    for (int code = 1; code < kPeerLostCode; ++code)
      if (file.name == fmt::format("{}.{}", name, code)) return code;
  return std::nullopt;
}

// Of Stagecoach, not of mpirun.
bool is_own_code(int code) {
  return (code > 0 && code <= kPeerLostCode) || code == static_cast<int>(ErrorKind::kInterrupted);
}

}  // namespace

// At once: what follows takes its time.
void JobRunner::name_lost(Outcome& outcome, std::size_t host, const std::string& reason) {
  hosts_.all()[host].lost = true;
  if (outcome.lost_hosts.empty()) outcome.reason = reason;
  outcome.lost_hosts.push_back(host);
  outcome.code = kPeerLostCode;
  if (job_.replicas > 1) options_.warn(fmt::format("lost, with {}: {}", layers_of(host), reason));
}

void JobRunner::take_lost(Outcome& outcome, const HostWatch& watch) {
  for (const std::size_t number : watch.lost()) {
    if (number >= planned_.ranks.size()) continue;  // this machine
    const std::size_t host = planned_.ranks[number];
    if (!hosts_.at(host).lost) name_lost(outcome, host, watch.reason(number));
  }
}

void JobRunner::take_unreached(Outcome& outcome) {
  for (const std::size_t place : planned_.ranks) {
    Host& host = hosts_.all()[place];
    if (!host.problem) continue;
    const std::string reason = host.problem->what();
    host.problem.reset();
    name_lost(outcome, place, reason);
  }
}

bool JobRunner::all_answer() {
  std::atomic<std::size_t> answers{0};
  {
    std::vector<std::jthread> threads;
    for (const std::size_t host : planned_.ranks)
      threads.emplace_back([&, host] {
        try {
          const Host& asked = hosts_.at(host);
          AgentClient(asked.agent, hosts_.key(), asked.name(), options_.interrupted)
              .ping(kAnswerPatience);
          ++answers;
        } catch (const std::exception&) {  // the watch will say
        }
      });
  }
  return answers == planned_.ranks.size();
}

std::string JobRunner::done_name() const {
  return fmt::format("done-{}", runs_);
}

// How rank 0 says that the job ended: all results written, or with an error of its own; mpirun's
// word alone is not enough (relay.cc), and it may name a rank that fell over while others ended.
// Asked again where its host stumbles, until the watch has lost it, too.
std::optional<JobRunner::LastWord> JobRunner::last_word(const HostWatch& watch) const {
  const std::size_t first = planned_.ranks[0];
  const Host& host = hosts_.at(first);
  const std::string tag = files_tag(first), done = done_name();
  const auto deadline = Clock::now() + kJudgement;
  const auto is_lost = [&] {
    const std::vector<std::size_t> lost = watch.lost();
    return std::find(lost.begin(), lost.end(), 0) != lost.end();
  };
  const auto enough = [&] { return is_lost() || Clock::now() >= deadline; };
  while (!enough()) try {
      AgentClient client(host.agent, hosts_.key(), host.name(),
                         [&] { return options_.interrupted() || enough(); });
      const std::vector<StoreFile> files = client.job_files(tag);
      if (const std::optional<int> code = code_behind(done, files))
        return LastWord{.code = *code, .printed = 0};
      const bool is_done = std::any_of(files.begin(), files.end(),
                                       [&](const StoreFile& file) { return file.name == done; });
      if (!is_done) return std::nullopt;
      const std::vector<std::byte> bytes = client.read_job_file(tag, done);
      const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      return LastWord{.code = 0, .printed = std::atoll(text.c_str())};
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kInterrupted && options_.interrupted()) throw;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  return std::nullopt;
}

// Whether all that rank 0 has printed comes through, which mpirun may still hand on: to its end,
// for a number of bytes may be reached with some of Open MPI's.
bool JobRunner::all_printed(Child& mpirun, std::int64_t bytes) {
  const auto deadline = Clock::now() + kHandOn;
  while (mpirun.out() >= 0 && Clock::now() < deadline) relay_some(mpirun);
  return output_.has_all(bytes);
}

// The code of a rank that has ended the job for an error of its own.
std::optional<int> JobRunner::abort_code() const {
  for (const std::size_t place : planned_.ranks) try {
      const Host& host = hosts_.at(place);
      AgentClient client(host.agent, hosts_.key(), host.name(), options_.interrupted);
      const std::vector<StoreFile> files = client.job_files(files_tag(place));
      if (const auto code = code_behind(done_name() + ".abort", files)) return code;
    } catch (const std::exception&) {  // the watch will say
    }
  return std::nullopt;
}

// After mpirun's end or a loss: what rank 0 says counts for more. A host that is lost when its
// results are written has done its part.
void JobRunner::settle(Outcome& outcome, Child& mpirun, const HostWatch& watch) {
  const std::optional<LastWord> said = last_word(watch);
  const bool lost = !outcome.lost_hosts.empty();
  const bool done = said && said->code == 0 && all_printed(mpirun, said->printed);
  if (said && outcome.hung) options_.warn(outcome.reason + ": it was ended");
  if (done && lost) {
    options_.warn("all results were written before");
    outcome = {.code = 0, .lost_hosts = {}, .reason = {}, .explained = true};
  } else if (said && !lost && (done || said->code != 0)) {
    outcome.explained = done && outcome.code != 0;
    outcome.code = said->code;
  } else {
    // Whatever mpirun ends with when it has lost the way to rank 0.
    if (said && !lost) outcome.code = 0;
    judge(outcome, watch);
  }
}

// Ranks that end for want of another may be sooner than the watch: all hosts are asked once more.
void JobRunner::judge(Outcome& outcome, const HostWatch& watch) {
  if (!outcome.lost_hosts.empty()) return;
  const std::optional<int> signal = signal_of(outcome.code);
  const bool explained = messages_.saw_error() && is_own_code(outcome.code);
  const std::string missed = explained ? std::string() : messages_.loss();
  if (outcome.code != kPeerLostCode && outcome.code != 0 && !signal && missed.empty()) return;
  const bool answered = all_answer();
  const auto deadline = Clock::now() + kJudgement;
  while (!answered && watch.lost().empty() && Clock::now() < deadline && !options_.interrupted())
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  take_lost(outcome, watch);
  if (!outcome.lost_hosts.empty()) return;
  // Others may have missed a rank that ended the job for an error, and mpirun may say what they
  // did.
  const bool ended = !signal && missed.empty();
  if (const std::optional<int> own = ended ? abort_code() : std::nullopt) {
    outcome.code = *own;
    return;
  }
  outcome.rank_lost = true;
  const bool not_done = outcome.code == 0;
  if (not_done) outcome.code = kPeerLostCode;
  if (outcome.hung) return;
  outcome.reason = signal            ? fmt::format("a rank was ended by signal {}", *signal)
                   : !missed.empty() ? missed
                   : not_done        ? std::string("mpirun ended before all results had come")
                                     : std::string("a rank fell silent");
}

void JobRunner::recover(Outcome outcome) {
  if (outcome.lost_hosts.empty()) {
    options_.warn(fmt::format("{}; all hosts answer: starting again", outcome.reason));
    output_.restart();
    return;
  }
  while (!outcome.lost_hosts.empty()) {
    for (const std::size_t host : outcome.lost_hosts) {
      if (planned_.stages.ranks < 2) throw stopped(outcome);
      const std::size_t rank = rank_of(host);
      planned_.stages = take_over(planned_.stages, static_cast<int>(rank));
      planned_.ranks.erase(planned_.ranks.begin() + static_cast<std::ptrdiff_t>(rank));
    }
    outcome.lost_hosts.clear();
    supply_heirs(outcome);
  }
  options_.warn(fmt::format("going on with {} host{}: {}", planned_.ranks.size(),
                            planned_.ranks.size() == 1 ? "" : "s", windows_flag(planned_.stages)));
  output_.restart();
}

// After a second loss some second copies are no longer where the plan looks for them. Hosts that
// are found to have gone, too, are `outcome`'s.
void JobRunner::supply_heirs(Outcome& outcome) {
  hosts_.reconnect();
  take_unreached(outcome);
  if (!outcome.lost_hosts.empty()) return;
  try {
    model_.ship(hosts_, by_host(own_slabs(planned_.stages, model_.manifest())), options_.shipping);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kPeerLost) throw;
    hosts_.reconnect();
    take_unreached(outcome);
    if (outcome.lost_hosts.empty()) throw;
  }
}

Error JobRunner::stopped(const Outcome& outcome) const {
  if (outcome.hung && outcome.lost_hosts.empty())
    return {ErrorKind::kPeerLost, outcome.reason,
            fmt::format("stagecoach doctor {} looks at the hosts; then run the same command again",
                        job_.file)};
  if (outcome.lost_hosts.empty())
    return {
        ErrorKind::kPeerLost,
        fmt::format("{}, though its host answers: it may have run out of memory", outcome.reason),
        "dmesg on the hosts says what ended it; lower nodes.*.memory, or run the same command "
        "again"};
  const Host& host = hosts_.at(outcome.lost_hosts.front());
  const bool has_rank = rank_of(outcome.lost_hosts.front()) < planned_.ranks.size();
  const std::string layers = has_rank ? layers_of(outcome.lost_hosts.front()) : "its layers";
  return {ErrorKind::kPeerLost, fmt::format("lost, with {}: {}", layers, outcome.reason),
          fmt::format("bring {} back and run the same command again; without it, take [nodes.{}] "
                      "out of {}, and launch ships {} to others if a host still has them; "
                      "replicas = 2 goes on by itself",
                      host.name(), host.name(), job_.file, layers)};
}

}  // namespace stagecoach
