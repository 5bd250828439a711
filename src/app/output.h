// Results on stdout, and progress on stderr.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/json.h"

namespace stagecoach {

// Writes to stdout and flushes, so that streamed text appears at once. Throws resource_error when
// stdout cannot take it.
void print(std::string_view text);
void print_json_line(const Json& json);
// All that print has written, in this process.
std::int64_t printed_bytes();

// What an exception that reached the top means to the user.
Error as_error(const std::exception& exception);

// The one message of an error, on stderr; `who` names the rank that met it, or is empty.
void print_error(const Error& error, const std::string& who);

enum class ProgressUnit : std::uint8_t { kBytes, kTokens, kPasses };

// A bar when stderr is a terminal, a line every few seconds when it is not (under mpirun it never
// is).
class Progress {
 public:
  // Silent when `enabled` is false.
  Progress(std::string what, ProgressUnit unit, bool enabled);
  ~Progress();
  void update(std::int64_t done, std::int64_t total);

 private:
  void draw(std::int64_t done, std::int64_t total);
  std::string amount(double value) const;
  std::string what_;
  ProgressUnit unit_;
  bool enabled_;
  bool terminal_;
  bool drawn_ = false;
  std::int64_t begin_ns_;
  std::int64_t begin_done_ = -1;  // of the first update: a resumed import has not just done those
  std::int64_t last_ns_ = 0;
};

}  // namespace stagecoach
