#include "launcher/mpi_command.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/error.h"
#include "base/host.h"
#include "plan/cluster_toml.h"

namespace stagecoach {
namespace {

// What launch decides or each host has its own of.
constexpr std::array<std::string_view, 5> kOwnOfLaunch{"store", "memory", "device_memory",
                                                       "windows", "report"};
constexpr std::array<const char*, 3> kFiles{"prompts", "text", "ids"};

constexpr std::size_t kConcurrent = 128;  // Open MPI's own

void add_flag(Words& words, const std::string& setting, const std::string& value) {
  std::string flag = "--" + setting;
  std::replace(flag.begin(), flag.end(), '_', '-');
  // A value may begin with a dash, but not be empty, behind a '='.
  if (value.empty()) {
    words.insert(words.end(), {flag, value});
  } else {
    words.push_back(flag + "=" + value);
  }
}

}  // namespace

const char* stdin_setting(const LaunchJob& job) {
  for (const char* name : kFiles) {
    const std::string file = job.run_value(name);
    if (!file.empty() && file != "-") return name;
  }
  return nullptr;
}

Words rank_command(const MpiJob& mpi, std::size_t rank) {
  const RankPlace& place = mpi.ranks[rank];
  Words words{place.binary, mpi.job.command};
  add_flag(words, "store", place.store);
  add_flag(words, "windows", windows_flag(mpi.plan));
  if (place.memory > 0) add_flag(words, "memory", std::to_string(place.memory));
  if (place.device_memory > 0)
    add_flag(words, "device-memory", std::to_string(place.device_memory));
  // As planned: a host whose GPU the file does not name computes with its processor. Windows of the
  // file's own are no plan, unless it names a GPU.
  const bool gpus = std::any_of(mpi.ranks.begin(), mpi.ranks.end(),
                                [](const RankPlace& other) { return other.device_memory > 0; });
  const bool planned = gpus || mpi.job.run_value("windows").empty();
  const std::string device = mpi.job.run_value("device");
  const bool chosen = planned && (device.empty() || (device == "auto" && place.device_memory == 0));
  if (chosen) add_flag(words, "device", place.device_memory > 0 ? "cuda" : "cpu");
  const char* const from_stdin = stdin_setting(mpi.job);
  for (const auto& [setting, values] : mpi.job.run) {
    if (std::find(kOwnOfLaunch.begin(), kOwnOfLaunch.end(), setting) != kOwnOfLaunch.end())
      continue;
    if (setting == "device" && chosen) continue;
    // Layers beside a GPU are nothing to a host whose processor computes all of them.
    if (setting == "cpu_layers" && gpus && place.device_memory == 0) continue;
    if (from_stdin != nullptr && setting == from_stdin) {
      add_flag(words, setting, "-");
      continue;
    }
    for (const std::string& value : values)
      add_flag(words, setting,
               is_path_setting(setting) && place.facts != nullptr
                   ? place.facts->with_home(value, place.address + ": " + setting)
                   : value);
  }
  words.insert(words.end(), place.extra.begin(), place.extra.end());
  return words;
}

Words mpi_command(const MpiJob& mpi) {
  Words words{"mpirun", "--oversubscribe", "--bind-to", "none"};
  if (mpi.as_root) words.emplace_back("--allow-run-as-root");
  const auto set = [&](const char* setting, const std::string& value) {
    words.insert(words.end(), {"--mca", setting, value});
  };
  if (!mpi.shell.empty()) {
    // Daemons stay with whoever started them, so that both notice when the other goes.
    words.emplace_back("--leave-session-attached");
    set("plm_rsh_agent", mpi.shell);
    set("plm_rsh_no_tree_spawn", "1");
    // Daemons that stay with their shells are started all at once or not at all.
    set("plm_rsh_num_concurrent",
        std::to_string(std::max<std::size_t>(mpi.ranks.size(), kConcurrent)));
  }
  if (!mpi.network.empty()) {
    set("oob_tcp_if_include", mpi.network);
    set("btl_tcp_if_include", mpi.network);
  }
  for (std::size_t rank = 0; rank < mpi.ranks.size(); ++rank) {
    if (rank > 0) words.emplace_back(":");
    words.insert(words.end(), {"-np", "1", "--host", mpi.ranks[rank].address});
    const Words own = rank_command(mpi, rank);
    words.insert(words.end(), own.begin(), own.end());
  }
  return words;
}

std::string hostfile(const MpiJob& mpi) {
  std::string text;
  for (const RankPlace& place : mpi.ranks) text += fmt::format("{} slots=1\n", place.address);
  return text;
}

std::string rankfile(const MpiJob& mpi) {
  std::string text;
  for (std::size_t rank = 0; rank < mpi.ranks.size(); ++rank)
    text += fmt::format("rank {}={} slot=*\n", rank, mpi.ranks[rank].address);
  return text;
}

}  // namespace stagecoach
