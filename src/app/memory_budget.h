// What a rank may hold in memory, and what it needs besides weights.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/workspace.h"
#include "kernels/include/kv_page.h"
#include "model/model_spec.h"
#include "plan/cluster_spec.h"
#include "plan/job_shape.h"

namespace stagecoach {

// Everything in a rank's resident set that is not weights, in bytes.
struct MemoryNeeds {
  std::int64_t process = 0;    // code, libraries, MPI, heap: as measured, and room to grow
  std::int64_t workspace = 0;  // scratch activations of one micro-batch
  std::int64_t kv = 0;
  std::int64_t messages = 0;  // hidden states on their way
  std::int64_t logits = 0;
  // Of a device's own memory. What of workspace, keys and values is there is not in the host's.
  std::int64_t device = 0;

  std::int64_t total() const { return process + workspace + kv + messages + logits; }
  std::string describe() const;  // "61.2 MB process, 12.1 MB workspace, …"
};

struct NeedsRequest {
  const ModelSpec& spec;
  const JobShape& shape;
  KvType kv_type = KvType::kF32;
  std::int64_t micro_batch = 0;  // rows, at most
  std::int64_t layers = 0;       // of this rank
  std::int64_t largest_window = 0;
  bool head = false;  // this rank makes logits
  bool in_passes = false;
  InputPacking packing = std::nullopt;
  int threads = 1;  // that compute
  int ranks = 1;
  bool on_device = false;        // computes on a device with memory of its own
  bool device_messages = false;  // hidden states come into that and leave from there
  // Beside it: layers that the processor computes, and what it packs rows to.
  std::int64_t cpu_layers = 0;
  InputPacking cpu_packing = std::nullopt;
  bool frugal = false;  // as few logits at once as will do, and batches wait on the host
};
// Rows of the largest micro-batch that such a job can have.
std::int64_t largest_batch(const NeedsRequest& request);
// Rows whose logits are in memory at once.
std::int64_t head_rows(const NeedsRequest& request);
// Batches of a pass that may wait for each other in the device's memory.
int waiting_on_device(const NeedsRequest& request);
MemoryNeeds memory_needs(const NeedsRequest& request);

// Bytes that are resident in this process now.
std::int64_t resident_bytes();
// Bytes that this process could still take: what the system and its control group leave, shared
// among `ranks_here` ranks of this host.
std::int64_t available_bytes(int ranks_here);

// --memory or --device-memory for this rank: the flag, or what [nodes] of the job file gives this
// host, divided among its ranks; nullopt: neither. Throws usage_error.
struct BudgetSource {
  const std::string& flag;
  const std::string& job_file;
  const std::string& host;
  int ranks_here = 1;
  std::int64_t HostSpec::*of_node = &HostSpec::memory;
};
std::optional<std::int64_t> memory_budget(const BudgetSource& source);

}  // namespace stagecoach
