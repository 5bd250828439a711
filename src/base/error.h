// Typed errors. Libraries throw them, only main turns them into an exit code and one message.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace stagecoach {

// The value is the process's exit code (docs/cli.md).
enum class ErrorKind {
  kInternal = 1,       // a bug of ours
  kUsage = 2,          // flags, job file, a request that the model cannot serve
  kData = 3,           // checkpoint, store or text content
  kResources = 4,      // memory, disk, permissions, modules
  kPeerLost = 5,       // a rank died or fell silent
  kInterrupted = 130,  // Ctrl-C
};

// what() is "problem, expected, actual", one sentence; hint() is the next command to try, or empty.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& problem, std::string hint = {})
      : std::runtime_error(problem), kind_(kind), hint_(std::move(hint)) {}

  ErrorKind kind() const { return kind_; }
  int exit_code() const { return static_cast<int>(kind_); }
  const std::string& hint() const { return hint_; }

 private:
  ErrorKind kind_;
  std::string hint_;
};

inline Error usage_error(const std::string& problem, std::string hint = {}) {
  return {ErrorKind::kUsage, problem, std::move(hint)};
}
inline Error data_error(const std::string& problem, std::string hint = {}) {
  return {ErrorKind::kData, problem, std::move(hint)};
}
inline Error resource_error(const std::string& problem, std::string hint = {}) {
  return {ErrorKind::kResources, problem, std::move(hint)};
}

// For what only a bug can break. Never for input.
#define STAGECOACH_CHECK(condition)                                                \
  do {                                                                             \
    if (!(condition)) [[unlikely]]                                                 \
      throw ::stagecoach::Error(                                                   \
          ::stagecoach::ErrorKind::kInternal,                                      \
          fmt::format("{}:{}: check failed: {}", __FILE__, __LINE__, #condition)); \
  } while (false)

}  // namespace stagecoach
