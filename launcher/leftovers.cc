#include "launcher/leftovers.h"

#include <chrono>
#include <regex>

#include "base/error.h"
#include "base/file_lock.h"
#include "base/log.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::hours kOldJob{24};
// Of a launch: file systems that cannot lock are used unlocked.
constexpr std::chrono::hours kOldLaunch{1};

// `names`: what launches call them, DATE-TIME-PROCESS and of jobs @HOST behind it. The state's
// folder may be anybody's, with folders of theirs.
template <typename Visit>
void for_each_old(const fs::path& folder, const std::regex& names, std::chrono::hours age,
                  const Visit& visit) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (!std::regex_match(entry->path().filename().string(), names)) continue;
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
  for_each_old(state / "jobs", std::regex("[0-9]{8}-[0-9]{6}-[0-9]+@[0-9]+"), kOldJob, sweep);
}

void touch_job(const fs::path& folder) {
  std::error_code ignored;
  fs::last_write_time(folder, fs::file_time_type::clock::now(), ignored);
}

void sweep_launches(const fs::path& state) {
  const std::regex names("[0-9]{8}-[0-9]{6}-[0-9]+");
  for_each_old(state / "launches", names, kOldLaunch, [](const fs::path& folder) {
    std::error_code error;
    if (!fs::exists(folder / kLaunchLock, error)) return;  // a lock is never made for this
    try {
      const FileLock lock = FileLock::of_file(folder / kLaunchLock, "it runs");
      sweep(folder);
    } catch (const Error&) {  // it runs, or is another user's
    }
  });
}

}  // namespace stagecoach
