#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <memory>

namespace stagecoach {

void setup_logging(Verbosity verbosity, const std::string& who) {
  auto logger = std::make_shared<spdlog::logger>("stagecoach",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern(who.empty() ? "%H:%M:%S %l: %v" : "%H:%M:%S %l " + who + ": %v");
  switch (verbosity) {
    case Verbosity::kQuiet:
      logger->set_level(spdlog::level::warn);
      break;
    case Verbosity::kNormal:
      logger->set_level(spdlog::level::info);
      break;
    case Verbosity::kVerbose:
      logger->set_level(spdlog::level::debug);
      break;
  }
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace stagecoach
