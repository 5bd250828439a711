#include "app/run_table.h"

#include <algorithm>
#include <filesystem>

#include "app/device_choice.h"
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
  check_device(job);
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

// The plan and the ranks must mean the same device: what launch plans on a GPU it plans by
// device_memory.
void RunTable::check_device(const LaunchJob& job) const {
  const std::string device = value("--device", std::string("auto"));
  const auto kind = parse_device(device).kind;
  const std::int64_t cpu_layers =
      parse_cpu_layers(value("--cpu-layers", std::string("auto"))).value_or(0);
  if (kind == DeviceChoice::Kind::kCpu) {
    const char* const key = !job.run_value("device_memory").empty() ? "device_memory"
                            : cpu_layers > 0                        ? "cpu_layers"
                                                                    : nullptr;
    if (key != nullptr)
      throw usage_error(fmt::format("{} is of GPUs, and run.device is \"cpu\"", job.run_place(key)),
                        fmt::format("remove {}, or device", key));
    return;
  }
  // Without a plan ranks find their GPUs themselves.
  if (!job.run_value("windows").empty()) return;
  const bool all = !job.run_value("device_memory").empty();
  const auto has_gpu = [&](const HostSpec& host) { return all || host.on_device(); };
  if (cpu_layers > 0 && std::ranges::none_of(job.cluster.hosts, has_gpu))
    throw usage_error(
        fmt::format("{} = {} needs a GPU for the other layers: no host has device_memory",
                    job.run_place("cpu_layers"), cpu_layers),
        "device_memory = \"8GiB\" in [nodes.NAME], or remove cpu_layers");
  if (kind != DeviceChoice::Kind::kCuda) return;
  for (const HostSpec& host : job.cluster.hosts)
    if (!has_gpu(host))
      throw usage_error(
          fmt::format("{} = \"{}\": nodes.{} has no device_memory, and would be planned without "
                      "its GPU",
                      job.run_place("device"), device, host.name),
          fmt::format("device_memory = \"8GiB\" in [nodes.{}] or, for all, in [run]; or remove "
                      "device",
                      host.name));
}

}  // namespace stagecoach
