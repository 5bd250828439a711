#include "app/token_log.h"

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"

namespace stagecoach {
namespace {

constexpr const char* kFormat = "stagecoach-tokens";
constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 30;

std::vector<TokenId> parse_tokens(const Json& list, const std::string& where) {
  std::vector<TokenId> tokens;
  const auto is_token = [](const Json& id) {
    return id.is_number_integer() && id.get<std::int64_t>() >= 0 &&
           id.get<std::int64_t>() <= (std::int64_t{1} << 30);
  };
  if (!list.is_array()) throw data_error(fmt::format("{}: expected lists of token ids", where));
  for (const Json& id : list) {
    if (!is_token(id)) throw data_error(fmt::format("{}: expected token ids", where));
    tokens.push_back(static_cast<TokenId>(id.get<std::int64_t>()));
  }
  return tokens;
}

std::string checksum(const Json& lists) {
  return hash_to_hex(xxh3(as_bytes(lists.dump(-1, ' ', false, Json::error_handler_t::replace))));
}

}  // namespace

TokenLog::TokenLog(const std::filesystem::path& folder, std::uint64_t work)
    : file_(folder / "tokens.json"), work_(work) {}

std::optional<std::vector<std::vector<TokenId>>> TokenLog::load(std::size_t prompts) const {
  std::error_code ignored;
  if (!std::filesystem::exists(file_, ignored)) return std::nullopt;
  const Json json = read_json_file(file_, kMaxBytes);
  const std::string where = file_.string();
  const JsonObject object(json, where);
  if (object.string("format") != kFormat || object.integer("version") != kVersion)
    throw data_error(fmt::format("{} is not a token log of this version", where),
                     "another --checkpoint DIR");
  if (object.string("work") != hash_to_hex(work_)) return std::nullopt;
  const std::string expected = object.string("checksum"), found = checksum(object.array("tokens"));
  if (found != expected)
    throw data_error(
        fmt::format("{} is damaged: expected checksum {}, found {}", where, expected, found),
        "delete it: the same command then begins its texts again");
  std::vector<std::vector<TokenId>> tokens;
  for (const Json& list : object.array("tokens")) tokens.push_back(parse_tokens(list, where));
  if (tokens.size() != prompts)
    throw data_error(
        fmt::format("{}: expected tokens of {} prompts, found {}", where, prompts, tokens.size()));
  return tokens;
}

void TokenLog::save(const std::vector<const std::vector<TokenId>*>& tokens) const {
  Json lists = Json::array();
  for (const std::vector<TokenId>* list : tokens) lists.push_back(*list);
  const Json json{{"format", kFormat},
                  {"version", kVersion},
                  {"work", hash_to_hex(work_)},
                  {"checksum", checksum(lists)},
                  {"tokens", std::move(lists)}};
  write_file_atomically(file_, json.dump() + "\n");
}

}  // namespace stagecoach
