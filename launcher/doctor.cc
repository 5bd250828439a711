#include "launcher/doctor.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <set>

#include "base/byte_size.h"
#include "base/error.h"

namespace stagecoach {
namespace {

constexpr double kClockTolerance = 1;   // seconds
constexpr double kSlowLink = 50e6;      // bytes a second: well below what 1 GbE carries
constexpr std::int64_t kManyHosts = 8;  // beyond, links are measured around the ring only

std::string major_version(const std::string& version) {
  return version.substr(0, version.find('.'));
}

// The address is one of its own, and not a container's.
void check_address(const Host& host, bool alone, std::vector<Finding>& findings) {
  const std::string& address = host.spec.reached_as();
  if (alone && address.starts_with("127.")) return;
  const NetworkInterface* card = host.facts.interface_of(address);
  if (card == nullptr) {
    const bool numeric = address.find_first_not_of("0123456789.") == std::string::npos;
    if (!numeric) return;  // a name: any of its addresses
    std::string own;
    for (const NetworkInterface& other : host.facts.interfaces)
      if (!other.is_virtual)
        own += fmt::format("{}{} ({})", own.empty() ? "" : ", ", other.address, other.name);
    findings.push_back(
        {.host = host.name(),
         .text = fmt::format("{} is reached, but is no address of its own; it has {}", address,
                             own.empty() ? "none" : own),
         .fix = fmt::format("nodes.{}.address = one of those", host.name()),
         .kind = ErrorKind::kUsage});
  } else if (card->is_virtual) {
    findings.push_back(
        {.host = host.name(),
         .text = fmt::format("{} belongs to {}, a network of containers or virtual machines",
                             address, card->name),
         .fix = fmt::format("nodes.{}.address = that of its network card", host.name()),
         .kind = ErrorKind::kUsage});
  }
}

void check_open_mpi(const std::vector<const Host*>& hosts, std::vector<Finding>& findings) {
  std::map<std::string, std::vector<std::string>> versions;
  for (const Host* host : hosts) {
    if (host->facts.open_mpi.empty())
      findings.push_back({.host = host->name(),
                          .text = "Open MPI is not installed",
                          .fix = "apt-get install openmpi-bin"});
    else
      versions[host->facts.open_mpi].push_back(host->name());
  }
  if (versions.size() < 2) return;
  std::string text;
  for (const auto& [version, names] : versions)
    text += fmt::format("{}{} on {}", text.empty() ? "" : ", ", version, fmt::join(names, ", "));
  const bool majors = std::any_of(versions.begin(), versions.end(), [&](const auto& entry) {
    return major_version(entry.first) != major_version(versions.begin()->first);
  });
  findings.push_back(
      {.host = {},
       .text = fmt::format("different versions of Open MPI do not work together: {}", text),
       .fix = majors ? "the same version of Open MPI on every PC"
                     : "apt-get upgrade on the older ones",
       .kind = ErrorKind::kData});
}

void check_names(const std::vector<const Host*>& hosts, std::vector<Finding>& findings) {
  std::map<std::string, std::string> names;
  for (const Host* host : hosts) {
    const auto [other, is_new] = names.emplace(host->facts.host, host->name());
    if (!is_new)
      findings.push_back(
          {.host = host->name(),
           .text = fmt::format(
               "it and {} both call themselves '{}': Open MPI takes them for one machine",
               other->second, host->facts.host),
           .fix = "hostnamectl set-hostname NAME on one of them",
           .kind = ErrorKind::kUsage});
  }
}

void check_memory(const Host& host, std::vector<Finding>& findings) {
  if (host.spec.memory > host.facts.memory)
    findings.push_back(
        {.host = host.name(),
         .text = fmt::format("nodes.{}.memory is {}, the PC has {}", host.name(),
                             format_bytes(host.spec.memory), format_bytes(host.facts.memory)),
         .fix = fmt::format("memory = \"{}MB\"", host.facts.free_memory / 1'000'000)});
  else if (host.spec.memory > host.facts.free_memory)
    findings.push_back(
        {.host = host.name(),
         .text = fmt::format("nodes.{}.memory is {}, {} are free now", host.name(),
                             format_bytes(host.spec.memory), format_bytes(host.facts.free_memory)),
         .fix = "end what takes the memory there, or lower nodes.*.memory",
         .serious = false});
}

void check_slabs(std::vector<Host>& hosts, DoctorReport& report, Host& source,
                 const DoctorOptions& options) {
  std::optional<Manifest> model;
  std::set<std::string> found;
  std::mutex mutex;
  std::vector<Host*> all;
  for (Host& host : hosts) all.push_back(&host);
  if (std::none_of(hosts.begin(), hosts.end(), [&](const Host& host) { return &host == &source; }))
    all.push_back(&source);
  std::vector<StoreContents> contents(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!all[i]->reached()) continue;
    try {
      contents[i] = all[i]->client->store(all[i]->store);
      if (!contents[i].manifest) continue;
      if (model)
        check_same_model(*model, *contents[i].manifest,
                         fmt::format("{}: {}", all[i]->name(), all[i]->store));
      model = model ? merged(*model, *contents[i].manifest) : *contents[i].manifest;
      for (const StoreFile& slab : contents[i].slabs) found.insert(slab.name);
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kInterrupted) throw;
      report.findings.push_back({.host = all[i]->name(),
                                 .text = error.what(),
                                 .fix = error.hint(),
                                 .kind = error.kind()});
    }
  }
  for (std::size_t i = 0; i < report.hosts.size(); ++i) {
    report.hosts[i].slabs = static_cast<std::int64_t>(contents[i].slabs.size());
    report.hosts[i].free_disk = contents[i].free_bytes;
  }
  if (!model) {
    report.findings.push_back({.host = {},
                               .text = "no host has the model",
                               .fix = fmt::format("stagecoach import CHECKPOINT {}", source.store),
                               .kind = ErrorKind::kData});
    return;
  }
  const ModelSpec& spec = model->spec;
  const auto listed = static_cast<std::int64_t>(std::count_if(
      model->layer_slab.begin(), model->layer_slab.end(), [](int slab) { return slab >= 0; }));
  const std::int64_t wanted = std::min(model->distinct_layers, spec.num_hidden_layers) + 2;
  for (HostExam& exam : report.hosts) exam.slabs_wanted = wanted;
  if (listed < spec.num_hidden_layers || model->embedding_slab < 0 || model->head_slab < 0) {
    std::string missing;
    for (std::size_t layer = 0; layer < model->layer_slab.size(); ++layer)
      if (model->layer_slab[layer] < 0)
        missing += fmt::format("{}{}", missing.empty() ? "layers " : ", ", layer);
    if (missing.empty()) missing = "an end of the model";
    report.findings.push_back(
        {.host = {},
         .text = fmt::format("no host has {}", missing),
         .fix = "stagecoach import CHECKPOINT STORE --layers A:B on one of them",
         .kind = ErrorKind::kData});
  }
  if (!options.verify) return;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!contents[i].manifest) continue;
    if (options.progress)
      options.progress(
          fmt::format("{}: reading {} slabs", all[i]->name(), contents[i].slabs.size()));
    try {
      for (const std::string& problem : all[i]->client->verify(
               all[i]->store,
               [&](std::int64_t, std::int64_t) { throw_if_interrupted(options.interrupted); })) {
        if (i < report.hosts.size()) ++report.hosts[i].damaged;
        report.findings.push_back({.host = all[i]->name(),
                                   .text = problem,
                                   .fix = "remove that file there: launch fetches it again from "
                                          "another host, if one has it",
                                   .kind = ErrorKind::kData});
      }
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kInterrupted) throw;
      report.findings.push_back({.host = all[i]->name(),
                                 .text = error.what(),
                                 .fix = error.hint(),
                                 .kind = error.kind()});
    }
  }
}

void measure_links(std::vector<Host>& hosts, DoctorReport& report, const DoctorOptions& options) {
  std::vector<Host*> reached;
  for (Host& host : hosts)
    if (host.reached()) reached.push_back(&host);
  const std::size_t n = reached.size();
  for (std::size_t from = 0; from < n; ++from)
    for (std::size_t to = 0; to < n; ++to) {
      // Links share cables, so one after the other.
      if (from == to || (static_cast<std::int64_t>(n) > kManyHosts && (from + 1) % n != to))
        continue;
      if (options.progress)
        options.progress(fmt::format("{} to {}", reached[from]->name(), reached[to]->name()));
      try {
        const LinkRate rate = reached[from]->client->link_to(reached[to]->agent);
        report.links.push_back({reached[from]->name(), reached[to]->name(), rate});
        if (rate.bytes_per_second < kSlowLink)
          report.findings.push_back(
              {.host = reached[from]->name(),
               .text = fmt::format("only {:.1f} MB/s to {}", rate.bytes_per_second * 1e-6,
                                   reached[to]->name()),
               .fix = "a cable instead of wireless, a switch and cards of 1 Gbit/s",
               .serious = false});
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::kInterrupted) throw;
        report.findings.push_back(
            {.host = reached[from]->name(),
             .text = error.what(),
             .fix = "open the agents' port and those of MPI in the firewall between them",
             .kind = error.kind()});
      }
    }
}

}  // namespace

int DoctorReport::exit_code() const {
  for (const Finding& finding : findings)
    if (finding.serious) return static_cast<int>(finding.kind);
  return 0;
}

std::string common_network(const std::vector<const Host*>& hosts) {
  std::string network;
  for (const Host* host : hosts) {
    const NetworkInterface* card = host->facts.interface_of(host->spec.reached_as());
    if (card == nullptr || (!network.empty() && card->network() != network)) return {};
    network = card->network();
  }
  return network;
}

std::vector<Finding> check_together(const std::vector<const Host*>& hosts, const Host& source,
                                    const LaunchJob& job) {
  std::vector<Finding> findings;
  for (const Host* host : hosts) {
    check_address(*host, hosts.size() == 1, findings);
    check_memory(*host, findings);
  }
  std::vector<const Host*> with_source = hosts;
  // mpirun runs here, on a host of the job or not.
  if (std::none_of(hosts.begin(), hosts.end(), [](const Host* host) { return host->here; }))
    with_source.push_back(&source);
  check_open_mpi(with_source, findings);
  check_names(hosts, findings);
  if (hosts.size() > 1 && job.cluster.network.subnet.empty() && common_network(hosts).empty())
    findings.push_back(
        {.host = {},
         .text = "the hosts' addresses are not in one network, so MPI cannot be told which to use",
         .fix = "numeric addresses of one network in nodes.*.address, or network.subnet = "
                "\"A.B.C.D/BITS\"",
         .kind = ErrorKind::kUsage});
  const std::string network = common_network(hosts);
  const std::vector<NetworkInterface>& cards = source.facts.interfaces;
  if (hosts.size() > 1 && job.cluster.network.subnet.empty() && !network.empty() &&
      std::none_of(cards.begin(), cards.end(),
                   [&](const NetworkInterface& card) { return card.network() == network; }))
    findings.push_back(
        {.host = {},
         .text = fmt::format("this PC, where mpirun starts, has no address in {}", network),
         .fix = "launch from a PC of that network",
         .kind = ErrorKind::kUsage});
  return findings;
}

DoctorReport examine(const LaunchJob& job, const DoctorOptions& options) {
  DoctorReport report;
  if (options.progress) options.progress("reaching the hosts");
  Hosts cluster(job, {.interrupted = options.interrupted});
  std::vector<Host>& hosts = cluster.all();
  for (const Host& host : hosts) {
    report.hosts.push_back({.host = host.name(),
                            .address = host.spec.reached_as(),
                            .store = host.store,
                            .reached = host.reached(),
                            .facts = host.facts});
    if (host.problem)
      report.findings.push_back({.host = host.name(),
                                 .text = host.problem->what(),
                                 .fix = host.problem->hint(),
                                 .kind = host.problem->kind()});
  }
  const std::string here_content = cluster.source().facts.content;
  if (options.measure && options.progress) options.progress("clocks and disks");
  cluster.each([&](Host& host) {
    HostExam& exam = report.hosts[static_cast<std::size_t>(&host - hosts.data())];
    exam.clock_offset = host.client->clock_offset();
    if (options.measure) exam.disk_rate = host.client->disk_rate(host.store);
  });
  for (const Host& host : hosts)
    if (host.problem && host.client != nullptr)
      report.findings.push_back({.host = host.name(),
                                 .text = host.problem->what(),
                                 .fix = host.problem->hint(),
                                 .kind = host.problem->kind()});
  std::vector<const Host*> reached;
  for (std::size_t i = 0; i < hosts.size(); ++i) {
    const HostExam& exam = report.hosts[i];
    if (!exam.reached) continue;
    reached.push_back(&hosts[i]);
    if (std::abs(exam.clock_offset) > kClockTolerance)
      report.findings.push_back(
          {.host = exam.host,
           .text = fmt::format("its clock differs by {:.1f} s from this PC's", exam.clock_offset),
           .fix = "timedatectl set-ntp true there",
           .serious = false});
    if (!here_content.empty() && exam.facts.content != here_content)
      report.findings.push_back({.host = exam.host,
                                 .text = fmt::format("it has another build of Stagecoach ({} {})",
                                                     exam.facts.version, exam.facts.build),
                                 .fix = "none is needed: launch copies this one there for its jobs",
                                 .serious = false});
  }
  for (const Finding& finding : check_together(reached, cluster.source(), job))
    report.findings.push_back(finding);
  check_slabs(hosts, report, cluster.source(), options);
  if (options.measure) measure_links(hosts, report, options);
  return report;
}

Json to_json(const DoctorReport& report) {
  Json hosts = Json::array(), links = Json::array(), findings = Json::array();
  for (const HostExam& exam : report.hosts) {
    Json host{{"host", exam.host},
              {"address", exam.address},
              {"store", exam.store},
              {"reached", exam.reached}};
    if (exam.reached) {
      host["facts"] = to_json(exam.facts);
      host["clock_offset"] = exam.clock_offset;
      host["disk_bytes_per_second"] = exam.disk_rate > 0 ? Json(exam.disk_rate) : Json(nullptr);
      host["free_disk"] = exam.free_disk;
      host["slabs"] = exam.slabs;
      host["slabs_of_model"] = exam.slabs_wanted;
      host["damaged"] = exam.damaged;
    }
    hosts.push_back(std::move(host));
  }
  for (const LinkFinding& link : report.links)
    links.push_back({{"from", link.from},
                     {"to", link.to},
                     {"latency", link.rate.latency},
                     {"bytes_per_second", link.rate.bytes_per_second}});
  for (const Finding& finding : report.findings)
    findings.push_back({{"host", finding.host.empty() ? Json(nullptr) : Json(finding.host)},
                        {"problem", finding.text},
                        {"fix", finding.fix},
                        {"serious", finding.serious}});
  return {{"hosts", hosts}, {"links", links}, {"findings", findings}};
}

std::string as_text(const DoctorReport& report) {
  std::string text =
      fmt::format("{:<16} {:<16} {:<10} {:<9} {:<13} {:>5} {:>19} {:>10} {:>9} {:>10} {:>9}\n",
                  "host", "address", "stagecoach", "Open MPI", "instructions", "cores", "memory",
                  "disk free", "disk GB/s", "slabs", "clock");
  for (const HostExam& exam : report.hosts) {
    if (!exam.reached) {
      text += fmt::format("{:<16} {:<16} not reached\n", exam.host, exam.address);
      continue;
    }
    const HostFacts& facts = exam.facts;
    text += fmt::format(
        "{:<16} {:<16} {:<10} {:<9} {:<13} {:>5} {:>19} {:>10} {:>9} {:>10} {:>9}\n", exam.host,
        exam.address, facts.version, facts.open_mpi.empty() ? "-" : facts.open_mpi, facts.isa,
        facts.cores,
        fmt::format("{} of {}", format_bytes(facts.free_memory), format_bytes(facts.memory)),
        format_bytes(exam.free_disk),
        exam.disk_rate > 0 ? fmt::format("{:.2f}", exam.disk_rate * 1e-9) : "-",
        fmt::format("{} of {}", exam.slabs, exam.slabs_wanted),
        fmt::format("{:+.3f} s", exam.clock_offset));
    for (const std::string& gpu : facts.gpus) text += fmt::format("{:<16} GPU: {}\n", "", gpu);
    for (const DeviceLimit& gpu : facts.gpu_rates)
      text += fmt::format(
          "{:<16} {}: reads {:.0f} GB/s, gets {:.1f} GB/s from the host, {:.0f} GFLOP/s of f16\n",
          "", gpu.label, gpu.memory * 1e-9, gpu.to_device * 1e-9, gpu.f16 * 1e-9);
    for (const NetworkInterface& card : facts.interfaces)
      text += fmt::format("{:<16} {} {}/{}{}{}\n", "", card.name, card.address, card.prefix,
                          card.megabits > 0 ? fmt::format(", {} Mbit/s", card.megabits) : "",
                          card.is_virtual ? ", of containers or virtual machines: not used" : "");
  }
  if (!report.links.empty())
    text += fmt::format("\n{:<16} {:<16} {:>12} {:>10}\n", "from", "to", "latency", "MB/s");
  for (const LinkFinding& link : report.links)
    text += fmt::format("{:<16} {:<16} {:>9.0f} µs {:>10.1f}\n", link.from, link.to,
                        link.rate.latency * 1e6, link.rate.bytes_per_second * 1e-6);
  text += '\n';
  for (const Finding& finding : report.findings)
    text += fmt::format(
        "{}: {}{}\n{}", finding.serious ? "PROBLEM" : "note",
        finding.host.empty() || finding.text.starts_with(finding.host) ? "" : finding.host + ": ",
        finding.text, finding.fix.empty() ? "" : fmt::format("    {}\n", finding.fix));
  if (report.exit_code() == 0) text += "The hosts can work together.\n";
  return text;
}

}  // namespace stagecoach
