// What launchers that were killed have left behind, and its end.
#pragma once

#include <filesystem>

namespace stagecoach {

// Folders of jobs below an agent's state that nobody has touched for a day. A job that runs is
// touched while its launcher pings.
void sweep_jobs(const std::filesystem::path& state);
void touch_job(const std::filesystem::path& folder);

// Folders below launches/ of a launcher's state whose launchers hold them no more. They have copies
// of keys in them.
void sweep_launches(const std::filesystem::path& state);

// In the folder of a launch: its launcher holds it.
inline constexpr const char* kLaunchLock = "lock";

}  // namespace stagecoach
