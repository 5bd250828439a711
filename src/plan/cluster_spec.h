// The PCs that a job may run on, as their owner describes them: [nodes.NAME] and [network] of a
// TOML file, which may be a job file. docs/planning.md has the keys.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/machine_limits.h"

namespace stagecoach {

// Rates per second; 0: the file does not say.
struct HostRates {
  double memory = 0;                   // bytes read
  double f32 = 0, bf16 = 0, int8 = 0;  // operations, a multiply-add counts as two
  double disk = 0;                     // bytes of direct reads

  // Where this says nothing, what `other` says.
  HostRates or_else(const HostRates& other) const;
  bool complete() const { return memory > 0 && f32 > 0 && bf16 > 0 && int8 > 0 && disk > 0; }
};

// Of a host's GPU, likewise.
struct DeviceRates {
  double memory = 0;  // bytes read
  double halves = 0;  // operations on 16-bit numbers, as matrix products do them
  double bus = 0;     // bytes from the host's memory

  DeviceRates or_else(const DeviceRates& other) const;
  bool complete() const { return memory > 0 && halves > 0 && bus > 0; }
};

struct HostSpec {
  std::string name;                // its own, as `hostname` prints it
  std::string address;             // what other hosts call it; empty: the name
  std::int64_t memory = 0;         // bytes that its rank may take; 0: the file does not say
  std::int64_t device_memory = 0;  // the same of its GPU
  std::string store;               // where its slabs are; empty: where [run] says
  HostRates rates;
  DeviceRates device;  // where device_memory is not 0

  bool on_device() const { return device_memory > 0; }
  const std::string& reached_as() const { return address.empty() ? name : address; }
};

// Between any two hosts.
struct NetworkSpec {
  double latency = 200e-6;          // seconds of a small message
  double bytes_per_second = 117e6;  // what 1 GbE carries
  std::string subnet;  // that MPI keeps to, "192.168.1.0/24"; empty: that of the hosts' addresses
};

struct ClusterSpec {
  std::vector<HostSpec> hosts;  // in the order of the file
  NetworkSpec network;

  const HostSpec* find(const std::string& name) const;  // null: there is none
};

// What `probe` has found of the first GPU of a host.
DeviceRates device_rates(const std::vector<DeviceLimit>& devices);

// Plans need them: throws usage_error for a host with device_memory that lacks one. `origin` says
// where that is from: "FILE: nodes.NAME has device_memory".
void check_device_rates(const std::string& origin, const HostSpec& host);

// [nodes] and [network]; other tables are somebody else's. Throws usage_error with file, line and
// column for an unknown key or a value that makes no sense.
ClusterSpec read_cluster(const std::string& file, const std::string& what, const std::string& flag);

}  // namespace stagecoach
