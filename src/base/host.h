// What this host and its user are called, and where the user's files lie.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace stagecoach {

// As `hostname` prints it; `otherwise` where the system does not say.
std::string host_name(const std::string& otherwise);

// Of this user: HOME, else what the system's user database says; empty where neither knows one.
std::filesystem::path home_folder();

// "~" and "~/model".
bool in_a_home(std::string_view path);

// "~/model" as a shell has it. Throws usage_error, naming `what`, where this user has no home.
std::string with_home(const std::string& path, const std::string& what);

// The folder "stagecoach" in that of an XDG variable (XDG_CACHE_HOME; a relative one does not
// count, as its specification has it), else in `below_home` of the home folder. Empty where there
// is neither.
std::filesystem::path user_folder(const char* xdg_variable, const char* below_home);

}  // namespace stagecoach
