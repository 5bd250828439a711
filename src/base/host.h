// What this host and its user are called, and where the user's files lie.
#pragma once

#include <filesystem>
#include <string>

namespace stagecoach {

// As `hostname` prints it; `otherwise` where the system does not say.
std::string host_name(const std::string& otherwise);

// The folder "stagecoach" in that of an XDG variable (XDG_CACHE_HOME; a relative one does not
// count, as its specification has it), else in `below_home` of HOME. Empty where neither is set.
std::filesystem::path user_folder(const char* xdg_variable, const char* below_home);

}  // namespace stagecoach
