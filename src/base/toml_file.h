// TOML files that people write: every problem is a usage_error with file, line and column.
#pragma once

#include <toml++/toml.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace stagecoach {

// `what` names the file's role ("the job file"), `flag` the option that gave it. Throws usage_error
// for a file that cannot be read or is no TOML.
toml::table read_toml_file(const std::string& file, const std::string& what,
                           const std::string& flag);

// "jobs/a.toml:3:7: " in front of a problem.
Error toml_error(const std::string& file, const toml::node& node, const std::string& problem,
                 const std::string& hint = "docs/planning.md and docs/launcher.md have the keys");

// Typed access to one table.
class TomlTable {
 public:
  // `where` names the table in messages: "nodes.pc-a".
  TomlTable(const std::string& file, std::string where, const toml::node& node);

  // Throws usage_error for the first key that is none of these.
  void only(std::initializer_list<std::string_view> known) const;

  std::string string_or(std::string_view key, const std::string& fallback) const;
  // "8GiB" or a number of bytes, above 0.
  std::int64_t bytes_or(std::string_view key, std::int64_t fallback) const;
  std::int64_t integer_or(std::string_view key, std::int64_t fallback, std::int64_t low,
                          std::int64_t high) const;
  // A finite number above 0.
  double rate_or(std::string_view key, double fallback) const;

 private:
  Error wrong(const toml::node& node, std::string_view key, const std::string& problem) const;

  const std::string& file_;
  std::string where_;
  const toml::table* table_;
};

// A string, number or boolean as text.
std::string toml_scalar_text(const std::string& file, const toml::node& node);
// The same of each item of a list, or of a single value.
std::vector<std::string> toml_texts(const std::string& file, const toml::node& node);

}  // namespace stagecoach
