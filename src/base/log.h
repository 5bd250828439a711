// Logging to stderr. Results never go here; stdout is theirs.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace stagecoach {

enum class Verbosity { kQuiet, kNormal, kVerbose };

// Prefixes lines with time and level and, when `who` is not empty ("rank 2 on pc-b"), with it.
// Ranks other than 0 should pass kQuiet unless the user asked for --verbose: warnings still show.
void setup_logging(Verbosity verbosity, const std::string& who);

}  // namespace stagecoach
