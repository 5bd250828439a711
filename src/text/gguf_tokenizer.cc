#include "text/gguf_tokenizer.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/quote.h"
#include "text/sentencepiece.h"

namespace stagecoach {
namespace {

constexpr const char* kWithoutTokenizer =
    "--no-tokenizer imports the weights alone, for token ids (--prompt-ids, --ids)";

constexpr const char* kLlama3Words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kBloomWords = R"( ?[^(\s|[.,!?…。，、।۔،])]+)";

// How the tokenizer.json of the models behind a `pre` name splits text. Models whose tokenizer.json
// composes characters (NFC) get that, too, although GGUF does not say it: they were trained so.
struct PreTokenizerName {
  const char* name;
  enum { kGpt2, kRegex, kDigits, kFalcon } kind;
  const char* regex = "";
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  // where the file does not say
};
constexpr std::array<PreTokenizerName, 16> kPreTokenizers = {{
    {"gpt-2", PreTokenizerName::kGpt2},
    {"phi-2", PreTokenizerName::kGpt2},
    {"mpt", PreTokenizerName::kGpt2, "", true},
    {"olmo", PreTokenizerName::kGpt2, "", true},
    {"llama-bpe", PreTokenizerName::kRegex, kLlama3Words, false, true, true},
    {"llama3", PreTokenizerName::kRegex, kLlama3Words, false, true, true},
    {"llama-v3", PreTokenizerName::kRegex, kLlama3Words, false, true, true},
    {"dbrx", PreTokenizerName::kRegex, kLlama3Words},
    {"smaug-bpe", PreTokenizerName::kRegex, kLlama3Words},
    {"qwen2", PreTokenizerName::kRegex, kQwen2Words, true},
    {"deepseek-r1-qwen", PreTokenizerName::kRegex, kQwen2Words, true},
    {"smollm", PreTokenizerName::kDigits},
    {"starcoder", PreTokenizerName::kDigits},
    {"refact", PreTokenizerName::kDigits},
    {"bloom", PreTokenizerName::kRegex, kBloomWords},
    {"falcon", PreTokenizerName::kFalcon},
}};

const PreTokenizerName& find_pre_tokenizer(const std::string& name, const std::string& where) {
  std::vector<std::string> known;
  for (const PreTokenizerName& pre : kPreTokenizers) {
    if (pre.name == name) return pre;
    known.emplace_back(pre.name);
  }
  // llama.cpp splits as Falcon does where the name is missing or "default", and warns that quality
  // suffers. Text in pieces that the model never saw is a wrong answer, so it is refused here.
  throw data_error(
      fmt::format("{}: tokenizer.ggml.pre {} does not say how text is split; known are {}", where,
                  name.empty() ? "is missing and" : quote_name(name), fmt::join(known, ", ")),
      fmt::format("convert the model again with a current converter; {}", kWithoutTokenizer));
}

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

Json split_at(const char* regex) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

Json pre_tokenizer_json(const PreTokenizerName& pre) {
  const auto digits = [](bool individual) {
    return Json{{"type", "Digits"}, {"individual_digits", individual}};
  };
  Json steps = Json::array();
  switch (pre.kind) {
    case PreTokenizerName::kGpt2:
      return byte_level(true);
    case PreTokenizerName::kRegex:
      steps = {split_at(pre.regex), byte_level(false)};
      break;
    case PreTokenizerName::kDigits:
      steps = {digits(true), byte_level(true)};
      break;
    case PreTokenizerName::kFalcon:
      steps = {{{"type", "Punctuation"}, {"behavior", "Contiguous"}},
               byte_level(true),
               digits(false),
               split_at("[0-9][0-9][0-9]")};
      break;
  }
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

PieceType type_of(const GgufTokenizer& tokenizer, std::size_t id) {
  return tokenizer.types.empty() ? PieceType::kNormal : static_cast<PieceType>(tokenizer.types[id]);
}

bool is_special(PieceType type) {
  return type == PieceType::kControl || type == PieceType::kUnknown;
}

// What a converter knew as added tokens; the rest is the model's vocabulary.
Json added_token(const GgufTokenizer& tokenizer, std::size_t id) {
  return {{"id", id},
          {"content", tokenizer.tokens[id]},
          {"single_word", false},
          {"lstrip", false},
          {"rstrip", false},
          {"normalized", false},
          {"special", is_special(type_of(tokenizer, id))}};
}

bool is_added(const GgufTokenizer& tokenizer, std::size_t id) {
  const PieceType type = type_of(tokenizer, id);
  return is_special(type) || type == PieceType::kUserDefined;
}

// Around the text, in tokenizer.json's form.
Json post_processor_json(const GgufTokenizer& tokenizer, bool add_bos, const std::string& where) {
  Json single = Json::array();
  Json special = Json::object();
  const auto add = [&](std::int64_t id, const char* role) {
    if (id < 0)
      throw data_error(fmt::format("{}: {} should be added to texts, but has no id", where, role));
    const std::string& name = tokenizer.tokens[static_cast<std::size_t>(id)];
    single.push_back({{"SpecialToken", {{"id", name}, {"type_id", 0}}}});
    special[name] = {{"id", name}, {"ids", {id}}, {"tokens", {name}}};
  };
  if (add_bos) add(tokenizer.bos, "tokenizer.ggml.bos_token_id");
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (tokenizer.add_eos.value_or(false)) add(tokenizer.eos, "tokenizer.ggml.eos_token_id");
  if (single.size() == 1) return nullptr;
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", Json::array()},
          {"special_tokens", special}};
}

std::string gpt2_json(const GgufTokenizer& tokenizer, const std::string& where) {
  const PreTokenizerName& pre = find_pre_tokenizer(tokenizer.pre, where);
  if (tokenizer.merges.empty())
    throw data_error(fmt::format("{}: a gpt2 tokenizer needs tokenizer.ggml.merges", where));
  Json vocabulary = Json::object();
  Json added = Json::array();
  for (std::size_t id = 0; id < tokenizer.tokens.size(); ++id) {
    if (is_added(tokenizer, id)) added.push_back(added_token(tokenizer, id));
    vocabulary[tokenizer.tokens[id]] = id;
  }
  const Json model = {{"type", "BPE"},
                      {"ignore_merges", pre.ignore_merges},
                      {"vocab", std::move(vocabulary)},
                      {"merges", tokenizer.merges}};
  const Json json = {
      {"version", "1.0"},
      {"added_tokens", std::move(added)},
      {"normalizer", pre.nfc ? Json{{"type", "NFC"}} : Json()},
      {"pre_tokenizer", pre_tokenizer_json(pre)},
      {"post_processor",
       post_processor_json(tokenizer, tokenizer.add_bos.value_or(pre.add_bos), where)},
      {"decoder", byte_level(true)},
      {"model", model}};
  return json.dump();
}

std::string llama_model(const GgufTokenizer& tokenizer, const std::string& where) {
  if (tokenizer.scores.size() != tokenizer.tokens.size())
    throw data_error(fmt::format("{}: expected a score for each of the {} tokens, found {}", where,
                                 tokenizer.tokens.size(), tokenizer.scores.size()));
  SentencePieceModel model{.pieces = {},
                           .add_dummy_prefix = tokenizer.add_space_prefix.value_or(true),
                           .remove_extra_whitespaces = false,
                           .bos_id = tokenizer.bos,
                           .eos_id = tokenizer.eos};
  for (std::size_t id = 0; id < tokenizer.tokens.size(); ++id) {
    const PieceType type = type_of(tokenizer, id);
    model.byte_fallback = model.byte_fallback || type == PieceType::kByte;
    model.pieces.push_back({tokenizer.tokens[id], tokenizer.scores[id], type});
  }
  return serialize_sentencepiece(model);
}

std::string config_json(const GgufTokenizer& tokenizer) {
  Json config = Json::object();
  const auto name_role = [&](const char* role, std::int64_t id) {
    if (id >= 0) config[role] = tokenizer.tokens[static_cast<std::size_t>(id)];
  };
  name_role("bos_token", tokenizer.bos);
  name_role("eos_token", tokenizer.eos);
  name_role("unk_token", tokenizer.unk);
  name_role("pad_token", tokenizer.pad);
  if (!tokenizer.chat_template.empty()) config["chat_template"] = tokenizer.chat_template;
  if (tokenizer.model == "llama") {
    config["add_bos_token"] = tokenizer.add_bos.value_or(true);
    config["add_eos_token"] = tokenizer.add_eos.value_or(false);
    Json added = Json::object();
    for (std::size_t id = 0; id < tokenizer.tokens.size(); ++id) {
      if (is_added(tokenizer, id)) added[std::to_string(id)] = added_token(tokenizer, id);
    }
    for (auto& [id, token] : added.items()) token.erase("id");
    config["added_tokens_decoder"] = std::move(added);
  }
  return config.dump();
}

void check(const GgufTokenizer& tokenizer, const std::string& where) {
  const std::size_t count = tokenizer.tokens.size();
  if (count == 0) throw data_error(fmt::format("{}: tokenizer.ggml.tokens is empty", where));
  if (!tokenizer.types.empty() && tokenizer.types.size() != count)
    throw data_error(fmt::format("{}: expected a token_type for each of the {} tokens, found {}",
                                 where, count, tokenizer.types.size()));
  for (std::size_t id = 0; id < tokenizer.types.size(); ++id) {
    if (tokenizer.types[id] < 1 || tokenizer.types[id] > 6)
      throw data_error(fmt::format("{}: the token {} should have a type in 1..6, found {}", where,
                                   id, tokenizer.types[id]));
  }
  std::set<std::string_view> seen;
  for (std::size_t id = 0; id < count; ++id) {
    const std::string& token = tokenizer.tokens[id];
    if (!is_valid_utf8(token))
      throw data_error(
          fmt::format("{}: the token {} is not valid UTF-8: {}", where, id, quote_name(token)));
    if (!seen.insert(token).second)
      throw data_error(
          fmt::format("{}: the token {} has two ids, one is {}", where, quote_name(token), id));
  }
  for (const std::string& merge : tokenizer.merges) {
    if (!is_valid_utf8(merge))
      throw data_error(fmt::format("{}: a merge is not valid UTF-8: {}", where, quote_name(merge)));
  }
  const auto limit = static_cast<std::int64_t>(count);
  const std::array<std::pair<const char*, std::int64_t>, 4> roles = {{{"bos", tokenizer.bos},
                                                                      {"eos", tokenizer.eos},
                                                                      {"unknown", tokenizer.unk},
                                                                      {"padding", tokenizer.pad}}};
  for (const auto& [role, id] : roles) {
    if (id < -1 || id >= limit)
      throw data_error(fmt::format("{}: tokenizer.ggml.{}_token_id should be in 0..{}, found {}",
                                   where, role, limit - 1, id));
  }
  if (!is_valid_utf8(tokenizer.chat_template))
    throw data_error(fmt::format("{}: tokenizer.chat_template is not valid UTF-8", where));
}

}  // namespace

std::map<std::string, std::string> gguf_tokenizer_files(const GgufTokenizer& tokenizer,
                                                        const std::string& where) {
  if (tokenizer.model != "gpt2" && tokenizer.model != "llama")
    throw data_error(fmt::format("{}: expected tokenizer.ggml.model gpt2 or llama, found {}", where,
                                 quote_name(tokenizer.model)),
                     kWithoutTokenizer);
  check(tokenizer, where);
  std::map<std::string, std::string> files = {{"tokenizer_config.json", config_json(tokenizer)}};
  if (tokenizer.model == "gpt2")
    files["tokenizer.json"] = gpt2_json(tokenizer, where);
  else
    files["tokenizer.model"] = llama_model(tokenizer, where);
  return files;
}

std::vector<std::int64_t> gguf_end_of_text_ids(const GgufTokenizer& tokenizer) {
  std::vector<std::int64_t> ids;
  const auto add = [&](std::int64_t id) {
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  };
  add(tokenizer.eos);
  for (const std::int64_t id : tokenizer.eot) add(id);
  for (const std::int64_t id : tokenizer.eom) add(id);
  return ids;
}

}  // namespace stagecoach
