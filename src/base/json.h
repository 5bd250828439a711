// JSON from files that nobody vouches for: duplicate keys, deep nesting and invalid UTF-8 are
// errors, and every access that fails says which key of which file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

using Json = nlohmann::json;

// `source` names the text in errors. Throws data_error.
Json parse_json(std::string_view text, const std::string& source, int max_depth = 32);
Json read_json_file(const std::filesystem::path& path, std::int64_t max_bytes);

// Typed access to an object: JsonObject(j, "config.json").integer("n_layer").
class JsonObject {
 public:
  JsonObject(const Json& json, std::string where);  // throws unless `json` is an object

  bool has(const char* key) const;  // present and not null
  const Json& at(const char* key) const;
  JsonObject object(const char* key) const;
  const Json& array(const char* key) const;

  std::int64_t integer(const char* key) const;
  std::int64_t integer_in(const char* key, std::int64_t low, std::int64_t high) const;
  double number(const char* key) const;
  bool boolean(const char* key) const;
  std::string string(const char* key) const;

  std::int64_t integer_or(const char* key, std::int64_t fallback) const;
  double number_or(const char* key, double fallback) const;
  bool boolean_or(const char* key, bool fallback) const;
  std::string string_or(const char* key, const std::string& fallback) const;

  // Throws data_error naming the first key that is not in `known`: nothing is ignored in silence.
  void only(std::initializer_list<std::string_view> known) const {
    only(std::span(known.begin(), known.size()));
  }
  void only(std::span<const std::string_view> known) const;

  const Json& json() const { return *json_; }
  const std::string& where() const { return where_; }

 private:
  const Json* json_;
  std::string where_;
};

}  // namespace stagecoach
