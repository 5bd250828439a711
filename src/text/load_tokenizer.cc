#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "text/added_token_table.h"
#include "text/bpe_tokenizer.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_json.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

// The largest published one, of 262,144 tokens, has 33 MB.
constexpr std::int64_t kMaxTokenizerBytes = 256 << 20;

const Json& component(const JsonObject& root, const char* key) {
  static const Json kNone;
  return root.has(key) ? root.at(key) : kNone;
}

void require_known_ids(const SpecialFrame& frame, const AddedTokenTable& table,
                       const std::string& where) {
  for (const std::vector<TokenId>* ids : {&frame.before, &frame.after}) {
    for (const TokenId id : *ids) {
      if (!table.has_id(id))
        throw data_error(
            fmt::format("{}: the post-processor adds the id {}, which no token has", where, id));
    }
  }
}

std::unique_ptr<Tokenizer> load_json(const fs::path& directory) {
  const fs::path path = directory / "tokenizer.json";
  const std::string where = path.string();
  const Json json = read_json_file(path, kMaxTokenizerBytes);
  const JsonObject root(json, where);
  if (is_byte_tokenizer(json)) return make_byte_tokenizer();
  if (const std::string version = root.string_or("version", "1.0"); version != "1.0")
    throw data_error(fmt::format("{}: expected version 1.0, found \"{}\"", where, version));
  // "truncation" and "padding" are left alone: transformers, too, sets them for each call.
  const auto named = [&](const char* key) { return fmt::format("{}: \"{}\"", where, key); };

  Normalizer normalizer = parse_normalizer(component(root, "normalizer"), named("normalizer"));
  PreTokenizer pre_tokenizer =
      parse_pre_tokenizer(component(root, "pre_tokenizer"), named("pre_tokenizer"));
  SpecialFrame frame =
      parse_post_processor(component(root, "post_processor"), named("post_processor"));
  std::vector<DecoderStep> decoder = parse_decoder(component(root, "decoder"), named("decoder"));
  BpeModel model = parse_bpe_model(root.at("model"), named("model"));

  AddedTokenTable table(model.vocabulary());
  if (root.has("added_tokens")) {
    for (const Json& token : root.array("added_tokens"))
      table.add(parse_added_token(token, named("added_tokens")),
                JsonObject(token, named("added_tokens")).integer("id"), named("added_tokens"));
  }
  TokenizerConfig(directory).add_tokens_to(table);
  require_known_ids(frame, table, where);
  AddedTokens added(table.take(), normalizer);
  return make_bpe_tokenizer({.added = std::move(added),
                             .normalizer = std::move(normalizer),
                             .pre_tokenizer = std::move(pre_tokenizer),
                             .model = std::move(model),
                             .frame = std::move(frame),
                             .decoder = std::move(decoder)});
}

// One merge a line; a first line that says "#version: …" is a comment, any other # is a token.
std::vector<Merge> parse_merges(std::string_view text, const std::string& where) {
  std::vector<Merge> merges;
  for (int number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (number == 1 && line.starts_with("#version")) continue;
    if (line.empty() && text.empty()) break;
    merges.push_back(parse_merge(line, fmt::format("{}, line {}", where, number)));
  }
  return merges;
}

void require_gpt2_rules(const TokenizerConfig& config, const fs::path& directory) {
  static constexpr std::array<std::string_view, 5> kKnown = {
      "", "GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizer", "CodeGenTokenizerFast"};
  const std::string name = config.tokenizer_class();
  if (std::find(kKnown.begin(), kKnown.end(), name) == kKnown.end())
    throw data_error(
        fmt::format("{}: vocab.json and merges.txt of the tokenizer_class \"{}\" are not "
                    "supported, expected GPT2Tokenizer",
                    directory.string(), name),
        "save the tokenizer with transformers, which writes a tokenizer.json");
}

std::unique_ptr<Tokenizer> load_vocab_and_merges(const fs::path& directory) {
  const TokenizerConfig config(directory);
  require_gpt2_rules(config, directory);
  const fs::path vocab_path = directory / "vocab.json";
  const fs::path merges_path = directory / "merges.txt";
  Vocabulary vocabulary =
      parse_vocabulary(read_json_file(vocab_path, kMaxTokenizerBytes), vocab_path.string());
  const std::string merges_text = read_text_file(merges_path, kMaxTokenizerBytes);
  BpeModel model(std::move(vocabulary), parse_merges(merges_text, merges_path.string()), {},
                 directory.string());

  AddedTokenTable table(model.vocabulary());
  config.add_tokens_to(table);
  // GPT2Tokenizer's own default for the roles that no file fills.
  const std::string bos = config.special_token("bos_token").value_or("<|endoftext|>");
  const std::string eos = config.special_token("eos_token").value_or("<|endoftext|>");
  table.add_known({.content = bos, .special = true});
  table.add_known({.content = eos, .special = true});

  SpecialFrame frame;
  const auto add_if_asked = [&](const char* flag, const std::string& token,
                                std::vector<TokenId>& ids) {
    if (!config.flag(flag)) return;
    const auto id = table.id_of(token);
    if (!id)
      throw data_error(fmt::format("{}: {} is true, but the token \"{}\" has no id",
                                   (directory / "tokenizer_config.json").string(), flag, token));
    ids.push_back(*id);
  };
  add_if_asked("add_bos_token", bos, frame.before);
  add_if_asked("add_eos_token", eos, frame.after);

  AddedTokens added(table.take(), Normalizer());
  return make_bpe_tokenizer(
      {.added = std::move(added),
       .normalizer = Normalizer(),
       .pre_tokenizer =
           PreTokenizer({ByteLevelStep{.add_prefix_space = config.flag("add_prefix_space")}}),
       .model = std::move(model),
       .frame = std::move(frame),
       .decoder = {ByteLevelDecoding{}}});
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& directory) {
  if (file_exists(directory / "tokenizer.json")) return load_json(directory);
  const bool vocab = file_exists(directory / "vocab.json");
  const bool merges = file_exists(directory / "merges.txt");
  if (vocab && merges) return load_vocab_and_merges(directory);
  if (vocab || merges)
    throw data_error(
        fmt::format("{} has {} but not {}", directory.string(), vocab ? "vocab.json" : "merges.txt",
                    vocab ? "merges.txt" : "vocab.json"),
        "copy the other file there, too, or a tokenizer.json");
  if (file_exists(directory / "tokenizer.model"))
    spdlog::warn(
        "{} has a tokenizer.model but no tokenizer.json, which is what can be read; save the "
        "tokenizer with transformers to get one",
        directory.string());
  return nullptr;
}

std::string byte_tokenizer_json() {
  return "{\"version\": \"1.0\", \"model\": {\"type\": \"StagecoachByte\"}}\n";
}

const std::vector<std::string>& tokenizer_file_names() {
  static const std::vector<std::string> kNames = {"tokenizer.json",
                                                  "tokenizer_config.json",
                                                  "vocab.json",
                                                  "merges.txt",
                                                  "special_tokens_map.json",
                                                  "added_tokens.json",
                                                  "generation_config.json"};
  return kNames;
}

}  // namespace stagecoach
