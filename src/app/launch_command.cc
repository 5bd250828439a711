// launch: a job file on its hosts.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>

#include "app/command.h"
#include "app/output.h"
#include "app/plan_inputs.h"
#include "app/run_table.h"
#include "app/settings.h"
#include "app/signals.h"
#include "base/file.h"
#include "base/log.h"
#include "launcher/agent.h"
#include "launcher/launch.h"
#include "launcher/processes.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

struct LaunchFlags {
  std::string job, state;
  int replicas = 0;
  bool dry_run = false, json = false, quiet = false, verbose = false;
};

std::int64_t file_bytes(const std::string& file) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  return error ? 0 : static_cast<std::int64_t>(size);
}

// Text has about four bytes a token: close enough for a plan.
std::int64_t tokens_of_bytes(std::int64_t bytes) {
  return std::max<std::int64_t>(1, bytes / 4);
}

PlannedWork work_of(const LaunchJob& job, const RunTable& run, std::int64_t context) {
  PlannedWork work{.micro_batch = run.value("--micro-batch", std::int64_t{0}),
                   .activations = run.value("--activations", std::string("auto")),
                   .cpu_layers = parse_cpu_layers(run.value("--cpu-layers", std::string("auto")))};
  RunSettings settings;
  settings.kv = run.value("--kv", std::string("f16"));
  work.kv_type = settings.kv_type();
  if (job.command == "time") {
    work.tokens = run.value("--tokens", std::int64_t{512});
    work.sequences = run.value("--batch", std::int64_t{1});
    work.new_tokens = 1;
  } else if (job.command == "score") {
    const std::string ids = run.value("--ids", std::string());
    work.tokens =
        tokens_of_bytes(file_bytes(ids.empty() ? run.value("--text", std::string()) : ids));
    work.new_tokens = 0;
  } else {
    work.new_tokens = run.value("--max-new-tokens", std::int64_t{128});
    work.tokens =
        tokens_of_bytes(static_cast<std::int64_t>(run.value("--prompt", std::string()).size()));
    if (const std::string file = run.value("--prompts", std::string()); !file.empty()) {
      std::ifstream lines(file);
      std::int64_t count = 0;
      for (std::string line; std::getline(lines, line); ++count)
        work.tokens =
            std::max(work.tokens, tokens_of_bytes(static_cast<std::int64_t>(line.size())));
      work.sequences =
          std::clamp<std::int64_t>(count, 1, run.value("--max-sequences", std::int64_t{32}));
    }
  }
  work.tokens = std::clamp<std::int64_t>(work.tokens, 1, context);
  work.new_tokens = std::min(work.new_tokens, context - work.tokens);
  return work;
}

void write_stderr(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

int launch_job(const LaunchFlags& flags) {
  raise_descriptor_limit();
  setup_logging(flags.verbose ? Verbosity::kVerbose
                : flags.quiet ? Verbosity::kQuiet
                              : Verbosity::kNormal,
                "");
  LaunchJob job = read_launch_job(flags.job);
  if (flags.replicas > 0) job.replicas = flags.replicas;
  const RunTable run(job);
  const fs::path state = flags.state.empty() ? default_state_folder() : fs::absolute(flags.state);
  if (state.empty()) throw usage_error("there is no HOME for the launch's files", "--state DIR");
  if (!flags.dry_run) {  // before hours of work, not after
    check_writable(state);
    if (const std::string report = job.run_value("report"); !report.empty()) check_writable(report);
  }
  std::optional<Progress> progress;  // while slabs are shipped
  LaunchOptions options;
  options.dry_run = flags.dry_run;
  options.json = flags.json;
  options.quiet = flags.quiet;
  options.state = state;
  options.terminal = ::isatty(2) == 1;
  const std::string ids = run.value("--ids", std::string());
  options.text_bytes = file_bytes(ids.empty() ? run.value("--text", std::string()) : ids);
  options.plan = [&](const Manifest& manifest, const ClusterSpec& cluster) {
    const PlanInputs inputs(manifest, work_of(job, run, manifest.spec.max_position_embeddings));
    return plan_cluster(inputs.question(cluster));
  };
  options.own_rates = rates_of_this_machine;
  options.interrupted = [] { return interrupt_requested.load(); };
  options.out = [](std::string_view text) { print(text); };
  options.err = [&](std::string_view text) {
    if (!flags.quiet) write_stderr(text);
  };
  options.messages = [&](std::string_view text) {
    progress.reset();
    write_stderr(text);
  };
  options.note = [&](const std::string& text) {
    progress.reset();
    spdlog::info("{}", text);
  };
  options.warn = [&](const std::string& text) {
    progress.reset();
    spdlog::warn("{}", text);
  };
  options.shipping = [&](std::int64_t done, std::int64_t total) {
    if (!progress) progress.emplace("shipping", ProgressUnit::kBytes, !flags.quiet);
    progress->update(done, total);
  };
  return launch(job, options);
}

}  // namespace

Command launch_command(CLI::App& parent) {
  auto flags = std::make_shared<LaunchFlags>();
  CLI::App* app = parent.add_subcommand("launch",
                                        "Run a job on the hosts that its file names: plans, ships "
                                        "slabs, starts mpirun, goes on without a lost host");
  app->add_option("file", flags->job, "Job file: [launch], [run], [nodes.NAME], [network]")
      ->type_name("JOB.toml")
      ->required();
  app->add_flag("--dry-run", flags->dry_run, "Print plan and command, and change nothing");
  app->add_option("--replicas", flags->replicas,
                  "Hosts that have a slab, 1 or 2 (default: what the file says, else 1)")
      ->check(integer_in(1, 2));
  app->add_option("--state", flags->state,
                  "Folder for the launch's files (default: ~/.local/state/stagecoach)")
      ->type_name("DIR");
  app->add_flag("--json", flags->json, "A dry run's plan and command as one object");
  app->add_flag("--quiet", flags->quiet, "Results, warnings and errors only");
  app->add_flag("--verbose", flags->verbose, "Say more on stderr");
  return {app, [flags] { return launch_job(*flags); }};
}

}  // namespace stagecoach
