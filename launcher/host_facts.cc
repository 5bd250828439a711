#include "launcher/host_facts.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/host.h"
#include "base/machine_limits.h"
#include "base/version.h"
#include "launcher/processes.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

// "mpirun (Open MPI) 4.1.4" → "4.1.4"
std::string open_mpi_version(const Interrupted& interrupted) {
  const auto finished = run_program({"mpirun", "--version"}, Seconds(10), interrupted);
  constexpr std::string_view kName = "(Open MPI) ";
  if (!finished || finished->code != 0) return {};
  const std::string line = first_line(finished->out);
  const std::size_t at = line.find(kName);
  return at == std::string::npos ? std::string() : line.substr(at + kName.size());
}

std::vector<std::string> gpus(const Interrupted& interrupted) {
  const auto finished =
      run_program({"nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"},
                  Seconds(10), interrupted);
  std::vector<std::string> names;
  if (!finished || finished->code != 0) return names;
  std::istringstream lines(finished->out);
  for (std::string line; std::getline(lines, line);)
    if (!line.empty()) names.push_back(line);
  return names;
}

std::int64_t link_megabits(const std::string& interface) {
  std::ifstream file("/sys/class/net/" + interface + "/speed");
  std::int64_t megabits = 0;
  return file >> megabits && megabits > 0 ? megabits : 0;
}

std::vector<NetworkInterface> interfaces() {
  std::vector<NetworkInterface> found;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return found;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET ||
        entry->ifa_netmask == nullptr)
      continue;
    if ((entry->ifa_flags & IFF_UP) == 0 || (entry->ifa_flags & IFF_LOOPBACK) != 0) continue;
    const auto* address = reinterpret_cast<const sockaddr_in*>(entry->ifa_addr);
    const auto* mask = reinterpret_cast<const sockaddr_in*>(entry->ifa_netmask);
    char text[INET_ADDRSTRLEN] = {};
    ::inet_ntop(AF_INET, &address->sin_addr, text, sizeof(text));
    found.push_back({.name = entry->ifa_name,
                     .address = text,
                     .prefix = std::popcount(mask->sin_addr.s_addr),
                     .megabits = link_megabits(entry->ifa_name),
                     .is_virtual = is_virtual_interface(entry->ifa_name)});
  }
  ::freeifaddrs(list);
  return found;
}

std::int64_t allowed_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  return ::sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores)
                                                            : ::sysconf(_SC_NPROCESSORS_ONLN);
}

HostRates probed_rates(const MachineLimits& limits, const std::string& store) {
  return {.memory = limits.memory.all_threads,
          .f32 = limits.f32.rate.all_threads,
          .bf16 = limits.bf16.rate.all_threads,
          .int8 = limits.int8.rate.all_threads,
          .disk = store.empty() ? 0 : limits.disk_rate(store).value_or(0)};
}

}  // namespace

bool is_virtual_interface(const std::string& name) {
  constexpr std::array<std::string_view, 10> kStarts{"docker", "br-", "virbr", "veth",    "vnet",
                                                     "lxc",    "lxd", "cni",   "flannel", "podman"};
  return std::any_of(kStarts.begin(), kStarts.end(),
                     [&](std::string_view start) { return name.starts_with(start); });
}

std::string NetworkInterface::network() const {
  in_addr bits{};
  if (::inet_pton(AF_INET, address.c_str(), &bits) != 1) return {};
  const std::uint32_t mask = prefix == 0 ? 0 : ~std::uint32_t{0} << (32 - prefix);
  bits.s_addr = htonl(ntohl(bits.s_addr) & mask);
  char text[INET_ADDRSTRLEN] = {};
  ::inet_ntop(AF_INET, &bits, text, sizeof(text));
  return fmt::format("{}/{}", text, prefix);
}

std::string HostFacts::with_home(const std::string& path, const std::string& what) const {
  if (!in_a_home(path)) return path;
  if (home.empty())
    throw usage_error(fmt::format("{}: '{}': its agent's user has no home folder", what, path),
                      "an absolute path in the job file, or HOME for the agent");
  return fs::path(home + path.substr(1)).lexically_normal();
}

const NetworkInterface* HostFacts::interface_of(const std::string& address) const {
  const auto found =
      std::find_if(interfaces.begin(), interfaces.end(),
                   [&](const NetworkInterface& card) { return card.address == address; });
  return found == interfaces.end() ? nullptr : &*found;
}

Json to_json(const HostFacts& facts) {
  Json cards = Json::array();
  for (const NetworkInterface& card : facts.interfaces)
    cards.push_back({{"name", card.name},
                     {"address", card.address},
                     {"prefix", card.prefix},
                     {"megabits", card.megabits},
                     {"virtual", card.is_virtual}});
  Json gpus = Json::array();
  for (const DeviceLimit& gpu : facts.gpu_rates)
    gpus.push_back({{"label", gpu.label},
                    {"memory", gpu.memory},
                    {"to_device", gpu.to_device},
                    {"from_device", gpu.from_device},
                    {"f32", gpu.f32},
                    {"f16", gpu.f16},
                    {"bf16", gpu.bf16.value_or(0)}});
  const HostRates& rates = facts.rates;
  return {{"version", facts.version},
          {"build", facts.build},
          {"binary", facts.binary},
          {"content", facts.content},
          {"open_mpi", facts.open_mpi},
          {"host", facts.host},
          {"home", facts.home},
          {"cpu", facts.cpu},
          {"isa", facts.isa},
          {"cores", facts.cores},
          {"memory", facts.memory},
          {"free_memory", facts.free_memory},
          {"gpus", facts.gpus},
          {"gpu_rates", gpus},
          {"interfaces", cards},
          {"rates",
           {{"memory", rates.memory},
            {"f32", rates.f32},
            {"bf16", rates.bf16},
            {"int8", rates.int8},
            {"disk", rates.disk}}}};
}

HostFacts facts_from_json(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  HostFacts facts{.version = object.string("version"),
                  .build = object.string("build"),
                  .binary = object.string("binary"),
                  .content = object.string("content"),
                  .open_mpi = object.string("open_mpi"),
                  .host = object.string("host"),
                  .home = object.string_or("home", ""),
                  .cpu = object.string("cpu"),
                  .isa = object.string("isa"),
                  .cores = object.integer("cores"),
                  .memory = object.integer("memory"),
                  .free_memory = object.integer("free_memory"),
                  .gpus = {},
                  .interfaces = {},
                  .rates = {},
                  .gpu_rates = {}};
  for (const Json& gpu : object.array("gpus"))
    if (gpu.is_string()) facts.gpus.push_back(gpu.get<std::string>());
  // An agent of an older build has none.
  if (object.has("gpu_rates"))
    for (const Json& gpu : object.array("gpu_rates")) {
      const JsonObject fields(gpu, where);
      facts.gpu_rates.push_back({.label = fields.string("label"),
                                 .memory = fields.number("memory"),
                                 .to_device = fields.number("to_device"),
                                 .from_device = fields.number("from_device"),
                                 .f32 = fields.number("f32"),
                                 .f16 = fields.number("f16"),
                                 .bf16 = {}});
      if (const double bf16 = fields.number("bf16"); bf16 > 0) facts.gpu_rates.back().bf16 = bf16;
    }
  for (const Json& card : object.array("interfaces")) {
    const JsonObject fields(card, where);
    facts.interfaces.push_back({.name = fields.string("name"),
                                .address = fields.string("address"),
                                .prefix = static_cast<int>(fields.integer_in("prefix", 0, 32)),
                                .megabits = fields.integer("megabits"),
                                .is_virtual = fields.boolean("virtual")});
  }
  const JsonObject rates = object.object("rates");
  facts.rates = {.memory = rates.number("memory"),
                 .f32 = rates.number("f32"),
                 .bf16 = rates.number("bf16"),
                 .int8 = rates.number("int8"),
                 .disk = rates.number("disk")};
  return facts;
}

HostFacts facts_of_this_machine(const std::string& isa, std::int64_t free_memory,
                                const std::string& store, const Interrupted& interrupted) {
  HostFacts facts;
  facts.version = STAGECOACH_VERSION;
  facts.build = STAGECOACH_BUILD;
  facts.binary = fs::read_symlink("/proc/self/exe");
  facts.content = hash_of_build(facts.binary);
  facts.open_mpi = open_mpi_version(interrupted);
  facts.host = host_name("");
  facts.home = home_folder();
  facts.cpu = cpu_model();
  facts.isa = isa;
  facts.cores = allowed_cores();
  facts.memory = ::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE);
  facts.free_memory = free_memory;
  facts.gpus = gpus(interrupted);
  facts.interfaces = interfaces();
  if (const std::optional<MachineLimits> limits = cached_limits()) {
    facts.rates = probed_rates(*limits, store);
    facts.gpu_rates = limits->devices;
  }
  return facts;
}

std::string root_of_build(const std::string& binary) {
  return fs::path(binary).parent_path().parent_path();
}

std::vector<std::string> files_of_build(const std::string& binary) {
  const fs::path root = root_of_build(binary);
  std::vector<std::string> files{fs::relative(binary, root)};
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root / "lib/stagecoach", error))
    if (entry.path().extension() == ".so") files.push_back(fs::relative(entry.path(), root));
  std::sort(files.begin() + 1, files.end());
  return files;
}

std::string hash_of_build(const std::string& binary) {
  StreamingHash all;
  std::vector<std::byte> buffer(std::size_t{1} << 20);
  for (const std::string& name : files_of_build(binary)) {
    const File file = File::open_read(fs::path(root_of_build(binary)) / name);
    const std::int64_t bytes = file.size();
    for (std::int64_t at = 0; at < bytes;) {
      const auto size = static_cast<std::size_t>(
          std::min<std::int64_t>(bytes - at, static_cast<std::int64_t>(buffer.size())));
      file.read_at(at, std::span(buffer).first(size));
      all.update(std::span(buffer).first(size));
      at += static_cast<std::int64_t>(size);
    }
  }
  return hash_to_hex(all.digest());
}

}  // namespace stagecoach
