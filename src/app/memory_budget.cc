#include "app/memory_budget.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>

#include "app/settings.h"
#include "backend/device_scratch.h"
#include "base/byte_size.h"
#include "base/error.h"
#include "engine/kv_cache.h"
#include "engine/stage_runner.h"
#include "pipeline/rank_loop.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kFloat = sizeof(float);
constexpr std::int64_t kMiB = std::int64_t{1} << 20;
// What comes after measuring: code that has not run yet, threads, MPI's buffers, and a full
// timeline (21 MB).
constexpr std::int64_t kReserve = 32 * kMiB;
// What a chunk of a matrix product keeps on the stack of its thread (kernels/cpu/multiply.h).
constexpr std::int64_t kThreadStack = 512 << 10;
constexpr std::int64_t kLogitBytes = 64 * kMiB;

// The first number in `file`; nullopt when there is none.
std::optional<std::int64_t> read_number(const std::string& file) {
  std::ifstream stream(file);
  std::int64_t value = 0;
  if (stream >> value) return value;
  return std::nullopt;
}

// The line of /proc/self/cgroup for `controller` (v1), or the unified one ("").
std::string cgroup_path(const std::string& controller) {
  std::ifstream stream("/proc/self/cgroup");
  for (std::string line; std::getline(stream, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
    if (names == ",," ? controller.empty()
                      : names.find("," + controller + ",") != std::string::npos)
      return line.substr(second + 1);
  }
  return "";
}

// Bytes of `key` in a memory.stat.
std::int64_t stat_of(const std::string& file, const std::string& key) {
  std::ifstream stream(file);
  std::string name;
  std::int64_t value = 0;
  while (stream >> name >> value)
    if (name == key) return value;
  return 0;
}

// What this process's control groups leave; "max" and v1's huge number mean no limit. Cache that
// the system can take back is no obstacle. Inside a container the path may not exist: its group is
// the root then.
std::int64_t cgroup_room(const std::string& root, std::string path, const char* limit_name,
                         const char* usage_name, const char* cache_key) {
  std::int64_t room = std::numeric_limits<std::int64_t>::max();
  while (true) {
    const std::string folder = root + path + "/";
    const auto limit = read_number(folder + limit_name), usage = read_number(folder + usage_name);
    if (limit && usage) {
      const std::int64_t used = *usage - stat_of(folder + "memory.stat", cache_key);
      room = std::min(room, std::max<std::int64_t>(0, *limit - used));
    }
    const std::size_t slash = path.rfind('/');
    if (path.empty() || slash == std::string::npos) return room;
    path.erase(slash);
  }
}

std::int64_t cgroup_room() {
  return std::min(
      cgroup_room("/sys/fs/cgroup/memory", cgroup_path("memory"), "memory.limit_in_bytes",
                  "memory.usage_in_bytes", "total_inactive_file"),
      cgroup_room("/sys/fs/cgroup", cgroup_path(""), "memory.max", "memory.current",
                  "inactive_file"));
}

}  // namespace

std::string MemoryNeeds::describe() const {
  return fmt::format("{} process, {} workspace, {} keys and values, {} messages, {} logits",
                     format_bytes(process), format_bytes(workspace), format_bytes(kv),
                     format_bytes(messages), format_bytes(logits));
}

std::int64_t largest_batch(const NeedsRequest& request) {
  return std::min(request.micro_batch, request.shape.largest_pass);
}

std::int64_t head_rows(const NeedsRequest& request) {
  const std::int64_t affordable = kLogitBytes / (2 * request.spec.vocab_size * kFloat);
  const std::int64_t wanted = request.in_passes && !request.frugal
                                  ? std::max(affordable, StageRunner::kHeadRows)
                                  : StageRunner::kHeadRows;
  return std::clamp(wanted, std::int64_t{1}, std::max(largest_batch(request), std::int64_t{1}));
}

int waiting_on_device(const NeedsRequest& request) {
  const std::int64_t batch = largest_batch(request), pass = request.shape.largest_pass;
  if (!request.on_device || !request.in_passes || request.frugal || request.cpu_layers > 0 ||
      request.largest_window <= 1 || pass <= batch)
    return 0;
  return static_cast<int>((pass + batch - 1) / batch);
}

MemoryNeeds memory_needs(const NeedsRequest& request) {
  const ModelSpec& spec = request.spec;
  const JobShape& shape = request.shape;
  const std::int64_t batch = largest_batch(request);
  const std::int64_t row = spec.hidden_size * kFloat;
  MemoryNeeds needs;
  needs.process = resident_bytes() + kReserve + request.threads * kThreadStack;
  needs.workspace = Workspace::bytes_needed(spec, batch, request.packing);
  const std::int64_t pages = (shape.positions + kKvPageTokens - 1) / kKvPageTokens;
  // Pages of so many layers in one place.
  const auto kv_pages_of = [&](std::int64_t layers) {
    const std::int64_t held =
        request.in_passes && shape.forget_kv ? std::min(layers, std::int64_t{1}) : layers;
    return shape.sequences * pages * held;
  };
  const std::int64_t kv_page = KvCache::page_bytes(spec, request.kv_type);
  needs.kv = kv_pages_of(request.layers) * kv_page;
  // A micro-batch leaves as a copy of the workspace's rows and their encoding, and arrives
  // likewise.
  needs.messages = 4 * batch * row;
  if (request.in_passes) {
    // All of a pass may stand in line at the slowest rank, and where a window has several layers
    // its micro-batches wait there for each other.
    const std::int64_t pass = shape.largest_pass * row;
    needs.messages += pass * (request.largest_window > 1 ? 2 : 1);
  } else {
    needs.messages += 2 * (request.ranks + 1) * batch * row;
  }
  if (request.head) needs.logits = 2 * head_rows(request) * spec.vocab_size * kFloat;
  if (request.on_device) {
    const std::int64_t widest = std::max(
        {spec.hidden_size, spec.embedding_size, spec.query_size(), spec.intermediate_size});
    needs.logits /= 2;
    const std::int64_t device_layers = request.layers - request.cpu_layers;
    needs.device =
        needs.workspace + KvCache::device_bytes(kv_pages_of(device_layers), kv_page) +
        needs.logits + (request.device_messages ? kDeviceRows * batch * row : 0) +
        waiting_on_device(request) * StageRunner::waiting_bytes(spec, batch) +
        device_scratch_bytes(std::max(batch, head_rows(request)), widest) +
        decode_scratch_bytes(std::min(shape.sequences, batch), shape.positions,
                             spec.num_attention_heads, spec.head_dim) +
        span_table_bytes(std::min(shape.sequences, batch), shape.positions, device_layers);
    // Spans pass through a ring of four such tables on the host.
    needs.messages +=
        4 * span_table_bytes(std::min(shape.sequences, batch), shape.positions, device_layers);
    needs.workspace =
        request.cpu_layers > 0 ? Workspace::bytes_needed(spec, batch, request.cpu_packing) : 0;
    needs.kv = kv_pages_of(request.cpu_layers) * kv_page;
  }
  return needs;
}

std::int64_t resident_bytes() {
  std::ifstream stream("/proc/self/statm");
  std::int64_t total = 0, resident = 0;
  stream >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

std::int64_t available_bytes(int ranks_here) {
  std::int64_t system = std::numeric_limits<std::int64_t>::max();
  std::ifstream stream("/proc/meminfo");
  for (std::string line; std::getline(stream, line);)
    if (line.starts_with("MemAvailable:"))
      system = std::atoll(line.c_str() + line.find(':') + 1) * 1024;
  return std::min(system, cgroup_room()) / std::max(1, ranks_here);
}

std::optional<std::int64_t> memory_budget(const BudgetSource& source) {
  if (!source.flag.empty()) return parse_byte_size(source.flag);
  if (source.job_file.empty()) return std::nullopt;
  const ClusterSpec cluster = job_cluster(source.job_file);
  const HostSpec* const node = cluster.find(source.host);
  if (node == nullptr || node->*source.of_node == 0) return std::nullopt;
  return node->*source.of_node / std::max(1, source.ranks_here);
}

}  // namespace stagecoach
