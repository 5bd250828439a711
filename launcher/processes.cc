#include "launcher/processes.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <utility>

#include "base/error.h"

extern char** environ;

namespace stagecoach {
namespace {

constexpr std::size_t kMostOutput = std::size_t{4} << 20;

struct Pipe {
  Pipe() {
    if (::pipe2(ends.data(), O_CLOEXEC) != 0)
      throw resource_error(fmt::format("no pipe: {}", std::strerror(errno)));
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  ~Pipe() {
    for (const int end : ends)
      if (end >= 0) ::close(end);
  }
  int take(int end) { return std::exchange(ends[static_cast<std::size_t>(end)], -1); }
  std::array<int, 2> ends{-1, -1};
};

void close_file(int& file) {
  if (file >= 0) ::close(std::exchange(file, -1));
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

std::vector<std::string> merged_environment(const Environment& changes) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const std::string_view name = text.substr(0, text.find('=') + 1);
    const bool changed =
        std::any_of(changes.begin(), changes.end(),
                    [&](const std::string& change) { return change.starts_with(name); });
    if (!changed) all.emplace_back(text);
  }
  all.insert(all.end(), changes.begin(), changes.end());
  return all;
}

// Reads what is there; false at the end of the file.
bool drain(int file, std::string& text) {
  std::array<char, 65536> buffer;
  const ssize_t size = ::read(file, buffer.data(), buffer.size());
  if (size < 0) return errno == EINTR || errno == EAGAIN;
  if (text.size() < kMostOutput) text.append(buffer.data(), static_cast<std::size_t>(size));
  return size > 0;
}

// Calls visit(pid, its variables) for those that are there now; one may start another meanwhile.
// False when there were too many files open to look at all of them.
template <typename Visit>
bool for_each_process_of(const std::string& job, const Visit& visit) {
  const std::string wanted = fmt::format("{}={}", kJobVariable, job);
  const auto too_many = [](int error) { return error == EMFILE || error == ENFILE; };
  bool complete = true;
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/proc", error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename();
    if (!std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isdigit(c) != 0; }))
      continue;
    errno = 0;
    std::ifstream file(entry->path() / "environ", std::ios::binary);
    if (!file && too_many(errno)) complete = false;
    std::vector<std::string> variables;
    for (std::string variable; std::getline(file, variable, '\0');)
      variables.push_back(std::move(variable));
    if (std::find(variables.begin(), variables.end(), wanted) != variables.end())
      visit(static_cast<pid_t>(std::stol(name)), variables);
  }
  return complete && !too_many(error.value());
}

int end_some_of(const std::string& job) {
  int ended = 0;
  for_each_process_of(job, [&](pid_t pid, const std::vector<std::string>&) {
    if (pid != ::getpid() && ::kill(pid, SIGKILL) == 0) ++ended;
  });
  return ended;
}

}  // namespace

Child::Child(const Words& argv, const Environment& environment, Streams streams, int stdin_file) {
  STAGECOACH_CHECK(!argv.empty());
  std::optional<Pipe> in, out, err;
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  out.emplace();
  err.emplace();
  if (streams == Streams::kAll) {
    in.emplace();
    posix_spawn_file_actions_adddup2(&actions, in->ends[0], 0);
  } else if (stdin_file >= 0) {
    posix_spawn_file_actions_adddup2(&actions, stdin_file, 0);
  } else {
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  }
  posix_spawn_file_actions_adddup2(&actions, out->ends[1], 1);
  posix_spawn_file_actions_adddup2(&actions, err->ends[1], 2);
  // Sockets are nobody else's: a copy in a child would keep them open.
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  sigset_t defaults, none;
  sigemptyset(&none);
  sigemptyset(&defaults);
  for (const int number : {SIGINT, SIGTERM, SIGPIPE, SIGXFSZ, SIGCHLD})
    sigaddset(&defaults, number);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  Words words = argv;
  std::vector<std::string> variables = merged_environment(environment);
  const int error = ::posix_spawnp(&pid_, argv.front().c_str(), &actions, &attributes,
                                   pointers(words).data(), pointers(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    pid_ = -1;
    throw resource_error(fmt::format("cannot start {}: {}", argv.front(), std::strerror(error)));
  }
  if (in) in_ = in->take(1);
  if (out) out_ = out->take(0);
  if (err) err_ = err->take(0);
}

Child::~Child() {
  if (pid_ < 0) return;
  if (!poll()) {
    signal(SIGKILL);
    wait(Seconds(60));
  }
  close_in();
  close_out();
  close_err();
}

void Child::close_in() {
  close_file(in_);
}
void Child::close_out() {
  close_file(out_);
}
void Child::close_err() {
  close_file(err_);
}

void Child::signal(int number) const {
  if (!code_) ::kill(-pid_, number);
}

std::optional<int> Child::poll() {
  if (code_) return code_;
  int status = 0;
  const pid_t ended = ::waitpid(pid_, &status, WNOHANG);
  if (ended == pid_)
    code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  else if (ended < 0 && errno == ECHILD)  // whoever started this process has it ignore its children
    code_ = 0;
  return code_;
}

int Child::wait(Seconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  auto pause = std::chrono::milliseconds(1);
  while (!poll()) {
    if (std::chrono::steady_clock::now() >= deadline) signal(SIGKILL);
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, std::chrono::milliseconds(50));
  }
  return *code_;
}

std::optional<Finished> run_program(const Words& argv, Seconds patience,
                                    const Interrupted& interrupted) try {
  Child child(argv, {}, Child::Streams::kCapture);
  const auto deadline = std::chrono::steady_clock::now() + patience;
  Finished finished;
  while (child.out() >= 0 || child.err() >= 0) {
    throw_if_interrupted(interrupted);
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      child.signal(SIGKILL);
      break;
    }
    std::array<pollfd, 2> files{pollfd{child.out(), POLLIN, 0}, pollfd{child.err(), POLLIN, 0}};
    ::poll(files.data(), files.size(), static_cast<int>(std::min<std::int64_t>(left.count(), 200)));
    if (files[0].revents != 0 && !drain(child.out(), finished.out)) child.close_out();
    if (files[1].revents != 0 && !drain(child.err(), finished.err)) child.close_err();
    // A daemon that it leaves behind may keep the pipes.
    if (child.poll() && files[0].revents == 0 && files[1].revents == 0) break;
  }
  finished.code =
      child.wait(std::max(Seconds(0.1), Seconds(deadline - std::chrono::steady_clock::now())));
  return finished;
} catch (const Error& error) {
  if (error.kind() == ErrorKind::kInterrupted) throw;
  return std::nullopt;
}

int end_processes_of(const std::string& job) {
  constexpr int kMostRounds = 20;
  int ended = 0;
  for (int round = 0; round < kMostRounds; ++round) {
    const int some = end_some_of(job);
    // One that is being started shows no environment for a moment.
    if (some == 0 && round > 0) break;
    ended = std::max(ended, some);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // until those have gone
  }
  return ended;
}

int count_ranks_of(const std::string& job) {
  int ranks = 0;
  const bool complete =
      for_each_process_of(job, [&](pid_t, const std::vector<std::string>& variables) {
        ranks += std::any_of(variables.begin(), variables.end(), [](const std::string& variable) {
          return variable.starts_with("OMPI_COMM_WORLD_RANK=");
        });
      });
  if (!complete) throw resource_error("too many open files to look for the job's ranks");
  return ranks;
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

std::string shell_word(const std::string& word) {
  const bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 ||
           std::string_view("_-./:=,@%+").find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (plain) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

std::string shell_command(const Words& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + shell_word(word);
  return text;
}

}  // namespace stagecoach
