#include "text/chat_template.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/quote.h"
#include "text/normalizer.h"
#include "text/tokenizer_config.h"
#include "text/unicode.h"

namespace stagecoach {

// Skeletons have {bos}, {eos}, {system}, {user}; {user|trim} is without white space at both ends,
// {user|rtrim} at its end. An empty skeleton: the template refuses or drops such a conversation.
struct ChatFormat {
  const char* family;
  const char* alone;        // a question alone; {system} is the template's own message
  const char* with_system;  // a system message and a question
  const char* turn_end;     // "{eos}", or the token's name
};

namespace {

constexpr ChatFormat kChatml = {
    "chatml", "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    "<|im_start|>assistant\n",
    "<|im_end|>"};
// Qwen 2 and 2.5, SmolLM2: the template has a system message of its own.
constexpr ChatFormat kChatmlWithDefault = {"chatml", kChatml.with_system, kChatml.with_system,
                                           "<|im_end|>"};
constexpr ChatFormat kLlama2 = {"llama2", "{bos}[INST] {user|trim} [/INST]",
                                "{bos}[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user|rtrim} [/INST]",
                                "{eos}"};
constexpr ChatFormat kLlama3 = {
    "llama3",
    "{bos}<|start_header_id|>user<|end_header_id|>\n\n{user|trim}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "{bos}<|start_header_id|>system<|end_header_id|>\n\n{system|trim}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{user|trim}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>"};
constexpr const char* kLlama31Text =
    "{bos}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n{system|trim}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{user|trim}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n";
constexpr ChatFormat kLlama31 = {"llama3", kLlama31Text, kLlama31Text, "<|eot_id|>"};
constexpr ChatFormat kMistral = {"mistral", "{bos}[INST] {user} [/INST]", "", "{eos}"};
constexpr ChatFormat kMistralV1 = {"mistral", "{bos} [INST] {user} [/INST]",
                                   "{bos} [INST] {system}\n\n{user} [/INST]", "{eos}"};
constexpr ChatFormat kGemma = {
    "gemma", "{bos}<start_of_turn>user\n{user|trim}<end_of_turn>\n<start_of_turn>model\n", "",
    "<end_of_turn>"};
constexpr ChatFormat kPhi3 = {
    "phi3", "<|user|>\n{user}<|end|>\n<|assistant|>\n",
    "<|system|>\n{system}<|end|>\n<|user|>\n{user}<|end|>\n<|assistant|>\n", "<|end|>"};
constexpr ChatFormat kPhi3Medium = {"phi3", kPhi3.alone, "", "<|end|>"};
constexpr ChatFormat kPhi3Mini = {"phi3", "{bos}<|user|>\n{user}<|end|>\n<|assistant|>\n", "",
                                  "<|end|>"};
constexpr ChatFormat kZephyr = {"zephyr", "<|user|>\n{user}{eos}\n<|assistant|>\n",
                                "<|system|>\n{system}{eos}\n<|user|>\n{user}{eos}\n<|assistant|>\n",
                                "{eos}"};

// XXH3 of the normalised source (tests/data/chat_templates holds the sources).
struct Published {
  std::uint64_t source;
  const ChatFormat* format;
  const char* default_system = "";
};
constexpr std::array<Published, 18> kPublished = {{
    {0xa04f41d813a07b13, &kChatml},      // chatml
    {0x2c2e86beabccd2a4, &kGemma},       // gemma
    {0xcb7c5112dfc4a3b0, &kLlama2},      // llama2
    {0x9799ad6e2dea0594, &kLlama3},      // llama3
    {0xda8ae4616203881a, &kLlama31},     // llama3_1
    {0xb97891b7adc1beb8, &kLlama3},      // llama3_always
    {0xb7f52373b11c60d7, &kMistral},     // mistral_v01
    {0xa5d004210ebce758, &kMistral},     // mistral_v02
    {0xfa42ef759a4066ef, &kMistralV1},   // mistral_v1
    {0x82fc89c04c54ba66, &kPhi3},        // phi3
    {0xcd8aff863abd4554, &kPhi3},        // phi3_5
    {0x874eeb59684ce46e, &kPhi3Medium},  // phi3_medium
    {0x551cbfd01fcc4680, &kPhi3Mini},    // phi3_mini
    {0xf9a29021c9d093ad, &kChatmlWithDefault,
     "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},  // qwen2_5
    {0x4372a702009a6e39, &kChatml},                                            // qwen3
    {0x5a33498785c53d45, &kChatml},                                            // qwen3_first
    {0xa04c0d765923822c, &kChatml},  // qwen3_instruct_2507
    {0x1db34e9fc60441d8, &kZephyr},  // zephyr
}};

// ChatML whose template puts a message of its own first; the message differs from model to model.
constexpr std::string_view kDefaultSystemBefore =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n";
constexpr std::string_view kDefaultSystemAfter =
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
    "}}{% endif %}";

constexpr const char* kWayOut =
    "give the whole prompt yourself, without --chat, with the model's special tokens in it";

// What makes no difference to what a template renders: kinds of line ends, line ends written as
// \n inside strings, and the line end that Jinja itself drops from the end.
std::string normalised(std::string source) {
  source = replace_all(std::move(source), {"\r\n", "\n"});
  source = replace_all(std::move(source), {"\\n", "\n"});
  if (source.ends_with('\n')) source.pop_back();
  return source;
}

std::optional<std::string> default_system_in(std::string_view source) {
  if (source.size() < kDefaultSystemBefore.size() + kDefaultSystemAfter.size() ||
      !source.starts_with(kDefaultSystemBefore) || !source.ends_with(kDefaultSystemAfter))
    return std::nullopt;
  source.remove_prefix(kDefaultSystemBefore.size());
  source.remove_suffix(kDefaultSystemAfter.size());
  // Only what is one string of Jinja that stands for itself.
  if (source.find_first_of("'\\{}") != std::string_view::npos) return std::nullopt;
  return std::string(source);
}

std::string families() {
  std::vector<std::string_view> names;
  for (const Published& published : kPublished) names.emplace_back(published.format->family);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return fmt::format("{}", fmt::join(names, ", "));
}

struct Source {
  std::string text;
  std::string where;
};

std::optional<Source> find_source(const TokenizerFiles& files, const std::string& where) {
  if (const auto file = files.find("chat_template.jinja"); file != files.end())
    return Source{file->second, where + "/chat_template.jinja"};
  const auto file = files.find("tokenizer_config.json");
  if (file == files.end()) return std::nullopt;
  const std::string config_name = where + "/tokenizer_config.json";
  const Json json = parse_json(file->second, config_name);
  const JsonObject config(json, config_name);
  if (!config.has("chat_template")) return std::nullopt;
  if (!config.at("chat_template").is_array())
    return Source{config.string("chat_template"), config_name + ", chat_template"};
  for (const Json& item : config.array("chat_template")) {
    const JsonObject named(item, config_name + ", chat_template");
    if (named.string("name") == "default") return Source{named.string("template"), named.where()};
  }
  throw data_error(fmt::format("{}: none of the chat templates is named \"default\"", config_name),
                   kWayOut);
}

// White space of Python's str.strip, which Jinja's trim is.
std::string trimmed(std::string_view text, bool begin, bool end) {
  const auto is_space = [](char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); };
  while (begin && !text.empty()) {
    const CodePoint first = code_point_at(text, 0);
    if (!is_space(first.value)) break;
    text.remove_prefix(first.bytes);
  }
  while (end && !text.empty()) {
    const CodePoint last = code_point_before(text, text.size());
    if (!is_space(last.value)) break;
    text.remove_suffix(last.bytes);
  }
  return std::string(text);
}

}  // namespace

ChatTemplate ChatTemplate::load(const TokenizerFiles& files, const std::string& where) {
  const std::optional<Source> source = find_source(files, where);
  if (!source)
    throw data_error(
        fmt::format("{} has no chat template (chat_template.jinja, or chat_template in "
                    "tokenizer_config.json)",
                    where),
        kWayOut);
  ChatTemplate result;
  const std::string text = normalised(source->text);
  const std::uint64_t fingerprint = xxh3(as_bytes(text));
  for (const Published& published : kPublished) {
    if (published.source != fingerprint) continue;
    result.format_ = published.format;
    result.default_system_ = published.default_system;
  }
  if (const auto own = default_system_in(text); own && result.format_ == nullptr) {
    result.format_ = &kChatmlWithDefault;
    result.default_system_ = *own;
  }
  if (result.format_ == nullptr)
    throw data_error(
        fmt::format("{}: the chat template is not one of those known, which are of the "
                    "families {}; it begins {}",
                    source->where, families(),
                    quote_name(std::string_view(text).substr(0, text.find('\n')))),
        kWayOut);
  result.name_ = result.format_->family;
  const TokenizerConfig config(files, where);
  result.bos_ = config.special_token("bos_token").value_or("");
  result.eos_ = config.special_token("eos_token").value_or("");
  return result;
}

std::vector<TextSegment> ChatTemplate::render(const ChatPrompt& prompt) const {
  std::string_view rest = prompt.system ? format_->with_system : format_->alone;
  if (rest.empty())
    throw usage_error(
        fmt::format("the model's chat template ({}) has no place for a system message", name_),
        "put it into the prompt, without --system");
  std::vector<TextSegment> segments;
  const auto special = [&](const std::string& token, const char* role) {
    if (token.empty())
      throw data_error(fmt::format("the model's chat template ({}) needs the {}, which "
                                   "tokenizer_config.json does not name",
                                   name_, role),
                       kWayOut);
    segments.push_back({token, true});
  };
  while (!rest.empty()) {
    const std::size_t brace = std::min(rest.find('{'), rest.size());
    if (brace > 0) segments.push_back({std::string(rest.substr(0, brace)), true});
    rest.remove_prefix(brace);
    if (rest.empty()) break;
    const std::string_view hole = rest.substr(0, rest.find('}') + 1);
    rest.remove_prefix(hole.size());
    const bool begin = hole.ends_with("|trim}");
    const bool end = begin || hole.ends_with("|rtrim}");
    if (hole == "{bos}") {
      special(bos_, "bos_token");
    } else if (hole == "{eos}") {
      special(eos_, "eos_token");
    } else if (hole.starts_with("{system")) {
      segments.push_back({trimmed(prompt.system.value_or(default_system_), begin, end),
                          !prompt.system.has_value()});
    } else {
      STAGECOACH_CHECK(hole.starts_with("{user"));
      segments.push_back({trimmed(prompt.user, begin, end), false});
    }
  }
  return segments;
}

std::vector<TokenId> ChatTemplate::encode(const Tokenizer& tokenizer,
                                          const ChatPrompt& prompt) const {
  return tokenizer.encode_segments(render(prompt));
}

TokenId ChatTemplate::turn_end(const Tokenizer& tokenizer) const {
  const std::string token =
      format_->turn_end == std::string_view("{eos}") ? eos_ : format_->turn_end;
  const std::optional<TokenId> id = tokenizer.added_token(token);
  if (!id)
    throw data_error(fmt::format("the model's chat template ({}) ends turns with {}, which is no "
                                 "special token of its tokenizer",
                                 name_, quote_name(token)),
                     kWayOut);
  return *id;
}

}  // namespace stagecoach
