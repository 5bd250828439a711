// How many processors this process may use: the affinity mask says which, cgroups how much of them.
#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "backend/cpu/cpu_backend.h"

namespace stagecoach {
namespace {

constexpr int kNoLimit = 1 << 20;

// The processors of the affinity mask; empty where the system does not say.
std::vector<int> affinity_cpus() {
  // Machines with more than 1024 processors need a larger mask than cpu_set_t: grow until it fits.
  for (int cpus = 1024; cpus <= kNoLimit; cpus *= 2) {
    cpu_set_t* mask = CPU_ALLOC(static_cast<std::size_t>(cpus));
    if (mask == nullptr) break;
    const std::size_t size = CPU_ALLOC_SIZE(static_cast<std::size_t>(cpus));
    const bool known = sched_getaffinity(0, size, mask) == 0;
    std::vector<int> found;
    for (int cpu = 0; known && cpu < cpus; ++cpu)
      if (CPU_ISSET_S(static_cast<std::size_t>(cpu), size, mask)) found.push_back(cpu);
    CPU_FREE(mask);
    if (known) return found;
  }
  return {};
}

// Whole processors in a quota, rounded up: a quota of 1.5 keeps two threads busy most of the time.
int cpus_of_quota(double quota, double period) {
  if (quota <= 0 || period <= 0) return kNoLimit;
  const double cpus = quota / period;
  const int whole = static_cast<int>(std::min(cpus, static_cast<double>(kNoLimit)));
  return std::max(whole + (whole < cpus ? 1 : 0), 1);
}

int cgroup_v2_limit(const std::filesystem::path& folder) {
  std::ifstream file(folder / "cpu.max");  // "max 100000" or "150000 100000"
  double quota = 0, period = 0;
  return file >> quota >> period ? cpus_of_quota(quota, period) : kNoLimit;
}

int cgroup_v1_limit(const std::filesystem::path& folder) {
  std::ifstream quota_file(folder / "cpu.cfs_quota_us"), period_file(folder / "cpu.cfs_period_us");
  double quota = 0, period = 0;
  return quota_file >> quota && period_file >> period ? cpus_of_quota(quota, period) : kNoLimit;
}

// The tightest limit from `mount`/`group` up to `mount`: a parent's quota binds its children.
template <typename Limit>
int tightest(const std::filesystem::path& mount, const std::string& group, Limit limit) {
  int cpus = limit(mount);
  std::filesystem::path folder = mount;
  for (const std::filesystem::path& part : std::filesystem::path(group).relative_path())
    cpus = std::min(cpus, limit(folder /= part));
  return cpus;
}

int cgroup_cpus() {
  int cpus = kNoLimit;
  std::ifstream groups("/proc/self/cgroup");  // hierarchy:controllers:path
  for (std::string line; std::getline(groups, line);) {
    std::istringstream fields(line);
    std::string hierarchy, controllers, group;
    std::getline(fields, hierarchy, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, group);
    if (controllers.empty())
      cpus = std::min(cpus, tightest("/sys/fs/cgroup", group, cgroup_v2_limit));
    else if ((',' + controllers + ',').find(",cpu,") != std::string::npos)
      cpus = std::min(cpus, tightest("/sys/fs/cgroup/cpu", group, cgroup_v1_limit));
  }
  return cpus;
}

}  // namespace

int allowed_cpus() {
  const auto masked = static_cast<int>(affinity_cpus().size());
  const int cpus =
      masked > 0 ? masked : std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
  return std::min(cpus, cgroup_cpus());
}

std::vector<int> own_cpus(int threads, int rank_here, int ranks_here) {
  const std::vector<int> all = affinity_cpus();
  const auto count = static_cast<int>(all.size());
  const bool known = rank_here >= 0 && rank_here < ranks_here;
  if (!known || count != threads * ranks_here || cgroup_cpus() < count) return {};
  const auto first = all.begin() + rank_here * threads;
  return {first, first + threads};
}

}  // namespace stagecoach
