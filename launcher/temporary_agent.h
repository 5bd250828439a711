// An agent for one launch: started by ssh (or as a child, on this PC), with a key of its own, and
// gone when the launch is.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "launcher/key.h"
#include "launcher/processes.h"

namespace stagecoach {

// What it is told on its stdin, one line.
struct TemporaryAgentOrder {
  Key key;
  std::vector<std::filesystem::path> stores;
  std::filesystem::path state = {};  // for its own files; empty: as any agent there
};
Json to_json(const TemporaryAgentOrder& order);
// Throws data_error.
TemporaryAgentOrder order_from_json(const Json& json);

class TemporaryAgent {
 public:
  // `reach` is what runs a command there: {"ssh", "pc-b"}; empty: a child of this process. Where
  // Stagecoach is missing or another build is installed, this build is copied there first. Throws
  // kPeerLost or resource_error with what ssh said, kInterrupted.
  TemporaryAgent(const std::string& host, const Words& reach, const TemporaryAgentOrder& order,
                 const Interrupted& interrupted);

  // It ends by itself when its stdin does, and what it holds with it.
  ~TemporaryAgent();

  std::uint16_t port() const { return port_; }

 private:
  const bool remote_;
  std::optional<Child> child_;
  std::uint16_t port_ = 0;
};

}  // namespace stagecoach
