#include "launcher/job_file.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/host.h"
#include "base/toml_file.h"
#include "launcher/secure_channel.h"
#include "plan/cluster_toml.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr const char* kExample = "see configs/jobs/gptj-4pc.toml";

Words words_of(const std::string& text) {
  std::istringstream stream(text);
  Words words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

void read_launch_table(const std::string& file, const toml::node& node, LaunchJob& job) {
  const TomlTable table(file, "launch", node);
  table.only({"command", "key", "ssh", "port", "replicas", "restarts"});
  job.command = table.string_or("command", job.command);
  if (job.command != "generate" && job.command != "score" && job.command != "time")
    throw toml_error(
        file, *node.as_table()->get("command"),
        fmt::format("launch.command: expected generate, score or time, found '{}'", job.command));
  job.key = with_home(table.string_or("key", ""), file + ": launch.key");
  job.ssh = words_of(table.string_or("ssh", "ssh"));
  if (job.ssh.empty())
    throw toml_error(file, *node.as_table()->get("ssh"),
                     "launch.ssh: expected a program and its arguments");
  job.port = static_cast<std::uint16_t>(table.integer_or("port", kAgentPort, 1, 65535));
  job.replicas = static_cast<int>(table.integer_or("replicas", 1, 1, 2));
  job.restarts = static_cast<int>(table.integer_or("restarts", job.restarts, 0, 1000));
}

void read_run_table(const std::string& file, const toml::node& node, LaunchJob& job) {
  const toml::table* const run = node.as_table();
  if (run == nullptr) throw toml_error(file, node, "run: expected a table, [run]");
  for (const auto& [key, value] : *run) {
    run_values(file, key.str(), value);  // refuses ~ where this user has no home
    job.run.emplace_back(key.str(), toml_texts(file, value));
    const toml::source_position& at = value.source().begin;
    job.run_places[std::string(key.str())] =
        fmt::format("{}:{}:{}: {}", file, at.line, at.column, key.str());
  }
}

void check_hosts(const LaunchJob& job) {
  if (job.run_value("store").empty())
    throw usage_error(
        fmt::format("{}: run.store is missing: where the model is on this PC, if it is here",
                    job.file),
        kExample);
  if (job.cluster.hosts.empty())
    throw usage_error(fmt::format("{}: there is no [nodes.NAME], no host to run on", job.file),
                      kExample);
  std::set<std::string> addresses;
  for (const HostSpec& host : job.cluster.hosts) {
    // An address becomes a word of mpirun's command line and of ssh's.
    const std::string& address = host.reached_as();
    const bool plain = std::all_of(address.begin(), address.end(), [](unsigned char c) {
      return std::isalnum(c) != 0 || c == '.' || c == '-' || c == '_';
    });
    if (!plain || address.empty() || address.front() == '-')
      throw usage_error(fmt::format("{}: nodes.{}: '{}' is no IPv4 address and no name", job.file,
                                    host.name, address));
    if (!addresses.insert(address).second)
      throw usage_error(fmt::format("{}: two of [nodes] have the address {}", job.file, address));
  }
}

}  // namespace

std::string LaunchJob::run_value(const std::string& name) const {
  for (const auto& [setting, values] : run)
    if (setting == name && values.size() == 1)
      return is_path_setting(name) ? with_home(values.front(), file + ": " + name) : values.front();
  return {};
}

std::string LaunchJob::run_place(const std::string& name) const {
  const auto place = run_places.find(name);
  return place == run_places.end() ? fmt::format("{}: {}", file, name) : place->second;
}

std::string LaunchJob::store_of(const HostSpec& host) const {
  std::string store = host.store;
  for (const auto& [setting, values] : run)
    if (store.empty() && setting == "store" && values.size() == 1) store = values.front();
  return in_a_home(store) ? store : fs::absolute(store).lexically_normal().string();
}

LaunchJob read_launch_job(const std::string& file) {
  const toml::table root = read_toml_file(file, "the job file", "its name");
  LaunchJob job;
  job.file = file;
  check_job_tables(file, root);
  job.ssh = {"ssh"};
  job.port = kAgentPort;
  if (const toml::node* launch = root.get("launch")) read_launch_table(file, *launch, job);
  const toml::node* const run = root.get("run");
  if (run == nullptr)
    throw usage_error(fmt::format("{}: the table [run] is missing", file), kExample);
  read_run_table(file, *run, job);
  job.cluster = cluster_of(file, root);
  // What [nodes] says of GPUs is for jobs that may use them.
  if (job.run_value("device") == "cpu")
    for (HostSpec& host : job.cluster.hosts) host.device_memory = 0;
  check_hosts(job);
  return job;
}

}  // namespace stagecoach
