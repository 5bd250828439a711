#include "launcher/temporary_agent.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <sstream>

#include "base/error.h"
#include "launcher/host_facts.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr Seconds kReachPatience{20};
constexpr Seconds kCopyPatience{300};
constexpr Seconds kEndPatience{3};
// Of ssh: without it the agent there ends all the same, and a host that is silent has no end.
constexpr Seconds kRemoteEndPatience{1};

// What ssh or the program behind it said, in one line.
std::string said(const std::string& text) {
  constexpr std::string_view kOwn = "stagecoach: ";
  std::istringstream lines(text);
  std::string last, own;
  for (std::string line; std::getline(lines, line);) {
    if (own.empty() && line.starts_with(kOwn)) own = line.substr(kOwn.size());
    if (line.find_first_not_of(" \r") != std::string::npos) last = line;
  }
  const std::string& best = own.empty() ? last : own;
  return best.empty() ? "it said nothing" : best.substr(0, 300);
}

Error unreachable(const std::string& host, const Words& reach, const std::string& text) {
  return {ErrorKind::kPeerLost, fmt::format("{}: cannot be reached: {}", host, said(text)),
          fmt::format("{} true must work without a password; or run an agent there",
                      shell_command(reach))};
}

// Of this build, on another PC, whose shell says where there is no HOME.
std::string folder_there(const std::string& content) {
  return "${HOME:?is not set}/.cache/stagecoach/builds/" + content;
}

// Sends bin and lib of this build as a tar archive.
void copy_build(const std::string& host, const Words& reach, const std::string& content,
                const Interrupted& interrupted) {
  const std::string binary = fs::read_symlink("/proc/self/exe");
  Words tar{"tar", "-C", root_of_build(binary), "-cf", "-"};
  for (const std::string& file : files_of_build(binary)) tar.push_back(file);
  const std::string folder = folder_there(content);
  // A name of its own makes half a copy harmless, and two at once, where hosts share a home.
  const std::string there = fmt::format(
      "p={0}.$$ && mkdir -p $p && tar -C $p -xf - && {{ mv -T $p {0} 2>/dev/null || rm -rf $p; }} "
      "&& test -d {0}",
      folder);
  Words all = reach;
  all.push_back(there);
  const Words both{"sh", "-c", shell_command(tar) + " | " + shell_command(all)};
  const auto copied = run_program(both, kCopyPatience, interrupted);
  if (!copied || copied->code != 0)
    throw resource_error(fmt::format("{}: Stagecoach cannot be copied there: {}", host,
                                     said(copied ? copied->err : "")));
}

}  // namespace

Json to_json(const TemporaryAgentOrder& order) {
  Json stores = Json::array();
  for (const fs::path& folder : order.stores) stores.push_back(folder.string());
  return {{"key", order.key.text()}, {"stores", stores}, {"state", order.state.string()}};
}

TemporaryAgentOrder order_from_json(const Json& json) {
  const JsonObject object(json, "the order of a launch");
  TemporaryAgentOrder order{.key = parse_key(object.string("key"), object.where()), .stores = {}};
  for (const Json& folder : object.array("stores"))
    if (folder.is_string()) order.stores.emplace_back(folder.get<std::string>());
  order.state = object.string_or("state", "");
  return order;
}

TemporaryAgent::TemporaryAgent(const std::string& host, const Words& reach,
                               const TemporaryAgentOrder& order, const Interrupted& interrupted)
    : remote_(!reach.empty()) {
  const std::string binary = fs::read_symlink("/proc/self/exe");
  Words start{binary, "agent", "--temporary"};
  if (!reach.empty()) {
    static const std::string content = hash_of_build(binary);  // the same for every host
    const std::string there = folder_there(content) + "/" + files_of_build(binary).front();
    Words look = reach;
    look.push_back(fmt::format("test -x {} && echo here || echo missing", there));
    const auto looked = run_program(look, kReachPatience, interrupted);
    if (!looked || looked->code != 0)
      throw unreachable(host, reach, looked ? looked->err : reach.front() + " cannot be started");
    if (looked->out.find("missing") != std::string::npos)
      copy_build(host, reach, content, interrupted);
    start = reach;
    start.push_back(there + " agent --temporary");
  }
  child_.emplace(start, Environment{}, Child::Streams::kAll);
  const std::string text = to_json(order).dump() + "\n";
  if (::write(child_->in(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    throw unreachable(host, start, "");
  std::string line, errors;
  const auto deadline = std::chrono::steady_clock::now() + kReachPatience;
  while (line.find('\n') == std::string::npos) {
    throw_if_interrupted(interrupted);
    std::array<pollfd, 2> files{pollfd{child_->out(), POLLIN, 0}, pollfd{child_->err(), POLLIN, 0}};
    ::poll(files.data(), files.size(), 200);
    const auto take = [](const pollfd& file, std::string& into) {
      std::array<char, 4096> buffer;
      if (file.revents == 0) return true;
      const ssize_t size = ::read(file.fd, buffer.data(), buffer.size());
      if (size > 0) into.append(buffer.data(), static_cast<std::size_t>(size));
      return size > 0;
    };
    const bool more_errors = take(files[1], errors);
    if (!take(files[0], line) || (!more_errors && child_->poll()) ||
        std::chrono::steady_clock::now() > deadline)
      throw resource_error(fmt::format("{}: its agent does not start: {}", host, said(errors)),
                           "Stagecoach needs the libraries of its .deb on every PC");
  }
  // Nobody reads what it may say from now on.
  child_->close_out();
  child_->close_err();
  const Json json = parse_json(line.substr(0, line.find('\n')), host);
  port_ = static_cast<std::uint16_t>(JsonObject(json, host).integer_in("port", 1, 65535));
}

TemporaryAgent::~TemporaryAgent() {
  if (!child_) return;
  child_->close_in();
  child_->wait(remote_ ? kRemoteEndPatience : kEndPatience);
}

}  // namespace stagecoach
