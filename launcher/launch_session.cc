#include "launcher/launch_session.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "launcher/agent_client.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kMostBytes = std::int64_t{4} << 20;

}  // namespace

void write_session(const std::filesystem::path& file, const LaunchSession& session) {
  Json hosts = Json::array();
  for (const SessionHost& host : session.hosts)
    hosts.push_back(
        {{"name", host.name}, {"address", host.address}, {"port", host.port}, {"job", host.job}});
  write_secret(file, Json{{"format", "stagecoach-session"},
                          {"version", 1},
                          {"key", session.key.text()},
                          {"hosts", hosts}}
                         .dump());
}

LaunchSession read_session(const std::filesystem::path& file) {
  const Json json = read_json_file(file, kMostBytes);
  const JsonObject object(json, file.string());
  LaunchSession session{.key = parse_key(object.string("key"), object.where()), .hosts = {}};
  for (const Json& item : object.array("hosts")) {
    const JsonObject host(item, object.where());
    session.hosts.push_back({.name = host.string("name"),
                             .address = host.string("address"),
                             .port = static_cast<std::uint16_t>(host.integer_in("port", 1, 65535)),
                             .job = host.string("job")});
  }
  return session;
}

int run_daemon_of_session(const std::filesystem::path& file, const std::string& address,
                          const Words& words) {
  const LaunchSession session = read_session(file);
  // Open MPI cuts the domain off a name: "pc-a.lan" comes as "pc-a".
  const auto is_called = [&](const SessionHost& known, bool cut) {
    return known.address == address || (cut && known.address.starts_with(address + "."));
  };
  auto host = session.hosts.end();
  for (const bool cut : {false, true})
    if (host == session.hosts.end())
      host = std::find_if(session.hosts.begin(), session.hosts.end(),
                          [&](const SessionHost& known) { return is_called(known, cut); });
  if (host == session.hosts.end())
    throw usage_error(fmt::format("{}: this launch has no host {}", file.string(), address));
  std::string command;
  for (const std::string& word : words) command += (command.empty() ? "" : " ") + word;
  AgentClient agent({host->address, host->port}, session.key, host->name);
  return agent.run_daemon(host->job, command);
}

}  // namespace stagecoach
