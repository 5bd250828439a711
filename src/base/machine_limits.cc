#include "base/machine_limits.h"

#include <sys/stat.h>
#include <sys/utsname.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "base/file.h"
#include "base/host.h"
#include "base/json.h"
#include "base/log.h"

namespace stagecoach {
namespace {

constexpr const char* kFormat = "stagecoach-limits";
constexpr std::int64_t kVersion = 2;
constexpr std::int64_t kMaxFileBytes = 1 << 20;
constexpr std::int64_t kMaxThreads = 1 << 20;
// Removable disks and dynamic hosts come and go: the newest stay.
constexpr std::size_t kMaxEntries = 256;

using OrderedJson = nlohmann::ordered_json;

OrderedJson rate_json(const ThreadedRate& rate) {
  return {{"one_thread", rate.one_thread}, {"all_threads", rate.all_threads}};
}

OrderedJson dot_json(const DotLimit& dot) {
  OrderedJson json = rate_json(dot.rate);
  json["instructions"] = dot.instructions;
  return json;
}

double positive(const JsonObject& object, const char* key) {
  const double value = object.number(key);
  if (value > 0) return value;  // JSON has no NaN
  throw data_error(
      fmt::format("{}: {}: expected a positive number, found {}", object.where(), key, value));
}

ThreadedRate parse_rate(const JsonObject& object) {
  object.only({"one_thread", "all_threads"});
  return {positive(object, "one_thread"), positive(object, "all_threads")};
}

DotLimit parse_dot(const JsonObject& object) {
  object.only({"one_thread", "all_threads", "instructions"});
  return {{positive(object, "one_thread"), positive(object, "all_threads")},
          object.string("instructions")};
}

DiskLimit parse_disk(const JsonObject& object) {
  object.only({"device", "path", "bytes_per_second", "probed_at"});
  const Json& device = object.at("device");
  if (!device.is_number_unsigned())
    throw data_error(fmt::format("{}: device: expected a whole number from 0 on", object.where()));
  return {device.get<std::uint64_t>(), object.string("path"), positive(object, "bytes_per_second"),
          object.string("probed_at")};
}

LinkLimit parse_link(const JsonObject& object) {
  object.only({"to", "latency_seconds", "bytes_per_second"});
  return {object.string("to"), positive(object, "latency_seconds"),
          positive(object, "bytes_per_second")};
}

DeviceLimit parse_device_limit(const JsonObject& object) {
  object.only({"label", "memory_bytes_per_second", "to_device_bytes_per_second",
               "from_device_bytes_per_second", "f32_operations_per_second",
               "f16_operations_per_second", "bf16_operations_per_second"});
  DeviceLimit device{.label = object.string("label"),
                     .memory = positive(object, "memory_bytes_per_second"),
                     .to_device = positive(object, "to_device_bytes_per_second"),
                     .from_device = positive(object, "from_device_bytes_per_second"),
                     .f32 = positive(object, "f32_operations_per_second"),
                     .f16 = positive(object, "f16_operations_per_second"),
                     .bf16 = {}};
  if (!object.at("bf16_operations_per_second").is_null())
    device.bf16 = positive(object, "bf16_operations_per_second");
  return device;
}

template <typename T>
std::vector<T> parse_list(const JsonObject& parent, const char* key,
                          T (*parse)(const JsonObject&)) {
  std::vector<T> list;
  for (const Json& item : parent.array(key))
    list.push_back(
        parse(JsonObject(item, fmt::format("{}: {}[{}]", parent.where(), key, list.size()))));
  return list;
}

// `found` in front of those of `old` that are about something else.
template <typename T, typename Key>
void keep_others(std::vector<T>& found, const std::vector<T>& old, Key key) {
  const std::size_t fresh = found.size();
  for (const T& entry : old) {
    const bool replaced =
        std::any_of(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(fresh),
                    [&](const T& f) { return f.*key == entry.*key; });
    if (!replaced && found.size() < kMaxEntries) found.push_back(entry);
  }
}

// Throws data_error on a damaged file.
std::optional<MachineLimits> read_limits_file(const std::filesystem::path& file) {
  std::error_code trouble;
  if (file.empty() || !std::filesystem::exists(file, trouble)) return std::nullopt;
  return parse_limits(read_text_file(file, kMaxFileBytes), file.string(), cpu_model());
}

// The variable's value, empty when it is not set.
std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

}  // namespace

double ThreadedRate::of(std::int64_t threads) const {
  return std::min(all_threads, static_cast<double>(threads) * one_thread);
}

std::optional<double> MachineLimits::disk_rate(const std::filesystem::path& path) const {
  const auto device = device_of(path);
  for (const DiskLimit& disk : disks)
    if (device && disk.device == *device) return disk.bytes_per_second;
  return std::nullopt;
}

std::optional<double> MachineLimits::network_latency(std::string_view host) const {
  for (const LinkLimit& link : links)
    if (link.to == host) return link.latency_seconds;
  return std::nullopt;
}

const DeviceLimit* MachineLimits::device(std::string_view label) const {
  const auto found = std::find_if(devices.begin(), devices.end(),
                                  [&](const DeviceLimit& device) { return device.label == label; });
  return found == devices.end() ? nullptr : &*found;
}

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  utsname system{};
  return ::uname(&system) == 0 ? fmt::format("unknown {}", system.machine) : "unknown";
}

std::string timestamp_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  return std::string(text, std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc));
}

std::optional<std::uint64_t> device_of(const std::filesystem::path& path) {
  struct stat status {};
  if (::stat(nearest_existing(path).c_str(), &status) != 0) return std::nullopt;
  return status.st_dev;
}

std::filesystem::path limits_file() {
  std::filesystem::path folder = variable("STAGECOACH_CACHE");
  if (folder.empty()) folder = user_folder("XDG_CACHE_HOME", ".cache");
  return folder.empty() ? folder : folder / "limits.json";
}

std::string limits_json(const MachineLimits& limits) {
  OrderedJson disks = OrderedJson::array(), links = OrderedJson::array(),
              devices = OrderedJson::array();
  for (const DiskLimit& disk : limits.disks)
    disks.push_back({{"device", disk.device},
                     {"path", disk.path},
                     {"bytes_per_second", disk.bytes_per_second},
                     {"probed_at", disk.probed_at}});
  for (const LinkLimit& link : limits.links)
    links.push_back({{"to", link.to},
                     {"latency_seconds", link.latency_seconds},
                     {"bytes_per_second", link.bytes_per_second}});
  for (const DeviceLimit& device : limits.devices)
    devices.push_back(
        {{"label", device.label},
         {"memory_bytes_per_second", device.memory},
         {"to_device_bytes_per_second", device.to_device},
         {"from_device_bytes_per_second", device.from_device},
         {"f32_operations_per_second", device.f32},
         {"f16_operations_per_second", device.f16},
         {"bf16_operations_per_second", device.bf16 ? OrderedJson(*device.bf16) : nullptr}});
  const OrderedJson json{{"format", kFormat},
                         {"version", kVersion},
                         {"cpu", limits.cpu},
                         {"isa", limits.isa},
                         {"threads", limits.threads},
                         {"probed_at", limits.probed_at},
                         {"memory_bytes_per_second", rate_json(limits.memory)},
                         {"f32_operations_per_second", dot_json(limits.f32)},
                         {"bf16_operations_per_second", dot_json(limits.bf16)},
                         {"int8_operations_per_second", dot_json(limits.int8)},
                         {"disks", disks},
                         {"links", links},
                         {"devices", devices}};
  return json.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

std::optional<MachineLimits> parse_limits(std::string_view text, const std::string& source,
                                          const std::string& cpu) {
  const Json json = parse_json(text, source);
  const JsonObject object(json, source);
  const std::string format = object.string("format");
  const std::int64_t version = object.integer("version");
  if (format != kFormat || version != kVersion) {
    spdlog::debug("{} is left alone: expected format {} version {}, found {} version {}", source,
                  kFormat, kVersion, Json(format).dump(-1, ' ', true), version);
    return std::nullopt;
  }
  object.only({"format", "version", "cpu", "isa", "threads", "probed_at", "memory_bytes_per_second",
               "f32_operations_per_second", "bf16_operations_per_second",
               "int8_operations_per_second", "disks", "links", "devices"});
  MachineLimits limits{.cpu = object.string("cpu"),
                       .isa = object.string("isa"),
                       .threads = object.integer_in("threads", 1, kMaxThreads),
                       .probed_at = object.string("probed_at"),
                       .memory = parse_rate(object.object("memory_bytes_per_second")),
                       .f32 = parse_dot(object.object("f32_operations_per_second")),
                       .bf16 = parse_dot(object.object("bf16_operations_per_second")),
                       .int8 = parse_dot(object.object("int8_operations_per_second")),
                       .disks = parse_list(object, "disks", parse_disk),
                       .links = parse_list(object, "links", parse_link),
                       .devices = parse_list(object, "devices", parse_device_limit)};
  if (limits.cpu == cpu) return limits;
  spdlog::debug("{} is left alone: it is of the processor {}, this is {}", source,
                Json(limits.cpu).dump(-1, ' ', true), cpu);
  return std::nullopt;
}

std::optional<MachineLimits> cached_limits() {
  try {
    return read_limits_file(limits_file());
  } catch (const Error& error) {
    static std::atomic<bool> warned{false};  // planner and tables ask in turn
    if (!warned.exchange(true))
      spdlog::warn(
          "the limits of this machine cannot be read, so plans and tables do without: {}; "
          "`stagecoach probe` measures them again",
          error.what());
    return std::nullopt;
  }
}

void save_limits(MachineLimits limits) {
  const std::filesystem::path file = limits_file();
  if (file.empty())
    throw resource_error("there is no folder to keep limits in: HOME is not set",
                         "set STAGECOACH_CACHE to a folder");
  try {
    if (const auto old = read_limits_file(file)) {
      keep_others(limits.disks, old->disks, &DiskLimit::device);
      keep_others(limits.links, old->links, &LinkLimit::to);
    }
  } catch (const Error& error) {
    spdlog::debug("{} is written anew: {}", file.string(), error.what());
  }
  std::error_code error;
  std::filesystem::create_directories(file.parent_path(), error);
  if (error)
    throw resource_error(
        fmt::format("cannot create {}: {}", file.parent_path().string(), error.message()),
        "STAGECOACH_CACHE names another folder");
  write_file_atomically(file, limits_json(limits));
}

std::optional<double> cached_disk_rate(const std::filesystem::path& path) {
  const auto limits = cached_limits();
  return limits ? limits->disk_rate(path) : std::nullopt;
}

std::optional<double> cached_network_latency(std::string_view host) {
  const auto limits = cached_limits();
  return limits ? limits->network_latency(host) : std::nullopt;
}

}  // namespace stagecoach
