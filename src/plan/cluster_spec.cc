#include "plan/cluster_spec.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/host.h"
#include "base/toml_file.h"
#include "plan/cluster_toml.h"

namespace stagecoach {
namespace {

constexpr double kGiga = 1e9, kMicro = 1e-6;

HostSpec read_host(const std::string& file, const std::string& name, const toml::node& node) {
  const TomlTable table(file, "nodes." + name, node);
  table.only({"address", "memory", "device_memory", "store", "memory_gb_per_s", "f32_gflop_per_s",
              "bf16_gflop_per_s", "int8_gop_per_s", "disk_gb_per_s", "device_gb_per_s",
              "device_gflop_per_s", "bus_gb_per_s"});
  const std::string store = table.string_or("store", "");
  if (store.starts_with("~") && !in_a_home(store))
    throw toml_error(file, *node.as_table()->get("store"),
                     fmt::format("nodes.{}.store: '{}': expected an absolute path, or one in the "
                                 "home of the user there, like ~/model",
                                 name, store));
  return {.name = name,
          .address = table.string_or("address", ""),
          .memory = table.bytes_or("memory", 0),
          .device_memory = table.bytes_or("device_memory", 0),
          .store = store,
          .rates = {.memory = table.rate_or("memory_gb_per_s", 0) * kGiga,
                    .f32 = table.rate_or("f32_gflop_per_s", 0) * kGiga,
                    .bf16 = table.rate_or("bf16_gflop_per_s", 0) * kGiga,
                    .int8 = table.rate_or("int8_gop_per_s", 0) * kGiga,
                    .disk = table.rate_or("disk_gb_per_s", 0) * kGiga},
          .device = {.memory = table.rate_or("device_gb_per_s", 0) * kGiga,
                     .halves = table.rate_or("device_gflop_per_s", 0) * kGiga,
                     .bus = table.rate_or("bus_gb_per_s", 0) * kGiga}};
}

NetworkSpec read_network(const std::string& file, const toml::node& node) {
  const TomlTable table(file, "network", node);
  table.only({"latency_us", "gb_per_s", "subnet"});
  const NetworkSpec usual;
  return {.latency = table.rate_or("latency_us", usual.latency / kMicro) * kMicro,
          .bytes_per_second = table.rate_or("gb_per_s", usual.bytes_per_second / kGiga) * kGiga,
          .subnet = table.string_or("subnet", "")};
}

// toml++ sorts keys; the file's order is the order of ranks.
bool earlier(const toml::source_position& a, const toml::source_position& b) {
  return a.line != b.line ? a.line < b.line : a.column < b.column;
}

}  // namespace

HostRates HostRates::or_else(const HostRates& other) const {
  const auto either = [](double mine, double others) { return mine > 0 ? mine : others; };
  return {.memory = either(memory, other.memory),
          .f32 = either(f32, other.f32),
          .bf16 = either(bf16, other.bf16),
          .int8 = either(int8, other.int8),
          .disk = either(disk, other.disk)};
}

DeviceRates DeviceRates::or_else(const DeviceRates& other) const {
  const auto either = [](double mine, double others) { return mine > 0 ? mine : others; };
  return {.memory = either(memory, other.memory),
          .halves = either(halves, other.halves),
          .bus = either(bus, other.bus)};
}

DeviceRates device_rates(const std::vector<DeviceLimit>& devices) {
  if (devices.empty()) return {};
  const DeviceLimit& device = devices.front();
  return {.memory = device.memory, .halves = device.f16, .bus = device.to_device};
}

const HostSpec* ClusterSpec::find(const std::string& name) const {
  const auto host = std::find_if(hosts.begin(), hosts.end(),
                                 [&](const HostSpec& spec) { return spec.name == name; });
  return host == hosts.end() ? nullptr : &*host;
}

void check_device_rates(const std::string& origin, const HostSpec& host) {
  if (!host.on_device() || host.device.complete()) return;
  throw usage_error(
      fmt::format("{}, and nothing says how fast its GPU is", origin),
      "stagecoach probe there; or device_gb_per_s, device_gflop_per_s (of 16-bit products) and "
      "bus_gb_per_s: data sheets will do, as 360, 50000 and 12 of an RTX 3060; or leave "
      "device_memory out");
}

ClusterSpec read_cluster(const std::string& file, const std::string& what,
                         const std::string& flag) {
  return cluster_of(file, read_toml_file(file, what, flag));
}

void check_job_tables(const std::string& file, const toml::table& root) {
  for (const auto& [key, node] : root)
    if (key.str() != "run" && key.str() != "nodes" && key.str() != "network" &&
        key.str() != "launch")
      throw toml_error(
          file, node,
          fmt::format("unknown table or key '{}'; a job has [run], [launch], [nodes] and [network]",
                      key.str()));
}

bool is_path_setting(std::string_view key) {
  constexpr std::array<std::string_view, 7> kPaths{"store", "report", "checkpoint", "prompts",
                                                   "text",  "ids",    "csv"};
  return std::find(kPaths.begin(), kPaths.end(), key) != kPaths.end();
}

std::vector<std::string> run_values(const std::string& file, std::string_view key,
                                    const toml::node& node) {
  std::vector<std::string> values = toml_texts(file, node);
  if (!is_path_setting(key)) return values;
  for (std::string& value : values) value = with_home(value, fmt::format("{}: {}", file, key));
  return values;
}

ClusterSpec cluster_of(const std::string& file, const toml::table& root) {
  ClusterSpec cluster;
  if (const toml::node* network = root.get("network"))
    cluster.network = read_network(file, *network);
  const toml::node* const nodes = root.get("nodes");
  if (nodes == nullptr) return cluster;
  if (!nodes->is_table())
    throw toml_error(file, *nodes, "nodes: expected a table for each host: [nodes.HOST]");
  std::vector<std::pair<toml::source_position, HostSpec>> found;
  for (const auto& [name, node] : *nodes->as_table())
    found.emplace_back(node.source().begin, read_host(file, std::string(name.str()), node));
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return earlier(a.first, b.first); });
  for (auto& [position, host] : found) cluster.hosts.push_back(std::move(host));
  return cluster;
}

}  // namespace stagecoach
