// probe: this machine's limits and, under mpirun, the network's.
#include <memory>
#include <utility>

#include "app/command.h"
#include "app/disk_probe.h"
#include "app/output.h"
#include "app/rank_process.h"
#include "app/settings.h"
#include "app/signals.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cuda_module.h"
#include "base/archive.h"
#include "base/error.h"
#include "base/log.h"
#include "base/machine_limits.h"
#include "base/version.h"
#include "kernels/include/ops.h"
#include "kernels/probe/probe.h"
#include "pipeline/agreement.h"
#include "pipeline/control_channel.h"
#include "pipeline/network_probe.h"

namespace stagecoach {
namespace {

constexpr std::uint32_t kLimits = archive_magic("LIMS");

struct ProbeFlags {
  std::string store;
  int threads = 0;  // 0: allowed cores
  bool json = false, quick = false, quiet = false, verbose = false;
};

bool interrupted() {
  return interrupt_requested;
}

// A measurement takes tenths of a second; between two of them Ctrl-C is heard.
template <typename Measure>
ThreadedRate probe_threads(int all_threads, const Measure& measure) {
  ThreadedRate rate;
  for (const int threads : {1, all_threads}) {
    if (interrupted()) throw Error(ErrorKind::kInterrupted, "interrupted");
    const double found = measure(threads);
    if (threads == 1) rate.one_thread = found;
    // Other programs can hold several threads back more than one, but not below it.
    rate.all_threads = std::max(rate.one_thread, found);
    if (all_threads == 1) break;
  }
  return rate;
}

ThreadedRate probe_memory(int all_threads, bool quick) {
  return probe_threads(all_threads, [quick](int threads) {
    const std::size_t bytes =
        quick ? std::size_t{64} << 20
              : std::max(std::size_t{256} << 20,
                         static_cast<std::size_t>(threads) * (std::size_t{64} << 20));
    // Short windows pass undisturbed on a busy machine, long ones lose less to the threads'
    // starting on a large one.
    const double brief = probe_memory_read(
        bytes, {.threads = threads, .windows = quick ? 15 : 60, .window_seconds = 0.002});
    if (quick) return brief;
    return std::max(brief, probe_memory_read(bytes, {.threads = threads, .windows = 10}));
  });
}

DotLimit probe_dots(DotType type, int all_threads, bool quick) {
  DotLimit limit;
  limit.rate = probe_threads(all_threads, [&](int threads) {
    ProbeEffort effort{.threads = threads};
    if (quick) effort = {.threads = threads, .windows = 8, .window_seconds = 0.004};
    const DotPeak peak = probe_dot(type, effort);
    limit.instructions = peak.instructions;
    return peak.ops_per_second;
  });
  return limit;
}

// A folder that was asked for must be measured; the current one is just where we happen to be.
std::optional<DiskProbe> probe_disk_of(const ProbeFlags& flags) {
  DiskProbeOptions options{.interrupted = interrupted};
  if (flags.quick) {
    options.read_bytes = std::int64_t{128} << 20;
    options.temporary_bytes = std::int64_t{64} << 20;
    options.read_seconds = options.write_seconds = 0.5;
  }
  try {
    return probe_disk(flags.store.empty() ? "." : flags.store, options);
  } catch (const Error& error) {
    if (!flags.store.empty() || error.kind() != ErrorKind::kResources) throw;
    spdlog::warn("the disk of the current folder is not measured: {}", error.what());
    return std::nullopt;
  }
}

// A GPU that cannot be used is one line: the host is measured all the same.
std::vector<DeviceLimit> probe_gpus(const ProbeFlags& flags) {
  if (!has_cuda_driver()) return {};
  try {
    if (!has_cuda_module()) throw resource_error(kNoCudaModule);
    const CudaProbe found =
        probe_cuda({.quick = flags.quick, .interrupted = interrupted, .build = {}});
    for (const std::string& problem : found.problems) spdlog::warn("{}", problem);
    return found.devices;
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kInterrupted) throw;
    spdlog::warn("no GPU is measured: {}", error.what());
    return {};
  }
}

MachineLimits probe_machine(const ProbeFlags& flags) {
  const int threads = flags.threads > 0 ? flags.threads : allowed_cpus();
  MachineLimits limits{.cpu = cpu_model(),
                       .isa = supported_isas().names[0],
                       .threads = threads,
                       .probed_at = timestamp_now(),
                       .memory = {},
                       .f32 = {},
                       .bf16 = {},
                       .int8 = {},
                       .disks = {},
                       .links = {},
                       .devices = {}};
  // First what can be refused.
  if (const auto disk = probe_disk_of(flags))
    limits.disks.push_back({.device = device_of(disk->path).value_or(0),
                            .path = disk->path,
                            .bytes_per_second = disk->bytes_per_second,
                            .probed_at = limits.probed_at});
  limits.memory = probe_memory(threads, flags.quick);
  limits.f32 = probe_dots(DotType::kF32, threads, flags.quick);
  limits.bf16 = has_dot(DotType::kBF16) ? probe_dots(DotType::kBF16, threads, flags.quick)
                                        : DotLimit{limits.f32.rate, "as f32"};
  limits.int8 = probe_dots(DotType::kInt8, threads, flags.quick);
  limits.devices = probe_gpus(flags);
  return limits;
}

// Ranks of one host run `step` one after the other, of different hosts at the same time.
template <typename Step>
void in_turn(ControlChannel& control, const Step& step) {
  const Transport& transport = control.transport();
  const auto neighbour = [&](int direction) {
    for (int r = control.rank() + direction; r >= 0 && r < control.size(); r += direction)
      if (transport.host(r) == transport.host(control.rank())) return r;
    return -1;
  };
  if (const int before = neighbour(-1); before >= 0) control.receive_from(before);
  step();
  if (const int after = neighbour(+1); after >= 0) control.send(after, {});
}

// Links by host: of several ranks there the fastest counts.
std::vector<LinkLimit> links_by_host(const Transport& transport,
                                     const std::vector<LinkRate>& rates) {
  std::vector<LinkLimit> links;
  for (const LinkRate& rate : rates) {
    if (rate.from != transport.rank()) continue;
    const std::string& host = transport.host(rate.to);
    auto link = std::find_if(links.begin(), links.end(),
                             [&](const LinkLimit& known) { return known.to == host; });
    if (link == links.end())
      link = links.insert(link, {host, rate.latency_seconds, rate.bytes_per_second});
    link->latency_seconds = std::min(link->latency_seconds, rate.latency_seconds);
    link->bytes_per_second = std::max(link->bytes_per_second, rate.bytes_per_second);
  }
  return links;
}

// On rank 0: everybody's, by rank.
std::vector<MachineLimits> gather(ControlChannel& control, const MachineLimits& mine) {
  if (control.rank() != 0) {
    control.send(0, to_archive(kLimits, mine));
    return {};
  }
  std::vector<MachineLimits> all{mine};
  for (int r = 1; r < control.size(); ++r)
    all.push_back(from_archive<MachineLimits>(kLimits, control.receive_from(r), "limits"));
  return all;
}

using OrderedJson = nlohmann::ordered_json;

void print_ordered(const OrderedJson& json) {
  print(json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
}

double giga(double per_second) {
  return per_second * 1e-9;
}

OrderedJson rank_json(int rank, const std::string& host, const MachineLimits& limits) {
  OrderedJson json{{"rank", rank},
                   {"host", host},
                   {"cpu", limits.cpu},
                   {"isa", limits.isa},
                   {"threads", limits.threads}};
  const auto add = [&](const std::string& name, const ThreadedRate& rate) {
    json[name] = giga(rate.all_threads);
    json[name + "_one_thread"] = giga(rate.one_thread);
  };
  add("memory_gb_per_s", limits.memory);
  add("f32_gflop_per_s", limits.f32.rate);
  add("bf16_gflop_per_s", limits.bf16.rate);
  add("int8_gop_per_s", limits.int8.rate);
  json["f32_instructions"] = limits.f32.instructions;
  json["bf16_instructions"] = limits.bf16.instructions;
  json["int8_instructions"] = limits.int8.instructions;
  json["disk_gb_per_s"] = nullptr;
  json["disk_path"] = nullptr;
  for (const DiskLimit& disk : limits.disks) {
    json["disk_gb_per_s"] = giga(disk.bytes_per_second);
    json["disk_path"] = disk.path;
  }
  // With the names that they have in [nodes].
  json["gpus"] = OrderedJson::array();
  for (const DeviceLimit& gpu : limits.devices)
    json["gpus"].push_back({{"gpu", gpu.label},
                            {"device_gb_per_s", giga(gpu.memory)},
                            {"device_gflop_per_s", giga(gpu.f16)},
                            {"device_bf16_gflop_per_s",
                             gpu.bf16 ? OrderedJson(giga(*gpu.bf16)) : OrderedJson(nullptr)},
                            {"device_f32_gflop_per_s", giga(gpu.f32)},
                            {"bus_gb_per_s", giga(gpu.to_device)},
                            {"bus_back_gb_per_s", giga(gpu.from_device)}});
  json["probed_at"] = limits.probed_at;
  return json;
}

std::string table_row(const char* what, const char* unit, const std::string& one_thread,
                      const std::string& all_threads, const std::string& how) {
  const std::string row =
      fmt::format("  {:<15} {:>8} {:>10} {:>12}  {}", what, unit, one_thread, all_threads, how);
  return row.substr(0, row.find_last_not_of(' ') + 1) + "\n";
}

std::string gpu_rows(const std::vector<DeviceLimit>& gpus) {
  if (gpus.empty()) return "  no GPU\n";
  std::string table;
  for (const DeviceLimit& gpu : gpus) {
    table += fmt::format("  {}\n", gpu.label);
    const auto add = [&](const char* what, const char* unit, double rate, const char* how) {
      table += table_row(what, unit, fmt::format("{:.1f}", giga(rate)), "", how);
    };
    add("memory read", "GB/s", gpu.memory, "");
    add("from the host", "GB/s", gpu.to_device, "page-locked memory");
    add("to the host", "GB/s", gpu.from_device, "page-locked memory");
    add("f32 products", "GFLOP/s", gpu.f32, "cuBLAS");
    add("f16 products", "GFLOP/s", gpu.f16, "cuBLAS");
    if (gpu.bf16)
      add("bf16 products", "GFLOP/s", *gpu.bf16, "cuBLAS");
    else
      table += table_row("bf16 products", "GFLOP/s", "-", "", "not on this GPU");
  }
  return table;
}

std::string rank_table(const std::string& name, const MachineLimits& limits) {
  const bool alone = limits.threads == 1;
  std::string table =
      fmt::format("{}: {}, kernels for {}\n", name, limits.cpu, limits.isa) +
      table_row("", "", "1 thread", alone ? "" : fmt::format("{} threads", limits.threads), "");
  const auto add = [&](const char* what, const char* unit, const ThreadedRate& rate,
                       const std::string& how) {
    table += table_row(what, unit, fmt::format("{:.1f}", giga(rate.one_thread)),
                       alone ? "" : fmt::format("{:.1f}", giga(rate.all_threads)), how);
  };
  add("memory read", "GB/s", limits.memory, "");
  add("f32 products", "GFLOP/s", limits.f32.rate, limits.f32.instructions);
  add("bf16 products", "GFLOP/s", limits.bf16.rate, limits.bf16.instructions);
  add("int8 products", "GOP/s", limits.int8.rate, limits.int8.instructions);
  for (const DiskLimit& disk : limits.disks)
    table += table_row("disk read", "GB/s", fmt::format("{:.2f}", giga(disk.bytes_per_second)), "",
                       disk.path);
  if (limits.disks.empty()) table += table_row("disk read", "GB/s", "-", "", "not measured");
  return table + gpu_rows(limits.devices);
}

void print_network(const std::vector<LinkRate>& network, bool json) {
  OrderedJson links = OrderedJson::array();
  std::string table =
      fmt::format("network {:>6} {:>6} {:>14} {:>10}\n", "from", "to", "latency µs", "GB/s");
  for (const LinkRate& link : network) {
    const double latency_us = link.latency_seconds * 1e6;
    links.push_back({{"from", link.from},
                     {"to", link.to},
                     {"latency_us", latency_us},
                     {"gb_per_s", giga(link.bytes_per_second)}});
    table += fmt::format("        {:>6} {:>6} {:>14.1f} {:>10.2f}\n", link.from, link.to,
                         latency_us, giga(link.bytes_per_second));
  }
  if (json) {
    print_ordered({{"network", links}});
  } else {
    print(table);
  }
}

void print_limits(const Transport& transport, const std::vector<MachineLimits>& all,
                  const std::vector<LinkRate>& network, bool json) {
  for (int r = 0; r < transport.size(); ++r) {
    const MachineLimits& limits = all[static_cast<std::size_t>(r)];
    const std::string& host = transport.host(r);
    if (json) {
      print_ordered(rank_json(r, host, limits));
    } else {
      print(rank_table(transport.size() == 1 ? host : name_of(transport, r), limits));
    }
  }
  if (!network.empty()) print_network(network, json);
}

void save(const MachineLimits& limits) {
  try {
    save_limits(limits);
    spdlog::info("kept in {}: timings now say their share of it", limits_file().string());
  } catch (const Error& error) {
    spdlog::warn("these limits are not kept for later runs: {}", error.what());
  }
}

// A step that may fail on some ranks: the error of any becomes that of all.
template <typename Step>
void step_together(ControlChannel& control, const Step& step) {
  RankStatus status;
  try {
    step();
    status.command = "probe";
    status.version = STAGECOACH_VERSION " (" STAGECOACH_BUILD ")";
  } catch (const std::exception& exception) {
    status = failed_status(as_error(exception));
  }
  agree(
      control, status,
      {.error = [](const Error& error) { print_error(error, ""); }, .warning = [](const auto&) {}});
}

void probe_together(ControlChannel& control, const ProbeFlags& flags) {
  Transport& transport = control.transport();
  step_together(control, [] {});  // all ranks probe
  MachineLimits limits;
  step_together(control, [&] {
    std::exception_ptr failure;  // the next rank must have its turn whatever happens here
    in_turn(control, [&] {
      try {
        limits = probe_machine(flags);
      } catch (...) {
        failure = std::current_exception();
      }
    });
    if (failure) std::rethrow_exception(failure);
  });
  std::vector<LinkRate> network;
  if (transport.size() > 1)
    network = probe_network(transport, {.interrupted = &interrupt_requested});
  limits.links = links_by_host(transport, network);
  in_turn(control, [&] { save(limits); });
  const std::vector<MachineLimits> all = gather(control, limits);
  step_together(control, [&] {
    if (control.rank() == 0) print_limits(transport, all, network, flags.json);
  });
}

int run_probe(const ProbeFlags& flags) {
  const std::unique_ptr<Transport> transport = open_transport();
  setup_rank_logging(*transport, flags.quiet, flags.verbose);
  ControlChannel control(*transport);
  auto watch = watch_peers(*transport, kPeerTimeoutSeconds, [](int) { return std::string(); });
  spdlog::info("probing disk, memory, processor and GPUs: keep the machine idle for some seconds");
  try {
    probe_together(control, flags);
  } catch (const AgreedError&) {
    watch.reset();
    finalize(*transport);
    throw;
  } catch (const std::exception& exception) {
    if (transport->size() == 1) throw;
    end_for_all(*transport, as_error(exception), "");
  }
  watch.reset();
  finalize(*transport);
  return 0;
}

}  // namespace

Command probe_command(CLI::App& parent) {
  auto flags = std::make_shared<ProbeFlags>();
  CLI::App* app = parent.add_subcommand(
      "probe", "Measure this machine's limits; under mpirun every host's, and the network's");
  app->add_option("--store", flags->store,
                  "Read this store's slabs, or a temporary file in this folder (default: here)")
      ->type_name("DIR");
  app->add_option("--threads", flags->threads, "Threads of \"all\" (default: all allowed cores)")
      ->check(integer_in(1, 4096));
  app->add_flag("--quick", flags->quick, "About a second, less exact");
  app->add_flag("--json", flags->json, "One object a rank, then one of the network");
  app->add_flag("--quiet", flags->quiet, "Warnings and errors only on stderr");
  app->add_flag("--verbose", flags->verbose, "Say more on stderr, from every rank");
  return {app, [flags] { return run_probe(*flags); }, true};
}

}  // namespace stagecoach
