#include "launcher/agent_session.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "base/clock.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "launcher/daemon_command.h"
#include "launcher/host_facts.h"
#include "launcher/leftovers.h"
#include "launcher/processes.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

// Of a peer that asks nothing for a while; one that has gone shows in its connection.
constexpr Seconds kIdle{86400};
constexpr std::int64_t kMostRead = std::int64_t{64} << 20;        // bytes of one request
constexpr std::int64_t kMostSmallFile = std::int64_t{256} << 20;  // a tokenizer's, a report's
constexpr std::int64_t kMostBuild = std::int64_t{256} << 20;
constexpr std::int64_t kLinkBytes = std::int64_t{128} << 20;
constexpr Seconds kLinkTime{0.5};
constexpr int kLinkPings = 20;
constexpr std::size_t kMostSources = 16;  // of a slab: a thread each
// Kept free on a disk that slabs come to.
constexpr std::int64_t kSpareBytes = std::int64_t{64} << 20;

// There is no way to go on with a connection that is whole.
struct SessionOver : Error {
  explicit SessionOver(const std::string& why) : Error(ErrorKind::kPeerLost, why) {}
};

// {"done", "total"} to the peer, some times a second.
class Reporter {
 public:
  explicit Reporter(Channel& channel) : channel_(channel) {}
  void operator()(std::int64_t done, std::int64_t total) {
    const auto now = Clock::now();
    if (now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    channel_.send({{"done", done}, {"total", total}});
  }

 private:
  Channel& channel_;
  Clock::time_point last_{};
};

struct Cleanup {
  fs::path folder;
  ~Cleanup() {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  }
};

bool is_build_file(const std::string& name) {
  const auto plain = [](std::string_view text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
      return std::isalnum(c) != 0 || c == '-' || c == '_';
    });
  };
  constexpr std::string_view kModule = "lib/stagecoach/stagecoach-", kSuffix = ".so";
  if (name == "bin/stagecoach") return true;
  return name.starts_with(kModule) && name.ends_with(kSuffix) &&
         name.size() > kModule.size() + kSuffix.size() &&
         plain(std::string_view(name).substr(kModule.size(),
                                             name.size() - kModule.size() - kSuffix.size()));
}

}  // namespace

void check_job_name(const std::string& job) {
  const bool good = !job.empty() && job.size() <= 128 && job.front() != '.' &&
                    std::all_of(job.begin(), job.end(), [](unsigned char c) {
                      return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '@';
                    });
  if (!good) throw usage_error(fmt::format("'{}' is not the name of a job", job.substr(0, 128)));
}

AgentSession::~AgentSession() {
  if (held_job_.empty()) return;
  int ended = 0;
  try {
    ended = end_processes_of(held_job_);
  } catch (const std::exception& exception) {
    spdlog::error("job {}: {}", held_job_, exception.what());
  }
  if (ended > 0)
    spdlog::warn("job {}: its launcher has gone, {} processes ended", held_job_, ended);
}

void AgentSession::run() try {
  while (true) {
    const Frame frame = channel_.receive(held_job_.empty() ? kIdle : kSilence);
    answer(parse_message(frame, channel_.peer()));
  }
} catch (const FrameError& error) {
  // Whoever has the key may be of another version, and should hear what it did wrong.
  channel_.send(error_message(error));
  channel_.close_gently();
  throw;
}

void AgentSession::answer(const Json& message) {
  try {
    const JsonObject request(message, "a request");
    dispatch(request.string("op"), request);
  } catch (const SessionOver&) {
    throw;
  } catch (const FrameError&) {
    throw;
  } catch (const std::exception& exception) {
    // Another host that was called may have gone; only this end's own connection is the end.
    if (channel_.broken()) throw;
    const auto* error = dynamic_cast<const Error*>(&exception);
    channel_.send(error_message(error != nullptr ? *error : resource_error(exception.what())));
  }
}

void AgentSession::dispatch(const std::string& name, const JsonObject& request) {
  using Handler = void (AgentSession::*)(const JsonObject&);
  static constexpr std::array<std::pair<std::string_view, Handler>, 21> kHandlers{{
      {"facts", &AgentSession::facts},
      {"store", &AgentSession::store},
      {"verify", &AgentSession::verify},
      {"disk_rate", &AgentSession::disk_rate},
      {"read", &AgentSession::read},
      {"put", &AgentSession::put},
      {"pull", &AgentSession::pull},
      {"commit", &AgentSession::commit},
      {"link", &AgentSession::link},
      {"sink", &AgentSession::sink},
      {"install", &AgentSession::install},
      {"probe", &AgentSession::probe},
      {"start", &AgentSession::start},
      {"hold", &AgentSession::hold},
      {"end", &AgentSession::end},
      {"ranks", &AgentSession::ranks},
      {"job_folder", &AgentSession::job_folder},
      {"job_files", &AgentSession::job_files},
      {"read_job", &AgentSession::read_job},
      {"put_job", &AgentSession::put_job},
      {"forget_job", &AgentSession::forget_job},
  }};
  if (name == "hello") {
    // The first thing said, the same in all protocols to come.
    return ok({{"protocol", kProtocol}});
  }
  if (name == "ping") return ping();
  const auto handler = std::find_if(kHandlers.begin(), kHandlers.end(),
                                    [&](const auto& known) { return known.first == name; });
  if (handler == kHandlers.end())
    throw usage_error(fmt::format("this agent knows no request '{}'", name.substr(0, 64)));
  (this->*handler->second)(request);
}

// A peer that waits for an answer says nothing: what shows is its end.
Interrupted AgentSession::abandoned() const {
  return [socket = channel_.descriptor()] {
    pollfd file{socket, POLLRDHUP, 0};
    return ::poll(&file, 1, 0) > 0;
  };
}

void AgentSession::ok(Json reply) {
  reply["ok"] = true;
  channel_.send(reply);
}

fs::path AgentSession::store_of(const JsonObject& request) const {
  return path_inside(request.string("store"), context_.config.stores);
}

fs::path AgentSession::folder_of_job(const JsonObject& request) const {
  const std::string job = request.string("job");
  check_job_name(job);
  return context_.config.state / "jobs" / job;
}

void AgentSession::receive_content(std::int64_t bytes,
                                   const std::function<void(std::span<const std::byte>)>& take) {
  buffer_.resize(kMaxData);
  for (std::int64_t got = 0; got < bytes;) {
    const auto most = static_cast<std::size_t>(std::min<std::int64_t>(bytes - got, kMaxData));
    const std::size_t size = channel_.receive_data(std::span(buffer_).first(most), kSilence);
    take(std::span(buffer_).first(size));
    got += static_cast<std::int64_t>(size);
  }
}

void AgentSession::send_file(const File& file, std::int64_t offset, std::int64_t bytes) {
  buffer_.resize(kMaxData);
  for (std::int64_t at = 0; at < bytes;) {
    const auto size = std::min<std::int64_t>(bytes - at, kMaxData);
    const std::span<std::byte> chunk = std::span(buffer_).first(static_cast<std::size_t>(size));
    try {
      file.read_at(offset + at, chunk);
    } catch (const Error& error) {
      // Amid promised bytes there is no room for a message.
      throw SessionOver(error.what());
    }
    context_.limit.take(size);
    channel_.send_data(chunk);
    at += size;
  }
}

// ---- The machine ----

void AgentSession::facts(const JsonObject& request) {
  const HostServices& services = context_.config.services;
  const std::string store = request.string_or("store", "");
  ok({{"facts", to_json(facts_of_this_machine(services.isa(), services.free_memory(), store,
                                              abandoned()))}});
}

void AgentSession::disk_rate(const JsonObject& request) {
  ok({{"bytes_per_second", context_.config.services.disk_rate(store_of(request), abandoned())}});
}

void AgentSession::link(const JsonObject& request) {
  const Endpoint other{request.string("address"),
                       static_cast<std::uint16_t>(request.integer_in("port", 1, 65535))};
  AgentClient client(other, context_.config.key, other.text(), abandoned());
  const LinkRate rate = client.measure_link(kLinkPings, kLinkBytes, kLinkTime);
  ok({{"latency", rate.latency}, {"bytes_per_second", rate.bytes_per_second}});
}

void AgentSession::sink(const JsonObject& request) {
  receive_content(request.integer_in("bytes", 0, kLinkBytes), [](std::span<const std::byte>) {});
  ok();
}

void AgentSession::probe(const JsonObject& request) {
  context_.config.services.probe(store_of(request), abandoned());
  ok();
}

// ---- Stores ----

void AgentSession::store(const JsonObject& request) {
  const StoreContents contents = look_into_store(store_of(request));
  const auto list = [](const std::vector<StoreFile>& files) {
    Json json = Json::array();
    for (const StoreFile& file : files)
      json.push_back({{"name", file.name}, {"bytes", file.bytes}});
    return json;
  };
  ok({{"manifest", contents.manifest ? to_json(*contents.manifest) : Json(nullptr)},
      {"slabs", list(contents.slabs)},
      {"tokenizer", list(contents.tokenizer)},
      {"free_bytes", contents.free_bytes}});
}

void AgentSession::verify(const JsonObject& request) {
  const fs::path path = store_of(request);
  const Manifest manifest = read_manifest(path);
  std::int64_t done = 0, total = 0;
  for (const SlabEntry& slab : manifest.slabs) total += slab.bytes;
  Reporter report(channel_);
  Json problems = Json::array();
  for (const SlabEntry& slab : manifest.slabs) {
    const std::string problem = slab_problem(path / slab.file, slab, [&](std::int64_t bytes) {
      done += bytes;
      report(done, total);
    });
    if (!problem.empty()) problems.push_back(problem);
  }
  ok({{"problems", problems}});
}

void AgentSession::read(const JsonObject& request) {
  const std::string name = request.string("file");
  check_store_file_name(name);
  const fs::path store = store_of(request);
  const File file = File::open_read(path_inside(store / name, {store}));
  const std::int64_t offset = request.integer_in("offset", 0, file.size());
  const std::int64_t bytes =
      request.integer_in("bytes", 0, std::min(kMostRead, file.size() - offset));
  ok();
  send_file(file, offset, bytes);
}

std::string AgentSession::receive_text(const JsonObject& request) {
  std::string content;
  receive_content(request.integer_in("bytes", 0, kMostSmallFile),
                  [&](std::span<const std::byte> data) {
                    content.append(reinterpret_cast<const char*>(data.data()), data.size());
                  });
  return content;
}

void AgentSession::put(const JsonObject& request) {
  const std::string content = receive_text(request);
  const std::string name = request.string("name");
  check_store_file_name(name);
  if (name.ends_with(".slab")) throw usage_error("slabs are pulled, not put");
  const fs::path store = store_of(request);
  const fs::path file = path_inside(store / name, {store});
  fs::create_directories(file.parent_path());
  write_file_atomically(file, content);
  ok();
}

void AgentSession::pull(const JsonObject& request) {
  const fs::path path = store_of(request);
  const Manifest manifest = manifest_from_json(request.at("manifest"), "a request's manifest");
  const StoreContents here = look_into_store(path);
  if (here.manifest) check_same_model(manifest, *here.manifest, path.string());
  std::vector<SlabOrder> orders;
  std::int64_t bytes = 0;
  for (const Json& item : request.array("slabs")) {
    const JsonObject wanted(item, "a wanted slab");
    const std::string name = wanted.string("file");
    const auto slab = std::find_if(manifest.slabs.begin(), manifest.slabs.end(),
                                   [&](const SlabEntry& entry) { return entry.file == name; });
    if (slab == manifest.slabs.end())
      throw data_error(fmt::format("the request's manifest has no slab '{}'", name));
    SlabOrder order{.slab = &*slab, .sources = {}};
    for (const Json& item_source : wanted.array("sources")) {
      SlabSource source = source_from_json(item_source, "a source");
      if (source.agent.address.empty())
        source.store = path_inside(source.store, context_.config.stores);
      order.sources.push_back(std::move(source));
    }
    if (order.sources.empty() || order.sources.size() > kMostSources)
      throw data_error(fmt::format("{}: expected 1 to {} sources, found {}", name, kMostSources,
                                   order.sources.size()));
    for (const SlabOrder& other : orders)
      if (other.slab == order.slab) throw data_error(fmt::format("{} is wanted twice", name));
    bytes += slab->bytes -
             static_cast<std::int64_t>(fs::exists(path / (name + ".partial")) ? slab->bytes : 0);
    orders.push_back(std::move(order));
  }
  if (here.free_bytes < bytes + kSpareBytes)
    throw resource_error(fmt::format("{}: no room for slabs: they take {} bytes, {} are free",
                                     path.string(), bytes, here.free_bytes),
                         "free some space there, or give this host fewer layers");
  fs::create_directories(path);
  const FileLock lock = lock_store(path);
  Reporter report(channel_);
  pull_slabs(path, orders, context_.config.key,
             [&](std::int64_t done, std::int64_t total) { report(done, total); });
  ok();
}

void AgentSession::commit(const JsonObject& request) {
  const FileLock lock = lock_store(store_of(request));
  commit_slabs(store_of(request),
               manifest_from_json(request.at("manifest"), "a request's manifest"));
  ok();
}

// ---- Jobs ----

void AgentSession::install(const JsonObject& request) {
  // All of it is taken first: a reply amid what still comes would not be heard.
  std::vector<std::pair<std::string, std::string>> files;
  std::int64_t total = 0;
  for (const Json& item : request.array("files")) {
    const JsonObject file(item, "a file of a build");
    files.emplace_back(file.string("name"), std::string());
    const std::int64_t bytes = file.integer_in("bytes", 0, kMostBuild - total);
    total += bytes;
    receive_content(bytes, [&](std::span<const std::byte> data) {
      files.back().second.append(reinterpret_cast<const char*>(data.data()), data.size());
    });
  }
  const std::string content = request.string("content");
  if (!hash_from_hex(content)) throw data_error("the hash of a build is no hash");
  const fs::path builds = context_.config.state / "builds", root = builds / content;
  const fs::path binary = root / "bin/stagecoach";
  // Unpacked beside its place: what is there under that name is whole.
  const fs::path fresh = builds / unique_name(content);
  const Cleanup remove_fresh{fresh};
  for (const auto& [name, text] : files) {
    if (!is_build_file(name))
      throw data_error(fmt::format("'{}' is not a file of a build", name.substr(0, 128)));
    fs::create_directories((fresh / name).parent_path());
    write_file_atomically(fresh / name, text);
    fs::permissions(fresh / name,
                    fs::perms::owner_all | fs::perms::group_read | fs::perms::group_exec);
  }
  if (const std::string found = hash_of_build(fresh / "bin/stagecoach"); found != content)
    throw data_error(
        fmt::format("the build came damaged: expected hash {}, found {}", content, found));
  std::error_code there;
  fs::rename(fresh, root, there);  // fails where another launch has put the same one
  const auto starts = run_program({binary, "--version"}, Seconds(20), abandoned());
  if (!starts || starts->code != 0)
    throw resource_error(
        fmt::format("the build does not start here: {}",
                    starts ? starts->err.substr(0, 500) : "cannot be executed"),
        "install the .deb of this version there, which brings the libraries that it needs");
  ok({{"binary", binary.string()}});
}

void AgentSession::start(const JsonObject& request) {
  const std::string job = request.string("job");
  check_job_name(job);
  DaemonCommand command = parse_daemon_command(request.string("command"));
  command.environment.push_back(fmt::format("{}={}", kJobVariable, job));
  Child child(command.words, command.environment, Child::Streams::kCapture);
  ok();
  try {
    attend(child);
  } catch (const Error&) {  // mpirun has gone
    child.signal(SIGKILL);
    end_processes_of(job);
    throw;
  }
  ok({{"code", child.wait(Seconds(1))}});
}

// Sends what the daemon prints, and signs of life, until it ends.
void AgentSession::attend(Child& child) {
  auto last_sign = Clock::now();
  while (child.out() >= 0 || child.err() >= 0 || !child.poll()) {
    std::array<pollfd, 3> files{pollfd{child.out(), POLLIN, 0}, pollfd{child.err(), POLLIN, 0},
                                pollfd{channel_.descriptor(), POLLIN | POLLRDHUP, 0}};
    ::poll(files.data(), files.size(), 500);
    // The peer has nothing more to say: what comes is its end.
    if (files[2].revents != 0)
      throw Error(ErrorKind::kPeerLost, fmt::format("{}: mpirun has gone", channel_.peer()));
    const auto forward = [&](const pollfd& file, const char* stream) {
      if (file.revents == 0) return true;
      std::array<char, 16384> text;
      const ssize_t size = ::read(file.fd, text.data(), text.size());
      if (size <= 0) return size < 0 && (errno == EINTR || errno == EAGAIN);
      channel_.send({{stream, std::string(text.data(), static_cast<std::size_t>(size))}});
      return true;
    };
    if (!forward(files[0], "out")) child.close_out();
    if (!forward(files[1], "err")) child.close_err();
    if (Clock::now() - last_sign < std::chrono::seconds(1)) continue;
    channel_.send({{"alive", true}});
    last_sign = Clock::now();
  }
}

void AgentSession::hold(const JsonObject& request) {
  const std::string job = request.string("job"), files = request.string_or("files", job);
  check_job_name(job);
  check_job_name(files);
  held_job_ = job;
  held_folder_ = context_.config.state / "jobs" / files;
  ok();
}

void AgentSession::ping() {
  constexpr std::chrono::minutes kTouch{10};
  if (const auto now = Clock::now(); !held_job_.empty() && now - touched_ > kTouch) {
    touch_job(held_folder_);
    touched_ = now;
  }
  ok({{"clock_ns", wall_clock_ns()}});
}

void AgentSession::end(const JsonObject& request) {
  const std::string job = request.string("job");
  check_job_name(job);
  ok({{"ended", end_processes_of(job)}});
}

void AgentSession::ranks(const JsonObject& request) {
  const std::string job = request.string("job");
  check_job_name(job);
  ok({{"ranks", count_ranks_of(job)}});
}

void AgentSession::job_folder(const JsonObject& request) {
  const fs::path folder = folder_of_job(request);
  fs::create_directories(folder);
  touch_job(folder);
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  Json reply{{"folder", folder.string()}};
  if (!error) reply["free_bytes"] = space.available;
  ok(reply);
  sweep_jobs(context_.config.state);  // nobody waits for it
}

void AgentSession::job_files(const JsonObject& request) {
  const fs::path folder = folder_of_job(request);
  Json files = Json::array();
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    // A file that is written now may be gone between two looks.
    std::error_code gone;
    const bool regular = entry->is_regular_file(gone) && !entry->is_symlink(gone);
    const auto bytes = regular ? entry->file_size(gone) : 0;
    if (regular && !gone)
      files.push_back({{"name", fs::relative(entry->path(), folder, gone).string()},
                       {"bytes", static_cast<std::int64_t>(bytes)}});
  }
  ok({{"files", files}});
}

void AgentSession::read_job(const JsonObject& request) {
  const fs::path folder = folder_of_job(request);
  const fs::path path = path_inside(folder / request.string("name"), {folder});
  const File file = File::open_read(path);
  const std::int64_t bytes = file.size();
  if (bytes > kMostSmallFile)
    throw data_error(fmt::format("{} has {} bytes, too many to fetch", path.string(), bytes));
  ok({{"bytes", bytes}});
  send_file(file, 0, bytes);
}

void AgentSession::put_job(const JsonObject& request) {
  const std::string content = receive_text(request);
  const fs::path folder = folder_of_job(request);
  fs::create_directories(folder);
  const fs::path path = path_inside(folder / request.string("name"), {folder});
  fs::create_directories(path.parent_path());
  write_file_atomically(path, content);
  ok();
}

void AgentSession::forget_job(const JsonObject& request) {
  fs::remove_all(folder_of_job(request));
  ok();
}

}  // namespace stagecoach
