#include "app/device_choice.h"

#include <charconv>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda_module.h"
#include "base/error.h"
#include "base/log.h"
#include "base/quote.h"
#include "transport/mpi_module.h"

namespace stagecoach {
namespace {

std::unique_ptr<Backend> open_cuda(std::optional<int> ordinal, int threads) {
  return make_cuda_backend({.device = ordinal.value_or(CudaOptions::kByRank),
                            .rank_here = launched_local_rank().value_or(0),
                            .ranks_here = launched_local_size(),
                            .threads = threads});
}

}  // namespace

DeviceChoice parse_device(const std::string& text) {
  using Kind = DeviceChoice::Kind;
  if (text == "auto") return {.kind = Kind::kAuto, .ordinal = {}};
  if (text == "cpu") return {.kind = Kind::kCpu, .ordinal = {}};
  if (text == "cuda") return {.kind = Kind::kCuda, .ordinal = {}};
  constexpr std::string_view kNumbered = "cuda:";
  if (text.starts_with(kNumbered)) {
    int ordinal = -1;
    const char* const end = text.data() + text.size();
    const auto [last, error] = std::from_chars(text.data() + kNumbered.size(), end, ordinal);
    if (error == std::errc{} && last == end && ordinal >= 0)
      return {.kind = Kind::kCuda, .ordinal = ordinal};
  }
  throw usage_error(
      fmt::format("{} is no device: expected auto, cpu, cuda or cuda:N", quote_value(text)));
}

std::unique_ptr<Backend> open_processor(int threads) {
  const std::optional<int> rank_here = launched_local_rank();
  return make_cpu_backend({.threads = threads,
                           .isa = {},
                           .cpus = rank_here ? own_cpus(threads, *rank_here, launched_local_size())
                                             : std::vector<int>{}});
}

std::unique_ptr<Backend> open_device(const std::string& device, int threads) {
  const DeviceChoice choice = parse_device(device);
  if (choice.kind == DeviceChoice::Kind::kCuda) return open_cuda(choice.ordinal, threads);
  // The PC's ranks all meet it: its first one says so.
  const auto level =
      launched_local_rank().value_or(0) == 0 ? spdlog::level::warn : spdlog::level::debug;
  if (choice.kind == DeviceChoice::Kind::kAuto && has_cuda_driver()) {
    try {
      if (!has_cuda_module()) throw resource_error(kNoCudaModule);
      auto gpu = open_cuda({}, threads);
      gpu->free_bytes();  // the first that a job asks of it: a card may open, and not answer
      return gpu;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kResources)
        throw;  // a typo, a bug: no PC that lacks something
      spdlog::log(level, "computing on the CPU: {}", error.what());
    }
  }
  return open_processor(threads);
}

}  // namespace stagecoach
