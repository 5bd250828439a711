#include "launcher/leftovers.h"

#include <chrono>

#include "base/error.h"
#include "base/file_lock.h"
#include "base/log.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::hours kOldJob{24};
// Of a launch: file systems that cannot lock are used unlocked.
constexpr std::chrono::hours kOldLaunch{1};

template <typename Visit>
void for_each_old(const fs::path& folder, std::chrono::hours age, const Visit& visit) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    // Another sweep may be quicker.
    std::error_code gone;
    const auto written = fs::last_write_time(entry->path(), gone);
    if (!gone && !entry->is_symlink(gone) && entry->is_directory(gone) &&
        fs::file_time_type::clock::now() - written > age)
      visit(entry->path());
  }
}

void sweep(const fs::path& folder) {
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  spdlog::info("{}: removed, its launch has ended long ago", folder.string());
}

}  // namespace

void sweep_jobs(const fs::path& state) {
  for_each_old(state / "jobs", kOldJob, sweep);
}

void touch_job(const fs::path& folder) {
  std::error_code ignored;
  fs::last_write_time(folder, fs::file_time_type::clock::now(), ignored);
}

void sweep_launches(const fs::path& state) {
  for_each_old(state / "launches", kOldLaunch, [](const fs::path& folder) {
    try {
      const FileLock lock = FileLock::of_file(folder / kLaunchLock, "it runs");
      sweep(folder);
    } catch (const Error&) {  // it runs, or is another user's
    }
  });
}

}  // namespace stagecoach
