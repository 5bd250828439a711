#include "base/json.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace stagecoach {
namespace {

// At most `limit` bytes, cut between characters: values from a hostile file must not flood an
// error.
std::string shorten(std::string text, std::size_t limit) {
  if (text.size() <= limit) return text;
  std::size_t end = limit - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
  return text.substr(0, end) + "...";
}

// nlohmann's DOM parser keeps the last of two equal keys; this handler builds the same DOM and
// refuses.
class StrictHandler : public nlohmann::json_sax<Json> {
 public:
  StrictHandler(std::string source, int max_depth)
      : source_(std::move(source)), max_depth_(max_depth) {}

  Json take() { return std::move(root_); }

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(std::int64_t v) override { return value(v); }
  bool number_unsigned(std::uint64_t v) override { return value(v); }
  bool number_float(double v, const std::string&) override { return value(v); }
  bool string(std::string& v) override { return value(std::move(v)); }
  bool binary(Json::binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    if (stack_.back()->contains(name))
      throw data_error(
          fmt::format("{}: the key \"{}\" stands twice in one object", source_, shorten(name, 60)));
    key_ = name;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    // nlohmann's message is "[json.exception.…] parse error at line L, column C: …"
    std::string text = e.what();
    if (const auto cut = text.find("] "); cut != std::string::npos) text.erase(0, cut + 2);
    throw data_error(
        fmt::format("{} is not valid JSON (byte {}): {}", source_, position, shorten(text, 200)));
  }

 private:
  Json* place(Json v) {
    if (stack_.empty()) {
      root_ = std::move(v);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(v));
      return &parent.back();
    }
    Json& slot = parent[key_];
    slot = std::move(v);
    return &slot;
  }
  bool value(Json v) {
    place(std::move(v));
    return true;
  }
  bool open(Json container) {
    if (static_cast<int>(stack_.size()) >= max_depth_)
      throw data_error(fmt::format("{}: nested deeper than {} levels", source_, max_depth_));
    stack_.push_back(place(std::move(container)));
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }

  std::string source_;
  int max_depth_;
  Json root_;
  // Pointers into root_ stay valid: only the innermost container grows, and it is the last of them.
  std::vector<Json*> stack_;
  std::string key_;
};

Error wrong_type(const std::string& where, const char* key, const char* expected,
                 const Json& found) {
  const std::string text = shorten(found.dump(-1, ' ', false, Json::error_handler_t::replace), 60);
  return data_error(fmt::format("{}: \"{}\" should be {}, found {}", where, key, expected, text));
}

}  // namespace

Json parse_json(std::string_view text, const std::string& source, int max_depth) {
  // nlohmann's lexer takes a NUL for the end and would not look at what follows.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos)
    throw data_error(fmt::format("{} is not valid JSON (byte {}): a NUL byte", source, nul));
  StrictHandler handler(source, max_depth);
  Json::sax_parse(text.begin(), text.end(), &handler);
  return handler.take();
}

Json read_json_file(const std::filesystem::path& path, std::int64_t max_bytes) {
  return parse_json(read_text_file(path, max_bytes), path.string());
}

JsonObject::JsonObject(const Json& json, std::string where)
    : json_(&json), where_(std::move(where)) {
  if (!json.is_object())
    throw data_error(fmt::format("{} should be a JSON object, found {}", where_, json.type_name()));
}

bool JsonObject::has(const char* key) const {
  const auto it = json_->find(key);
  return it != json_->end() && !it->is_null();
}

const Json& JsonObject::at(const char* key) const {
  const auto it = json_->find(key);
  if (it == json_->end()) throw data_error(fmt::format("{}: \"{}\" is missing", where_, key));
  return *it;
}

JsonObject JsonObject::object(const char* key) const {
  return {at(key), fmt::format("{}: \"{}\"", where_, key)};
}

const Json& JsonObject::array(const char* key) const {
  const Json& j = at(key);
  if (!j.is_array()) throw wrong_type(where_, key, "an array", j);
  return j;
}

std::int64_t JsonObject::integer(const char* key) const {
  const Json& j = at(key);
  if (!j.is_number_integer() ||
      (j.is_number_unsigned() &&
       j.get<std::uint64_t>() >
           static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())))
    throw wrong_type(where_, key, "an integer", j);
  return j.get<std::int64_t>();
}

std::int64_t JsonObject::integer_in(const char* key, std::int64_t low, std::int64_t high) const {
  const std::int64_t value = integer(key);
  if (value < low || value > high)
    throw data_error(fmt::format("{}: \"{}\" should be between {} and {}, found {}", where_, key,
                                 low, high, value));
  return value;
}

double JsonObject::number(const char* key) const {
  const Json& j = at(key);
  if (!j.is_number()) throw wrong_type(where_, key, "a number", j);
  return j.get<double>();
}

bool JsonObject::boolean(const char* key) const {
  const Json& j = at(key);
  if (!j.is_boolean()) throw wrong_type(where_, key, "true or false", j);
  return j.get<bool>();
}

std::string JsonObject::string(const char* key) const {
  const Json& j = at(key);
  if (!j.is_string()) throw wrong_type(where_, key, "a string", j);
  return j.get<std::string>();
}

std::int64_t JsonObject::integer_or(const char* key, std::int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}
double JsonObject::number_or(const char* key, double fallback) const {
  return has(key) ? number(key) : fallback;
}
bool JsonObject::boolean_or(const char* key, bool fallback) const {
  return has(key) ? boolean(key) : fallback;
}
std::string JsonObject::string_or(const char* key, const std::string& fallback) const {
  return has(key) ? string(key) : fallback;
}

void JsonObject::only(std::span<const std::string_view> known) const {
  for (const auto& [key, value] : json_->items()) {
    if (std::find(known.begin(), known.end(), key) == known.end())
      throw data_error(fmt::format("{}: unknown key \"{}\"", where_, shorten(key, 60)));
  }
}

}  // namespace stagecoach
