#include "transport/mpi_module.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/module.h"
#include "base/version.h"

namespace stagecoach {
namespace {

struct Placement {
  int rank;
  int size;
};

std::optional<int> integer_variable(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  const std::string_view view(text);
  int value = -1;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (error != std::errc{} || end != view.data() + view.size() || value < 0)
    throw usage_error(fmt::format("environment variable {} is '{}', expected a number", name, view),
                      fmt::format("unset {}, or start through mpirun", name));
  return value;
}

std::optional<Placement> read_placement(const char* rank_name, const char* size_name) {
  const auto rank = integer_variable(rank_name);
  const auto size = integer_variable(size_name);
  if (!rank || !size) return std::nullopt;
  if (*rank >= *size)
    throw usage_error(fmt::format("{} is {} and {} is {}, expected a rank below the size",
                                  rank_name, *rank, size_name, *size),
                      "start through mpirun");
  return Placement{*rank, *size};
}

// Open MPI 4 and 5 set the first pair whatever starts them. srun with a PMIx plugin sets the
// others: the step's task count, since SLURM_NTASKS also stands in a batch script's own
// environment, where no MPI is.
std::optional<Placement> placement() {
  if (const auto found = read_placement("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
    return found;
  if (std::getenv("PMIX_RANK") == nullptr) return std::nullopt;
  if (const auto found = read_placement("PMIX_RANK", "SLURM_STEP_NUM_TASKS")) return found;
  throw usage_error("PMIX_RANK is set, but neither OMPI_COMM_WORLD_SIZE nor SLURM_STEP_NUM_TASKS",
                    "start through mpirun, or unset PMIX_RANK for a single process");
}

}  // namespace

std::unique_ptr<Transport> open_mpi_transport() {
  const auto module = Module::open("mpi");
  auto* open = module.function<decltype(stagecoach_open_mpi_transport_v2)>(
      "stagecoach_open_mpi_transport_v2");
  return std::unique_ptr<Transport>(open(STAGECOACH_BUILD));
}

bool launched_by_mpi() {
  return placement().has_value();
}
int launched_rank() {
  return placement().value_or(Placement{0, 1}).rank;
}
int launched_size() {
  return placement().value_or(Placement{0, 1}).size;
}

int launched_local_size() {
  const int size = launched_size();
  return std::max(1, integer_variable("OMPI_COMM_WORLD_LOCAL_SIZE").value_or(size));
}

std::optional<int> launched_local_rank() {
  if (launched_size() == 1) return 0;
  return integer_variable("OMPI_COMM_WORLD_LOCAL_RANK");
}

}  // namespace stagecoach
