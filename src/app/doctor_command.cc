// doctor: what would keep a job's hosts from working together.
#include <memory>

#include "app/command.h"
#include "app/output.h"
#include "app/run_table.h"
#include "app/signals.h"
#include "base/error.h"
#include "base/log.h"
#include "launcher/doctor.h"
#include "launcher/processes.h"

namespace stagecoach {
namespace {

struct DoctorFlags {
  std::string job;
  bool json = false, quick = false, quiet = false;
};

int examine_hosts(const DoctorFlags& flags) {
  raise_descriptor_limit();
  setup_logging(flags.quiet ? Verbosity::kQuiet : Verbosity::kNormal, "");
  const LaunchJob job = read_launch_job(flags.job);
  const RunTable refuses_what_launch_would(job);
  DoctorOptions options{.verify = !flags.quick, .measure = !flags.quick};
  options.interrupted = [] { return interrupt_requested.load(); };
  options.progress = [&](const std::string& step) {
    throw_if_interrupted(options.interrupted);
    spdlog::info("{}", step);
  };
  const DoctorReport report = examine(job, options);
  if (flags.json)
    print_json_line(to_json(report));
  else
    print(as_text(report));
  return report.exit_code();
}

}  // namespace

Command doctor_command(CLI::App& parent) {
  auto flags = std::make_shared<DoctorFlags>();
  CLI::App* app = parent.add_subcommand(
      "doctor",
      "Look at the hosts of a job: what would keep them from it, and the fix; changes nothing");
  app->add_option("file", flags->job, "Job file with [nodes.NAME]")
      ->type_name("JOB.toml")
      ->required();
  app->add_flag("--quick", flags->quick, "Without reading slabs and measuring disks and links");
  app->add_flag("--json", flags->json, "One object");
  app->add_flag("--quiet", flags->quiet, "No progress on stderr");
  return {app, [flags] { return examine_hosts(*flags); }};
}

}  // namespace stagecoach
