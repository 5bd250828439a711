// What an agent says of its PC, for doctor and launch.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "launcher/interruption.h"
#include "plan/cluster_spec.h"

namespace stagecoach {

struct NetworkInterface {
  std::string name;
  std::string address;        // IPv4
  int prefix = 32;            // bits of its network
  std::int64_t megabits = 0;  // of its link; 0: it does not say
  bool is_virtual = false;    // of containers and virtual machines: never a way to another PC

  // "192.168.1.0/24"
  std::string network() const;
};

struct HostFacts {
  std::string version, build;  // of the Stagecoach there
  std::string binary;          // its path
  std::string content;         // hash of binary and modules: equal where they are the same build
  std::string open_mpi;        // "4.1.4"; empty: not installed
  std::string host;            // what `hostname` prints
  std::string home;            // of the agent's user; empty: it has none
  std::string cpu, isa;
  std::int64_t cores = 0;
  std::int64_t memory = 0, free_memory = 0;  // bytes
  std::vector<std::string> gpus;
  std::vector<NetworkInterface> interfaces;
  HostRates rates;  // as `probe` found them, 0 where it has not; the disk is that of the store
                    // asked about
  std::vector<DeviceLimit> gpu_rates;  // likewise, of each GPU

  // "~/model" there. Throws usage_error, naming `what`, where there is no home.
  std::string with_home(const std::string& path, const std::string& what) const;
  // The interface that has this address; null: none has.
  const NetworkInterface* interface_of(const std::string& address) const;
};

Json to_json(const HostFacts& facts);
// Throws data_error.
HostFacts facts_from_json(const Json& json, const std::string& where);

// Of this machine. `isa` and `free_memory` are the caller's to know; `store` is where the disk's
// rate is looked up. Throws kInterrupted.
HostFacts facts_of_this_machine(const std::string& isa, std::int64_t free_memory,
                                const std::string& store, const Interrupted& interrupted = {});

// Names such as docker0, virbr0 and veth12ab.
bool is_virtual_interface(const std::string& name);

// The folder of modules beside a binary is part of what runs.
std::vector<std::string> files_of_build(
    const std::string& binary);  // "bin/stagecoach", "lib/…", below its root
std::string root_of_build(const std::string& binary);
std::string hash_of_build(const std::string& binary);

}  // namespace stagecoach
