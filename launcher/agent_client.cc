#include "launcher/agent_client.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>

#include "base/clock.h"
#include "base/error.h"

namespace stagecoach {
namespace {

// Of requests that look at files or measure.
constexpr Seconds kPatience{30};
// Of 8 MiB from an agent whose rate many share.
constexpr std::chrono::seconds kChunkPatience{600};
// Of what mpirun calls: the launch itself misses a host sooner, and says so better.
constexpr Seconds kShellPatience{kSilence + Seconds(4)};
// Of those that say nothing until they are done.
constexpr Seconds kLongPatience{310};

// Of a tokenizer or a report.
constexpr std::int64_t kMostFile = std::int64_t{1} << 30;

std::vector<StoreFile> files_from_json(const Json& list, const std::string& where) {
  std::vector<StoreFile> files;
  for (const Json& item : list) {
    const JsonObject file(item, where);
    files.push_back({file.string("name"), file.integer_in("bytes", 0, std::int64_t{1} << 50)});
  }
  return files;
}

}  // namespace

Json to_json(const SlabSource& source) {
  return {{"address", source.agent.address}, {"port", source.agent.port}, {"store", source.store}};
}

SlabSource source_from_json(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  return {.agent = {object.string("address"),
                    static_cast<std::uint16_t>(object.integer_in("port", 0, 65535))},
          .store = object.string("store")};
}

JobFolder job_folder_from_json(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  JobFolder folder{.path = object.string("folder"), .free_bytes = {}};
  if (object.has("free_bytes")) folder.free_bytes = object.integer("free_bytes");
  return folder;
}

AgentClient::AgentClient(const Endpoint& endpoint, const Key& key, std::string name,
                         const Interrupted& interrupted)
    : name_(std::move(name)), channel_(SecureChannel::connect(endpoint, key, name_, interrupted)) {
  const Json hello = ask({{"op", "hello"}});
  const std::int64_t protocol = JsonObject(hello, name_).integer("protocol");
  if (protocol != kProtocol)
    throw data_error(fmt::format("{}: its agent speaks protocol {}, this Stagecoach {}", name_,
                                 protocol, kProtocol),
                     "install the same Stagecoach there and restart its agent");
}

Json AgentClient::receive(Seconds patience) {
  Json message = parse_message(channel_.receive(patience), name_);
  throw_if_error(message, name_);
  return message;
}

Json AgentClient::ask(const Json& request, Seconds patience) {
  channel_.send(request);
  return receive(patience);
}

Json AgentClient::follow(const Report& report) {
  while (true) {
    Json message = receive(kPatience);
    if (message.contains("ok")) return message;
    const JsonObject progress(message, name_);
    if (report) report(progress.integer("done"), progress.integer("total"));
  }
}

void AgentClient::receive_content(std::span<std::byte> into) {
  const auto deadline = Clock::now() + kChunkPatience;
  while (!into.empty()) {
    if (Clock::now() > deadline)
      throw Error(ErrorKind::kPeerLost, fmt::format("{}: gives its bytes too slowly", name_));
    into = into.subspan(channel_.receive_data(into, kPatience));
  }
}

HostFacts AgentClient::facts(const std::string& store) {
  const Json reply = ask({{"op", "facts"}, {"store", store}}, kPatience);
  return facts_from_json(JsonObject(reply, name_).at("facts"), name_);
}

StoreContents AgentClient::store(const std::string& path) {
  const Json reply = ask({{"op", "store"}, {"store", path}}, kPatience);
  const JsonObject object(reply, name_);
  StoreContents contents;
  if (object.has("manifest"))
    contents.manifest = manifest_from_json(object.at("manifest"), name_ + ": " + path);
  contents.slabs = files_from_json(object.array("slabs"), name_);
  contents.tokenizer = files_from_json(object.array("tokenizer"), name_);
  contents.free_bytes = object.integer("free_bytes");
  return contents;
}

std::vector<std::string> AgentClient::verify(const std::string& store, const Report& report) {
  channel_.send({{"op", "verify"}, {"store", store}});
  const Json reply = follow(report);
  std::vector<std::string> problems;
  for (const Json& problem : JsonObject(reply, name_).array("problems"))
    if (problem.is_string()) problems.push_back(problem.get<std::string>());
  return problems;
}

double AgentClient::disk_rate(const std::string& store) {
  const Json reply = ask({{"op", "disk_rate"}, {"store", store}}, kPatience);
  return JsonObject(reply, name_).number("bytes_per_second");
}

LinkRate AgentClient::link_to(const Endpoint& other) {
  const Json reply =
      ask({{"op", "link"}, {"address", other.address}, {"port", other.port}}, kPatience);
  const JsonObject object(reply, name_);
  return {object.number("latency"), object.number("bytes_per_second")};
}

LinkRate AgentClient::measure_link(int pings, std::int64_t bytes, Seconds time) {
  LinkRate rate;
  double quickest = 1e9;
  for (int i = 0; i < pings; ++i) {
    const auto begin = Clock::now();
    ping();
    quickest = std::min(quickest, Seconds(Clock::now() - begin).count());
  }
  rate.latency = quickest / 2;
  // As much as goes in the time, found by doubling: a first try also opens TCP's window.
  const std::vector<std::byte> block(kMaxData);
  for (std::int64_t size = 4 * static_cast<std::int64_t>(kMaxData);; size *= 2) {
    const auto begin = Clock::now();
    channel_.send({{"op", "sink"}, {"bytes", size}});
    for (std::int64_t sent = 0; sent < size; sent += static_cast<std::int64_t>(block.size()))
      channel_.send_data(block);
    receive(kPatience);
    const Seconds took = Clock::now() - begin;
    rate.bytes_per_second = static_cast<double>(size) / took.count();
    if (2 * took > time || 2 * size > bytes) return rate;
  }
}

double AgentClient::clock_offset() {
  double quickest = 1e9, offset = 0;
  for (int i = 0; i < 8; ++i) {
    const std::int64_t begin = wall_clock_ns();
    const Json reply = ask({{"op", "ping"}});
    const std::int64_t end = wall_clock_ns();
    const auto round_trip = static_cast<double>(end - begin) * 1e-9;
    if (round_trip >= quickest) continue;
    quickest = round_trip;
    const std::int64_t theirs = JsonObject(reply, name_).integer("clock_ns");
    offset = (static_cast<double>(theirs - begin) + static_cast<double>(theirs - end)) / 2 * 1e-9;
  }
  return offset;
}

void AgentClient::probe(const std::string& store) {
  ask({{"op", "probe"}, {"store", store}}, kLongPatience);
}

void AgentClient::read_range(const std::string& store, const std::string& file, std::int64_t offset,
                             std::span<std::byte> into) {
  ask({{"op", "read"},
       {"store", store},
       {"file", file},
       {"offset", offset},
       {"bytes", into.size()}},
      kPatience);
  receive_content(into);
}

std::vector<std::byte> AgentClient::read_file(const std::string& store, const StoreFile& file) {
  std::vector<std::byte> content(static_cast<std::size_t>(file.bytes));
  for (std::int64_t at = 0; at < file.bytes; at += SlabDraft::kChunk) {
    const auto size = static_cast<std::size_t>(std::min(file.bytes - at, SlabDraft::kChunk));
    read_range(store, file.name, at,
               std::span(content).subspan(static_cast<std::size_t>(at), size));
  }
  return content;
}

void AgentClient::put_file(const std::string& store, const std::string& name,
                           std::span<const std::byte> content) {
  put({{"op", "put"}, {"store", store}, {"name", name}}, content);
}

void AgentClient::put(Json request, std::span<const std::byte> content) {
  request["bytes"] = content.size();
  channel_.send(request);
  send_content(content);
  receive(kPatience);
}

void AgentClient::send_content(std::span<const std::byte> content) {
  for (; !content.empty(); content = content.subspan(std::min(content.size(), kMaxData)))
    channel_.send_data(content.first(std::min(content.size(), kMaxData)));
}

void AgentClient::pull(const std::string& store, const Manifest& manifest,
                       const std::vector<std::string>& slabs,
                       const std::vector<std::vector<SlabSource>>& sources, const Report& report) {
  Json wanted = Json::array();
  for (std::size_t i = 0; i < slabs.size(); ++i) {
    Json from = Json::array();
    for (const SlabSource& source : sources[i]) from.push_back(to_json(source));
    wanted.push_back({{"file", slabs[i]}, {"sources", from}});
  }
  channel_.send(
      {{"op", "pull"}, {"store", store}, {"manifest", to_json(manifest)}, {"slabs", wanted}});
  follow(report);
}

void AgentClient::commit(const std::string& store, const Manifest& update) {
  ask({{"op", "commit"}, {"store", store}, {"manifest", to_json(update)}}, kPatience);
}

std::string AgentClient::install(const std::string& content, const std::vector<std::string>& files,
                                 const std::string& root) {
  Json list = Json::array();
  std::vector<File> opened;
  for (const std::string& name : files) {
    opened.push_back(File::open_read(std::filesystem::path(root) / name));
    // Whatever it is called here.
    list.push_back({{"name", name == files.front() ? "bin/stagecoach" : name},
                    {"bytes", opened.back().size()}});
  }
  channel_.send({{"op", "install"}, {"content", content}, {"files", list}});
  for (const File& file : opened) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(file.size()));
    file.read_at(0, bytes);
    send_content(bytes);
  }
  const Json reply = receive(kPatience);
  return JsonObject(reply, name_).string("binary");
}

void AgentClient::hold(const std::string& job, const std::string& files) {
  ask({{"op", "hold"}, {"job", job}, {"files", files}});
}

void AgentClient::ping(Seconds patience) {
  ask({{"op", "ping"}}, patience);
}

int AgentClient::end(const std::string& job) {
  const Json reply = ask({{"op", "end"}, {"job", job}});
  return static_cast<int>(JsonObject(reply, name_).integer("ended"));
}

std::optional<int> AgentClient::ranks(const std::string& job) try {
  const Json reply = ask({{"op", "ranks"}, {"job", job}}, kPatience);
  return static_cast<int>(JsonObject(reply, name_).integer("ranks"));
} catch (const Error& error) {
  if (error.kind() != ErrorKind::kUsage) throw;
  return std::nullopt;
}

JobFolder AgentClient::job_folder(const std::string& job) {
  return job_folder_from_json(ask({{"op", "job_folder"}, {"job", job}}), name_);
}

std::vector<StoreFile> AgentClient::job_files(const std::string& job) {
  const Json reply = ask({{"op", "job_files"}, {"job", job}}, kPatience);
  return files_from_json(JsonObject(reply, name_).array("files"), name_);
}

std::vector<std::byte> AgentClient::read_job_file(const std::string& job, const std::string& name) {
  const Json reply = ask({{"op", "read_job"}, {"job", job}, {"name", name}}, kPatience);
  std::vector<std::byte> content(
      static_cast<std::size_t>(JsonObject(reply, name_).integer_in("bytes", 0, kMostFile)));
  receive_content(content);
  return content;
}

void AgentClient::put_job_file(const std::string& job, const std::string& name,
                               std::span<const std::byte> content) {
  put({{"op", "put_job"}, {"job", job}, {"name", name}}, content);
}

void AgentClient::forget_job(const std::string& job) {
  ask({{"op", "forget_job"}, {"job", job}}, kPatience);
}

int AgentClient::run_daemon(const std::string& job, const std::string& command) {
  ask({{"op", "start"}, {"job", job}, {"command", command}});
  while (true) {
    const Json message = receive(kShellPatience);
    const JsonObject object(message, name_);
    for (const auto& [key, stream] : {std::pair("out", stdout), std::pair("err", stderr)})
      if (object.has(key)) {
        std::fputs(object.string(key).c_str(), stream);
        std::fflush(stream);
      }
    if (object.has("code")) return static_cast<int>(object.integer("code"));
  }
}

}  // namespace stagecoach
