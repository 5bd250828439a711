// Flags, environment and job file as one: flag, then STAGECOACH_ variable, then [run] of --job,
// then default. Every long flag of a command is a key of the job file with _ for -.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "kernels/include/kv_page.h"
#include "pipeline/pass_checkpoint.h"
#include "plan/cluster_spec.h"
#include "store/layer_store.h"

namespace stagecoach {

// The flags that every run of a model has (docs/cli.md).
struct RunSettings {
  std::string store;
  int threads = 0;               // 0: allowed cores ÷ ranks on this host
  std::int64_t micro_batch = 0;  // tokens; 0: as ranks agree (job_plan.h)
  std::string windows;           // "0:5,5:12": empty: balanced by bytes
  std::string rounds = "auto";   // windows of each rank
  std::string memory;            // of each rank: "4GiB"; empty: what the host has free
  std::string device_memory;     // likewise of its device
  std::string checkpoint;        // directory; empty: nothing is kept
  std::string checkpoint_keeps = "passes";
  CheckpointCare checkpoint_care;  // of a launch
  std::string job;                 // the job file, for what stands there besides flags
  std::string device = "auto";
  std::string cpu_layers = "auto";  // of each rank that computes on a GPU
  std::string verify = "first";
  std::string wire = "f32";
  std::string kv = "f16";
  std::string activations = "auto";
  std::string report;        // directory
  double peer_timeout = 6;   // seconds of silence
  double disk_timeout = 60;  // seconds without a byte
  bool json = false, quiet = false, verbose = false;

  VerifyMode verify_mode() const;
  // Values of passes on disk; else a checkpoint is the tokens that were drawn.
  bool keeps_passes() const { return !checkpoint.empty() && checkpoint_keeps == "passes"; }
  KvType kv_type() const;
  std::optional<int> rounds_per_rank() const;  // nullopt: auto
};

// "auto" (nullopt) or a number. Throws usage_error.
std::optional<std::int64_t> parse_cpu_layers(const std::string& text);

// Adds the flags of RunSettings, --job included.
void add_run_flags(CLI::App& command, RunSettings& settings);
// All of them but those that `time` takes lists of: --store, --threads, --micro-batch, --windows.
void add_fixed_run_flags(CLI::App& command, RunSettings& settings);

// Those of them that `plan` has, too: --micro-batch; --cpu-layers; --kv and --activations.
void add_micro_batch_flag(CLI::App& command, RunSettings& settings);
std::string micro_batch_help();
void add_cpu_layers_flag(CLI::App& command, RunSettings& settings);
void add_type_flags(CLI::App& command, RunSettings& settings);

// --checkpoint, of commands whose work can go on: score and generate.
void add_checkpoint_flag(CLI::App& command, RunSettings& settings);
// --checkpoint-keeps, of generate.
void add_checkpoint_keeps_flag(CLI::App& command, RunSettings& settings);

// Fills in what the command line left open, from environment and job file. Throws usage_error with
// file, line and column for an unknown key or a value of the wrong type.
void apply_environment_and_job(CLI::App& command);

// The second half of that: [run] of a job file.
void apply_job(CLI::App& command, const std::string& file);

// The hosts that a job file describes. Throws usage_error with file, line and column.
ClusterSpec job_cluster(const std::string& file);

// Validators that take a whole decimal number and nothing else (CLI11's own take 010 as 8, 1.5 as
// 1, and nan as anything).
CLI::Validator integer_in(std::int64_t low, std::int64_t high);
CLI::Validator unsigned_integer();
CLI::Validator number_in(double low, double high);

// "--prompt" and friends: throws usage_error unless exactly one of the named flags was given.
void require_exactly_one(const CLI::App& command, std::initializer_list<const char*> flags);
// Throws usage_error naming the flag unless it has a value.
void require_flag(const CLI::App& command, const char* flag);

}  // namespace stagecoach
