// Programs that launcher and agent start: without a shell, and with an end.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "launcher/interruption.h"

namespace stagecoach {

using Words = std::vector<std::string>;
// NAME=value, in place of what the own environment has under that name.
using Environment = std::vector<std::string>;

// A running program: ended and waited for at the latest when this goes.
class Child {
 public:
  enum class Streams : std::uint8_t {
    kCapture,  // stdin is empty, or a file; stdout and stderr are pipes
    kAll,      // stdin is a pipe, too
  };
  // argv[0] is looked up in PATH. In a session of its own, so that no Ctrl-C meant for this process
  // reaches it. Throws resource_error when it cannot be started.
  Child(const Words& argv, const Environment& environment, Streams streams, int stdin_file = -1);
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child();

  int in() const { return in_; }
  int out() const { return out_; }
  int err() const { return err_; }
  void close_in();
  void close_out();
  void close_err();

  // To its whole session's process group.
  void signal(int number) const;
  // Exit code, or 128 + the signal that ended it; nullopt while it runs.
  std::optional<int> poll();
  // The same, after at most so long; then it is killed.
  int wait(Seconds patience);

 private:
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
  std::optional<int> code_;
};

struct Finished {
  int code = 0;  // 128 + signal where one ended it
  std::string out, err;
};

// Runs a program to its end, without input; after `patience` it is killed. Nullopt when it cannot
// be started. Throws kInterrupted.
std::optional<Finished> run_program(const Words& argv, Seconds patience,
                                    const Interrupted& interrupted = {});

// The variable that every process of a launched job has; its value is the job's on that host.
inline constexpr const char* kJobVariable = "STAGECOACH_LAUNCH";

// Kills the processes of this user that have that value. The number of them.
int end_processes_of(const std::string& job);

// Those of them that Open MPI has started as ranks. Throws resource_error when it cannot look.
int count_ranks_of(const std::string& job);

// As many open files as the system lets this user have: a host takes several connections.
void raise_descriptor_limit();

// As a shell takes it.
std::string shell_word(const std::string& word);
std::string shell_command(const Words& words);

}  // namespace stagecoach
