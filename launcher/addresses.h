// Names of hosts to addresses. The system's resolver cannot be told to stop, and takes half a
// minute where a name server is silent.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "launcher/interruption.h"

namespace stagecoach {

// What the resolver says: numeric addresses, IPv4 and IPv6, or why there is none.
struct Lookup {
  std::vector<std::string> addresses;
  std::string problem;
};
using Resolver = std::function<Lookup(const std::string& host)>;
Lookup ask_the_system(const std::string& host);

// Of `host`, which may be an address already. Nothing after `patience`, with a problem that says
// so; the resolver is left to itself then. Throws kInterrupted.
Lookup addresses_of(const std::string& host, Seconds patience, const Interrupted& interrupted,
                    const Resolver& resolver = ask_the_system);

}  // namespace stagecoach
