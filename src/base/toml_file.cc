#include "base/toml_file.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "base/byte_size.h"
#include "base/file.h"
#include "base/quote.h"

namespace stagecoach {

toml::table read_toml_file(const std::string& file, const std::string& what,
                           const std::string& flag) {
  constexpr std::int64_t kMaxBytes = 1 << 20;
  std::string text;
  try {
    text = read_text_file(file, kMaxBytes);
  } catch (const Error& error) {
    throw usage_error(fmt::format("{}: {}", what, error.what()), fmt::format("check {}", flag));
  }
  // toml++ goes into nested keys by recursion, tens of thousands deep.
  constexpr int kMostOpen = 10'000;
  int open = 0, line = 1;
  for (const char c : text) {
    if (c == '\n') open = 0, ++line;
    if ((c == '.' || c == '[' || c == '{') && ++open > kMostOpen)
      throw usage_error(
          fmt::format("{}:{}: more than {} dots and brackets in one line", file, line, kMostOpen));
  }
  try {
    return toml::parse(text, file);
  } catch (const toml::parse_error& error) {
    const toml::source_position& at = error.source().begin;
    throw usage_error(fmt::format("{}:{}:{}: {}", file, at.line, at.column, error.description()));
  }
}

Error toml_error(const std::string& file, const toml::node& node, const std::string& problem,
                 const std::string& hint) {
  const toml::source_position& at = node.source().begin;
  return usage_error(fmt::format("{}:{}:{}: {}", file, at.line, at.column, problem), hint);
}

namespace {

// What stands there, for messages.
std::string found(const toml::node& node) {
  std::ostringstream text;
  if (node.is_table() || node.is_array()) return node.is_table() ? "a table" : "a list";
  node.visit([&](const auto& value) { text << value; });
  return quote_value(text.str());
}

}  // namespace

std::string toml_scalar_text(const std::string& file, const toml::node& node) {
  if (const auto* text = node.as_string()) {
    if (text->get().find('\0') != std::string::npos)
      throw toml_error(file, node, "a zero byte in a text");
    return text->get();
  }
  if (const auto* integer = node.as_integer()) return std::to_string(integer->get());
  if (const auto* number = node.as_floating_point()) return fmt::format("{}", number->get());
  if (const auto* boolean = node.as_boolean()) return boolean->get() ? "true" : "false";
  throw toml_error(file, node, "expected a string, a number, true or false");
}

std::vector<std::string> toml_texts(const std::string& file, const toml::node& node) {
  const auto* const list = node.as_array();
  if (list == nullptr) return {toml_scalar_text(file, node)};
  std::vector<std::string> texts;
  for (const auto& item : *list) texts.push_back(toml_scalar_text(file, item));
  return texts;
}

TomlTable::TomlTable(const std::string& file, std::string where, const toml::node& node)
    : file_(file), where_(std::move(where)), table_(node.as_table()) {
  if (table_ == nullptr)
    throw toml_error(file, node, fmt::format("{}: expected a table, [{}]", where_, where_));
}

void TomlTable::only(std::initializer_list<std::string_view> known) const {
  for (const auto& [key, value] : *table_) {
    if (std::find(known.begin(), known.end(), key.str()) != known.end()) continue;
    std::string names;
    for (const std::string_view name : known)
      names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
    throw toml_error(
        file_, value,
        fmt::format("'{}' is not a setting of {}; known: {}", key.str(), where_, names));
  }
}

std::string TomlTable::string_or(std::string_view key, const std::string& fallback) const {
  const toml::node* const node = table_->get(key);
  if (node == nullptr) return fallback;
  const auto* const text = node->as_string();
  if (text == nullptr) throw wrong(*node, key, "expected a string");
  return toml_scalar_text(file_, *node);
}

std::int64_t TomlTable::bytes_or(std::string_view key, std::int64_t fallback) const {
  const toml::node* const node = table_->get(key);
  if (node == nullptr) return fallback;
  if (!node->is_string() && !node->is_integer())
    throw wrong(*node, key, fmt::format("expected a size, like \"8GiB\", found {}", found(*node)));
  std::int64_t bytes = 0;
  try {
    bytes = parse_byte_size(toml_scalar_text(file_, *node));
  } catch (const Error& error) {
    throw wrong(*node, key, fmt::format("{}: {}", error.what(), error.hint()));
  }
  if (bytes <= 0)
    throw wrong(*node, key, fmt::format("expected more than 0 bytes, found {}", found(*node)));
  return bytes;
}

std::int64_t TomlTable::integer_or(std::string_view key, std::int64_t fallback, std::int64_t low,
                                   std::int64_t high) const {
  const toml::node* const node = table_->get(key);
  if (node == nullptr) return fallback;
  const auto* const integer = node->as_integer();
  if (integer == nullptr || integer->get() < low || integer->get() > high)
    throw wrong(
        *node, key,
        fmt::format("expected a whole number from {} to {}, found {}", low, high, found(*node)));
  return integer->get();
}

double TomlTable::rate_or(std::string_view key, double fallback) const {
  const toml::node* const node = table_->get(key);
  if (node == nullptr) return fallback;
  const auto* const integer = node->as_integer();
  const auto* const real = node->as_floating_point();
  const double number = integer != nullptr ? static_cast<double>(integer->get())
                        : real != nullptr  ? real->get()
                                           : 0;
  if (!std::isfinite(number) || number <= 0)
    throw wrong(*node, key, fmt::format("expected a number above 0, found {}", found(*node)));
  return number;
}

Error TomlTable::wrong(const toml::node& node, std::string_view key,
                       const std::string& problem) const {
  return toml_error(file_, node, fmt::format("{}.{}: {}", where_, key, problem));
}

}  // namespace stagecoach
