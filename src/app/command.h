// One subcommand: its flags and what it does.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>

namespace stagecoach {

// Adds a subcommand; `check` and `run` are called after flags, environment and job file have been
// read, and run's result is the exit code. Each command lives in its own file.
using CommandRunner = std::function<int()>;
struct Command {
  CLI::App* app = nullptr;
  CommandRunner run;
  bool parallel = false;  // under mpirun its processes are ranks of one job
  // Throws usage_error for flags that do not go together; launch asks before it reaches a host.
  std::function<void()> check = {};
};

Command import_command(CLI::App& parent);
Command create_command(CLI::App& parent);
Command list_command(CLI::App& parent);
Command inspect_command(CLI::App& parent);
Command verify_command(CLI::App& parent);
Command tokenize_command(CLI::App& parent);
Command generate_command(CLI::App& parent);
Command score_command(CLI::App& parent);
Command time_command(CLI::App& parent);
Command report_command(CLI::App& parent);
Command probe_command(CLI::App& parent);
Command plan_command(CLI::App& parent);
Command launch_command(CLI::App& parent);
Command doctor_command(CLI::App& parent);
Command agent_command(CLI::App& parent);
Command agent_shell_command(CLI::App& parent);

// The whole program: parses, runs, prints one message for an error. Returns the exit code.
int run_stagecoach(int argc, char** argv);

}  // namespace stagecoach
