#include "launcher/agent.h"

#include "base/error.h"
#include "base/file.h"
#include "base/host.h"
#include "base/log.h"
#include "launcher/agent_session.h"
#include "launcher/leftovers.h"

namespace stagecoach {

namespace fs = std::filesystem;

struct Agent::State {
  explicit State(AgentConfig config)
      : context(std::move(config)), listener(context.config.listen, context.config.key) {}

  AgentContext context;
  SecureListener listener;
};

Agent::Agent(AgentConfig config) {
  if (config.stores.empty())
    throw usage_error("the agent has no folder for stores", "--stores DIR");
  for (const fs::path& folder : config.stores)
    if (!folder.is_absolute())
      throw usage_error(fmt::format("--stores {}: expected an absolute path", folder.string()));
  check_writable(config.state);
  fs::permissions(config.state, fs::perms::owner_all);
  sweep_jobs(config.state);
  state_ = std::make_unique<State>(std::move(config));
}

Agent::~Agent() = default;

std::uint16_t Agent::port() const {
  return state_->listener.port();
}

void Agent::run(const std::function<bool()>& stop) {
  state_->listener.run(
      [this](Channel& channel) {
        AgentSession session(state_->context, channel);
        session.run();
      },
      stop);
}

fs::path default_state_folder() {
  return user_folder("XDG_STATE_HOME", ".local/state");
}

fs::path default_store_folder() {
  return user_folder("XDG_DATA_HOME", ".local/share");
}

}  // namespace stagecoach
