#include "app/run_table.h"

#include <filesystem>

#include "app/settings.h"
#include "base/error.h"

namespace stagecoach {

RunTable::RunTable(const LaunchJob& job) : parent_("", "stagecoach") {
  command_ = (job.command == "score"  ? score_command
              : job.command == "time" ? time_command
                                      : generate_command)(parent_);
  apply_job(*command_.app, job.file);
  command_.check();
  if (const std::string rounds = value("--rounds", std::string());
      rounds != "auto" && value("--windows", std::string()).empty())
    throw usage_error(
        fmt::format("{}: run.rounds: launch plans rounds and windows itself", job.file),
        "remove it, or say run.windows, too");
  check_files(job);
  // A score's fits any plan.
  if (job.replicas > 1 && job.command != "score" && !value("--checkpoint", std::string()).empty())
    throw usage_error(fmt::format("{}: run.checkpoint and launch.replicas: a text's checkpoint "
                                  "fits one plan, and a lost host changes it",
                                  job.file),
                      "remove run.checkpoint: launch keeps the tokens that were drawn");
  if (job.replicas > 1 && job.cluster.hosts.size() < 2)
    throw usage_error(fmt::format("{}: replicas = 2 needs two hosts that take part", job.file));
}

void RunTable::check_files(const LaunchJob& job) const {
  for (const char* const flag : {"--prompts", "--text", "--ids"}) {
    const std::string file = value(flag, std::string());
    if (file == "-")
      throw usage_error(
          fmt::format("{}: {} = \"-\": a launch may have to read it twice", job.file, flag),
          "a file");
    if (!file.empty() && !std::filesystem::is_regular_file(file))
      throw data_error(fmt::format("{}: {}: '{}' is not a file", job.file, flag, file),
                       "check [run]");
  }
}

}  // namespace stagecoach
