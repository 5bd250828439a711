// What `stagecoach probe` has measured of this machine, and the file that keeps it: one for each
// host, read by later runs so that every figure can be given as a share of a limit.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

// A limit of so many threads, per second: bytes, or operations (a multiply-add counts as two).
struct ThreadedRate {
  double one_thread = 0, all_threads = 0;

  // What `threads` can reach at most: they share what all threads have.
  double of(std::int64_t threads) const;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(one_thread, all_threads);
  }
};

struct DotLimit {
  ThreadedRate rate;
  std::string instructions;  // for people

  template <class Archive>
  void serialize(Archive& archive) {
    archive(rate, instructions);
  }
};

// Direct sequential reads of one file system.
struct DiskLimit {
  std::uint64_t device = 0;  // st_dev
  std::string path;          // where it was measured
  double bytes_per_second = 0;
  std::string probed_at;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(device, path, bytes_per_second, probed_at);
  }
};

// Messages from this host to another (or to another rank on it).
struct LinkLimit {
  std::string to;  // host
  double latency_seconds = 0;
  double bytes_per_second = 0;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(to, latency_seconds, bytes_per_second);
  }
};

// A GPU of this host.
struct DeviceLimit {
  std::string label;           // "GPU 0 (NVIDIA GeForce RTX 3090)"
  double memory = 0;           // bytes of its own memory read
  double to_device = 0;        // bytes from page-locked memory of the host
  double from_device = 0;      // and back
  double f32 = 0, f16 = 0;     // operations of matrix products with float32 sums
  std::optional<double> bf16;  // null: it does not multiply bfloat16

  template <class Archive>
  void serialize(Archive& archive) {
    archive(label, memory, to_device, from_device, f32, f16, bf16);
  }
};

struct MachineLimits {
  std::string cpu;           // cpu_model()
  std::string isa;           // the best kernels that run here
  std::int64_t threads = 0;  // "all" of ThreadedRate
  std::string probed_at;     // "2024-05-01T12:00:00Z"
  ThreadedRate memory;       // bytes read
  DotLimit f32, bf16, int8;
  std::vector<DiskLimit> disks;
  std::vector<LinkLimit> links;
  std::vector<DeviceLimit> devices;

  // Of the file system that `path` is or would be on, in bytes per second; null: not probed.
  std::optional<double> disk_rate(const std::filesystem::path& path) const;
  // Seconds that a small message to `host` takes, null: not probed.
  std::optional<double> network_latency(std::string_view host) const;
  // Of the GPU that is called so (Backend::device_label); null: not probed.
  const DeviceLimit* device(std::string_view label) const;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(cpu, isa, threads, probed_at, memory, f32, bf16, int8, disks, links, devices);
  }
};

// The processor's name as the system gives it.
std::string cpu_model();
// Now, as ISO 8601 in UTC.
std::string timestamp_now();
// The file system of `path`, or of the nearest folder above it that is there; null where the
// system does not say.
std::optional<std::uint64_t> device_of(const std::filesystem::path& path);

// ${STAGECOACH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stagecoach}/limits.json; empty where none of
// them is set.
std::filesystem::path limits_file();

std::string limits_json(const MachineLimits& limits);
// Null for what another version wrote or another processor gave: one debug line. Throws data_error
// on anything that limits_json cannot have written. `source` names the text.
std::optional<MachineLimits> parse_limits(std::string_view text, const std::string& source,
                                          const std::string& cpu);

// This host's. Null when there are none; a damaged file is one warning.
std::optional<MachineLimits> cached_limits();
// Keeps what the file already says of other disks and links, not of other GPUs: those of `limits`
// are all. Throws resource_error.
void save_limits(MachineLimits limits);

// cached_limits() for one figure.
std::optional<double> cached_disk_rate(const std::filesystem::path& path);  // bytes per second
std::optional<double> cached_network_latency(std::string_view host);        // seconds

}  // namespace stagecoach
