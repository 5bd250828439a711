#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/quote.h"
#include "text/added_token_table.h"
#include "text/bpe_tokenizer.h"
#include "text/sentencepiece.h"
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

std::unique_ptr<Tokenizer> load_json(const TokenizerFiles& files, const std::string& folder) {
  const std::string where = folder + "/tokenizer.json";
  const Json json = parse_json(files.at("tokenizer.json"), where);
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
  TokenizerConfig(files, folder).add_tokens_to(table);
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

void require_gpt2_rules(const TokenizerConfig& config, const std::string& where) {
  static constexpr std::array<std::string_view, 5> kKnown = {
      "", "GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizer", "CodeGenTokenizerFast"};
  const std::string name = config.tokenizer_class();
  if (std::find(kKnown.begin(), kKnown.end(), name) == kKnown.end())
    throw data_error(
        fmt::format("{}: vocab.json and merges.txt of the tokenizer_class \"{}\" are not "
                    "supported, expected GPT2Tokenizer",
                    where, name),
        "save the tokenizer with transformers, which writes a tokenizer.json");
}

std::unique_ptr<Tokenizer> load_vocab_and_merges(const TokenizerFiles& files,
                                                 const std::string& where) {
  const TokenizerConfig config(files, where);
  require_gpt2_rules(config, where);
  const std::string vocab_name = where + "/vocab.json";
  Vocabulary vocabulary =
      parse_vocabulary(parse_json(files.at("vocab.json"), vocab_name), vocab_name);
  BpeModel model(std::move(vocabulary), parse_merges(files.at("merges.txt"), where + "/merges.txt"),
                 {}, where);

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
    if (!config.flag(flag, false)) return;
    const auto id = table.id_of(token);
    if (!id)
      throw data_error(fmt::format("{}: {} is true, but the token \"{}\" has no id",
                                   where + "/tokenizer_config.json", flag, token));
    ids.push_back(*id);
  };
  add_if_asked("add_bos_token", bos, frame.before);
  add_if_asked("add_eos_token", eos, frame.after);

  AddedTokens added(table.take(), Normalizer());
  return make_bpe_tokenizer({.added = std::move(added),
                             .normalizer = Normalizer(),
                             .pre_tokenizer = PreTokenizer({ByteLevelStep{
                                 .add_prefix_space = config.flag("add_prefix_space", false)}}),
                             .model = std::move(model),
                             .frame = std::move(frame),
                             .decoder = {ByteLevelDecoding{}}});
}

std::unique_ptr<Tokenizer> load_sentencepiece(const TokenizerFiles& files,
                                              const std::string& where) {
  static constexpr std::array<std::string_view, 7> kKnown = {"",
                                                             "LlamaTokenizer",
                                                             "LlamaTokenizerFast",
                                                             "CodeLlamaTokenizer",
                                                             "CodeLlamaTokenizerFast",
                                                             "GemmaTokenizer",
                                                             "GemmaTokenizerFast"};
  const TokenizerConfig config(files, where);
  const std::string name = config.tokenizer_class();
  if (std::find(kKnown.begin(), kKnown.end(), name) == kKnown.end())
    throw data_error(fmt::format("{}: a tokenizer.model of the tokenizer_class {} is not "
                                 "supported, expected LlamaTokenizer",
                                 where, quote_name(name)),
                     "save the tokenizer with transformers, which writes a tokenizer.json");
  const std::string path = where + "/tokenizer.model";
  return make_sentencepiece_tokenizer(parse_sentencepiece(files.at("tokenizer.model"), path),
                                      config, path);
}

}  // namespace

TokenizerFiles read_tokenizer_files(const fs::path& directory) {
  TokenizerFiles files;
  for (const std::string& name : tokenizer_file_names()) {
    const fs::path path = directory / name;
    // A path that cannot be looked at counts as there, and so does a link to nowhere: opening it
    // then says what is wrong.
    std::error_code ignored;
    if (fs::symlink_status(path, ignored).type() != fs::file_type::not_found)
      files.emplace(name, read_text_file(path, kMaxTokenizerBytes));
  }
  return files;
}

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& directory) {
  return load_tokenizer(read_tokenizer_files(directory), directory.string());
}

std::unique_ptr<Tokenizer> load_tokenizer(const TokenizerFiles& files, const std::string& where) {
  if (files.contains("tokenizer.json")) return load_json(files, where);
  const bool vocab = files.contains("vocab.json");
  const bool merges = files.contains("merges.txt");
  if (vocab && merges) return load_vocab_and_merges(files, where);
  if (files.contains("tokenizer.model")) return load_sentencepiece(files, where);
  if (vocab || merges)
    throw data_error(fmt::format("{} has {} but not {}", where, vocab ? "vocab.json" : "merges.txt",
                                 vocab ? "merges.txt" : "vocab.json"),
                     "copy the other file there, too, or a tokenizer.json");
  return nullptr;
}

std::string byte_tokenizer_json() {
  return "{\"version\": \"1.0\", \"model\": {\"type\": \"StagecoachByte\"}}\n";
}

const std::vector<std::string>& tokenizer_file_names() {
  static const std::vector<std::string> kNames = {
      "tokenizer.json",    "tokenizer_config.json", "vocab.json",
      "merges.txt",        "tokenizer.model",       "special_tokens_map.json",
      "added_tokens.json", "chat_template.jinja",   "generation_config.json"};
  return kNames;
}

}  // namespace stagecoach
