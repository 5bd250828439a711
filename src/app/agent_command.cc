// agent: the daemon of a PC in a cluster; agent-shell: what mpirun calls in ssh's place.
#include <poll.h>
#include <unistd.h>

#include <iostream>
#include <memory>

#include "app/command.h"
#include "app/disk_probe.h"
#include "app/memory_budget.h"
#include "app/output.h"
#include "app/settings.h"
#include "app/signals.h"
#include "backend/cpu/cpu_backend.h"
#include "base/byte_size.h"
#include "base/file.h"
#include "base/host.h"
#include "base/log.h"
#include "launcher/agent.h"
#include "launcher/launch_session.h"
#include "launcher/processes.h"
#include "launcher/temporary_agent.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

struct AgentFlags {
  std::string key, new_key, address = "0.0.0.0", rate, state;
  std::vector<std::string> stores;
  int port = kAgentPort;
  bool temporary = false, verbose = false;
};

double measured_disk_rate(const fs::path& store, const Interrupted& abandoned) {
  // Of a store that is not there yet, the folder that it would come to.
  const auto found = probe_disk(
      nearest_existing(store), {.read_bytes = std::int64_t{1} << 30,
                                .read_seconds = 1.5,
                                .temporary_bytes = std::int64_t{256} << 20,
                                .write_seconds = 1.5,
                                .interrupted = [&] { return interrupt_requested || abandoned(); }});
  return found ? found->bytes_per_second : 0;
}

void run_probe(const fs::path& store, const Interrupted& abandoned) {
  constexpr Seconds kPatience{300};
  Words words{fs::read_symlink("/proc/self/exe"), "probe", "--quiet"};
  if (fs::exists(store)) words.insert(words.end(), {"--store", store});
  const auto finished = run_program(words, kPatience, abandoned);
  if (!finished || finished->code != 0)
    throw resource_error(fmt::format(
        "probe failed: {}", finished ? finished->err.substr(0, 1000) : "it does not start"));
}

HostServices services_of_this_machine() {
  const std::string isa = make_cpu_backend({.threads = 1, .isa = {}})->isa();
  return {.isa = [isa] { return isa; },
          .free_memory = [] { return available_bytes(1); },
          .disk_rate = measured_disk_rate,
          .probe = run_probe};
}

fs::path state_folder(const AgentFlags& flags) {
  const fs::path folder = flags.state.empty() ? default_state_folder() : fs::path(flags.state);
  if (folder.empty()) throw usage_error("there is no HOME for the agent's files", "--state DIR");
  return fs::absolute(folder);
}

int make_key(const std::string& file) {
  if (fs::exists(file))
    throw usage_error(fmt::format("{} is there already", file),
                      "another name, or remove it; then every PC needs the new one");
  const fs::path path(file);
  if (path.has_parent_path()) fs::create_directories(path.parent_path());
  write_secret(path, Key::random().text() + "\n");
  print(fmt::format(
      "{}: a new key; copy it to every PC of the cluster, readable by its owner only\n", file));
  return 0;
}

int serve(const AgentFlags& flags) {
  raise_descriptor_limit();
  const fs::path key_file = flags.key.empty() ? default_key_file() : fs::path(flags.key);
  if (key_file.empty()) throw usage_error("there is no HOME to look for a key in", "--key FILE");
  AgentConfig config{
      .key = read_key_file(key_file),
      .listen = {flags.address, static_cast<std::uint16_t>(flags.port)},
      .stores = {},
      .state = state_folder(flags),
      .bytes_per_second = flags.rate.empty() ? 0 : static_cast<double>(parse_byte_size(flags.rate)),
      .services = services_of_this_machine()};
  // A frame of a slab must come before its receiver gives up.
  constexpr double kLeastRate = 1e6;
  if (config.bytes_per_second > 0 && config.bytes_per_second < kLeastRate)
    throw usage_error(fmt::format("--rate {}: expected 1MB or more", flags.rate));
  for (const std::string& folder : flags.stores) config.stores.emplace_back(fs::absolute(folder));
  if (config.stores.empty() && !default_store_folder().empty())
    config.stores.push_back(default_store_folder());
  for (const fs::path& folder : config.stores) check_writable(folder);
  setup_logging(flags.verbose ? Verbosity::kVerbose : Verbosity::kNormal, "");
  Agent agent(std::move(config));
  spdlog::info("listening on {}", Endpoint{flags.address, agent.port()}.text());
  agent.run([] { return interrupt_requested.load(); });
  return 0;
}

// A launch's own: told on stdin what it needs, gone when stdin ends.
int serve_temporarily(const AgentFlags& flags) {
  raise_descriptor_limit();
  std::string line;
  if (!std::getline(std::cin, line)) throw data_error("expected the order of a launch on stdin");
  const TemporaryAgentOrder order = order_from_json(parse_json(line, "the order of a launch"));
  setup_logging(Verbosity::kQuiet, "");
  AgentConfig config{.key = order.key,
                     .listen = {"0.0.0.0", 0},
                     .stores = {},
                     .state = order.state.empty() ? state_folder(flags) : order.state,
                     .services = services_of_this_machine()};
  for (const fs::path& folder : order.stores)
    config.stores.emplace_back(with_home(folder, "the store of a launch"));
  Agent agent(std::move(config));
  print_json_line({{"port", agent.port()}});
  agent.run([] {
    pollfd in{0, POLLIN, 0};
    const bool ended = ::poll(&in, 1, 0) > 0 && [] {
      char byte = 0;
      return ::read(0, &byte, 1) <= 0;
    }();
    return ended || interrupt_requested.load();
  });
  return 0;
}

}  // namespace

Command agent_command(CLI::App& parent) {
  auto flags = std::make_shared<AgentFlags>();
  CLI::App* app = parent.add_subcommand(
      "agent",
      "Serve this PC to doctor and launch: questions, slabs, ranks; runs until it is ended");
  app->add_option("--key", flags->key, "The cluster's key (default: ~/.config/stagecoach/key)")
      ->type_name("FILE");
  app->add_option("--new-key", flags->new_key, "Make a key for a new cluster, and end")
      ->type_name("FILE");
  app->add_option("--stores", flags->stores,
                  "Folder in which stores lie; nothing outside is touched (repeatable; default: "
                  "~/.local/share/stagecoach)")
      ->type_name("DIR")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app->add_option("--address", flags->address, "Address to listen on")->capture_default_str();
  app->add_option("--port", flags->port, "Port to listen on")
      ->capture_default_str()
      ->check(integer_in(0, 65535));
  app->add_option("--rate", flags->rate,
                  "Bytes a second of slabs that it sends, at most (default: no limit)")
      ->type_name("SIZE");
  app->add_option("--state", flags->state,
                  "Folder for its own files (default: ~/.local/state/stagecoach)")
      ->type_name("DIR");
  app->add_flag("--temporary", flags->temporary, "Of one launch, which says the rest on stdin")
      ->group("");
  app->add_flag("--verbose", flags->verbose, "Say more on stderr");
  return {app, [flags] {
            if (!flags->new_key.empty()) return make_key(flags->new_key);
            return flags->temporary ? serve_temporarily(*flags) : serve(*flags);
          }};
}

Command agent_shell_command(CLI::App& parent) {
  CLI::App* app =
      parent.add_subcommand("agent-shell", "What a launch has mpirun call in ssh's place");
  app->group("");
  app->prefix_command();
  return {app, [app] {
            const std::vector<std::string> words = app->remaining();
            if (words.size() < 3)
              throw usage_error("agent-shell takes a launch's session file, a host and a command",
                                "stagecoach launch JOB.toml calls it");
            return run_daemon_of_session(words[0], words[1], {words.begin() + 2, words.end()});
          }};
}

}  // namespace stagecoach
