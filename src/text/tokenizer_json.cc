#include "text/tokenizer_json.h"

#include <limits>
#include <utility>

#include "base/error.h"
#include "text/unicode.h"

namespace stagecoach {
namespace {

Error unsupported(const std::string& where, const std::string& what) {
  return data_error(fmt::format("{}: {} is not supported", where, what),
                    "without its tokenizer files the checkpoint can still be imported; prompts are "
                    "then given as ids (--prompt-ids)");
}

Error unsupported_type(const JsonObject& component) {
  return unsupported(component.where(), fmt::format("the type \"{}\"", component.string("type")));
}

std::string single_character(const JsonObject& component, const char* key) {
  std::string text = component.string(key);
  if (text.empty() || code_point_at(text, 0).bytes != text.size())
    throw data_error(fmt::format("{}: \"{}\" should be one character, found \"{}\"",
                                 component.where(), key, text));
  return text;
}

// {"String": "…"} or {"Regex": "…"}.
struct PatternText {
  std::string text;
  bool is_regex = false;
};

PatternText parse_pattern(const JsonObject& component) {
  const JsonObject pattern = component.object("pattern");
  pattern.only({"String", "Regex"});
  const bool is_regex = pattern.has("Regex");
  PatternText result{pattern.string(is_regex ? "Regex" : "String"), is_regex};
  if (result.text.empty())
    throw data_error(fmt::format("{}: \"pattern\" should not be empty", component.where()));
  return result;
}

ReplaceStep parse_replace(const JsonObject& component) {
  component.only({"type", "pattern", "content"});
  PatternText pattern = parse_pattern(component);
  if (pattern.is_regex)
    throw unsupported(component.where(),
                      fmt::format("Replace with the regular expression {}", pattern.text));
  return {std::move(pattern.text), component.string("content")};
}

// Calls `each` for the components of a Sequence, which may hold others, or for the one component.
template <typename Each>
void for_each_component(const Json& json, const std::string& where, const char* list, Each each) {
  if (json.is_null()) return;
  const JsonObject component(json, where);
  if (component.string("type") != "Sequence") {
    each(component);
    return;
  }
  component.only({"type", list});
  std::size_t index = 0;
  for (const Json& inner : component.array(list))
    for_each_component(inner, fmt::format("{}, {}[{}]", where, list, index++), list, each);
}

MetaspaceStep parse_metaspace(const JsonObject& component) {
  component.only({"type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"});
  MetaspaceStep step;
  step.replacement = single_character(component, "replacement");
  step.split = component.boolean_or("split", true);
  // add_prefix_space is what older files have instead of prepend_scheme.
  const bool prefix = component.boolean_or("add_prefix_space", true);
  const std::string scheme = component.string_or("prepend_scheme", prefix ? "always" : "never");
  if (scheme == "always")
    step.prepend = MetaspaceStep::Prepend::kAlways;
  else if (scheme == "first")
    step.prepend = MetaspaceStep::Prepend::kFirst;
  else if (scheme == "never")
    step.prepend = MetaspaceStep::Prepend::kNever;
  else
    throw unsupported(component.where(), fmt::format("the prepend_scheme \"{}\"", scheme));
  if (!prefix && step.prepend != MetaspaceStep::Prepend::kNever)
    throw data_error(
        fmt::format("{}: \"add_prefix_space\" is false, but \"prepend_scheme\" is \"{}\"",
                    component.where(), scheme));
  return step;
}

SplitBehavior parse_behavior(const JsonObject& component) {
  const std::string name = component.string_or("behavior", "Isolated");
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  throw unsupported(component.where(), fmt::format("the behavior \"{}\"", name));
}

SplitStep parse_split(const JsonObject& component) {
  component.only({"type", "pattern", "behavior", "invert"});
  PatternText text = parse_pattern(component);
  std::optional<Pattern> pattern =
      text.is_regex ? regex_pattern(text.text) : literal_pattern(text.text);
  if (!pattern)
    throw unsupported(component.where(), fmt::format("the regular expression {}", text.text));
  return {{.pattern = *std::move(pattern),
           .behavior = parse_behavior(component),
           .invert = component.boolean_or("invert", false)}};
}

PreTokenizerStep parse_pre_tokenizer_step(const JsonObject& component) {
  const std::string type = component.string("type");
  if (type == "Split") return parse_split(component);
  if (type == "Metaspace") return parse_metaspace(component);
  if (type == "ByteLevel") {
    component.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    return ByteLevelStep{.add_prefix_space = component.boolean("add_prefix_space"),
                         .use_regex = component.boolean_or("use_regex", true)};
  }
  if (type == "Digits") {
    component.only({"type", "individual_digits"});
    return SplitStep{{.pattern = character_pattern(is_number),
                      .behavior = component.boolean("individual_digits")
                                      ? SplitBehavior::kIsolated
                                      : SplitBehavior::kContiguous}};
  }
  if (type == "Punctuation") {
    component.only({"type", "behavior"});
    return SplitStep{
        {.pattern = character_pattern(is_punctuation), .behavior = parse_behavior(component)}};
  }
  if (type == "WhitespaceSplit") {
    return SplitStep{
        {.pattern = character_pattern(is_white_space), .behavior = SplitBehavior::kRemoved}};
  }
  throw unsupported_type(component);
}

TokenId token_id(const Json& json, const std::string& where) {
  if (!json.is_number_integer() || json < 0 || json > std::numeric_limits<TokenId>::max())
    throw data_error(fmt::format("{}: a token id should be an integer in 0..{}, found {}", where,
                                 std::numeric_limits<TokenId>::max(), json.dump()));
  return json.get<TokenId>();
}

// "single": a list of special tokens around exactly one {"Sequence": {"id": "A"}}.
SpecialFrame parse_template(const JsonObject& component) {
  component.only({"type", "single", "pair", "special_tokens"});
  const JsonObject specials = component.object("special_tokens");
  SpecialFrame frame;
  int texts = 0;
  for (const Json& item : component.array("single")) {
    const JsonObject piece(item, component.where() + ", single");
    piece.only({"Sequence", "SpecialToken"});
    if (piece.has("Sequence")) {
      ++texts;
      continue;
    }
    const JsonObject special = specials.object(piece.object("SpecialToken").string("id").c_str());
    for (const Json& id : special.array("ids"))
      (texts == 0 ? frame.before : frame.after).push_back(token_id(id, special.where()));
  }
  if (texts != 1)
    throw data_error(fmt::format("{}: \"single\" should hold the text once, found {} times",
                                 component.where(), texts));
  return frame;
}

StripDecoding parse_strip(const JsonObject& component) {
  component.only({"type", "content", "start", "stop"});
  constexpr std::int64_t kMost = 1 << 20;  // keeps a hostile file from making streams wait for ever
  return {single_character(component, "content"),
          static_cast<std::size_t>(component.integer_in("start", 0, kMost)),
          static_cast<std::size_t>(component.integer_in("stop", 0, kMost))};
}

DecoderStep parse_decoder_step(const JsonObject& component) {
  const std::string type = component.string("type");
  if (type == "ByteLevel") return ByteLevelDecoding{};
  if (type == "ByteFallback") return ByteFallbackDecoding{};
  if (type == "Fuse") return FuseDecoding{};
  if (type == "Replace") return parse_replace(component);
  if (type == "Strip") return parse_strip(component);
  if (type == "Metaspace") {
    MetaspaceStep step = parse_metaspace(component);
    return MetaspaceDecoding{std::move(step.replacement),
                             step.prepend != MetaspaceStep::Prepend::kNever};
  }
  throw unsupported_type(component);
}

// Behind Fuse a token arrives in pieces; see first_fusing.
bool works_on_pieces(const DecoderStep& step) {
  if (const auto* replace = std::get_if<ReplaceStep>(&step)) return replace->pattern.size() == 1;
  if (const auto* strip = std::get_if<StripDecoding>(&step)) return strip->content.size() == 1;
  return std::holds_alternative<FuseDecoding>(step);
}

// Only what "continuing_subword_prefix" and the like have when they do nothing: null or empty.
void require_unused(const JsonObject& model, const char* key) {
  if (model.has(key) && model.at(key) != "" && model.at(key) != 0.0)
    throw unsupported(model.where(), fmt::format("\"{}\": {}", key, model.at(key).dump()));
}

}  // namespace

Normalizer parse_normalizer(const Json& json, const std::string& where) {
  std::vector<NormalizerStep> steps;
  for_each_component(json, where, "normalizers", [&](const JsonObject& component) {
    const std::string type = component.string("type");
    if (type == "NFC") {
      steps.emplace_back(NfcStep{});
    } else if (type == "Prepend") {
      component.only({"type", "prepend"});
      steps.emplace_back(PrependStep{component.string("prepend")});
    } else if (type == "Replace") {
      steps.emplace_back(parse_replace(component));
    } else {
      throw unsupported_type(component);
    }
  });
  return Normalizer(std::move(steps));
}

PreTokenizer parse_pre_tokenizer(const Json& json, const std::string& where) {
  std::vector<PreTokenizerStep> steps;
  for_each_component(json, where, "pretokenizers", [&](const JsonObject& component) {
    steps.push_back(parse_pre_tokenizer_step(component));
  });
  return PreTokenizer(std::move(steps));
}

SpecialFrame parse_post_processor(const Json& json, const std::string& where) {
  SpecialFrame frame;
  for_each_component(json, where, "processors", [&](const JsonObject& component) {
    const std::string type = component.string("type");
    if (type == "ByteLevel") return;  // moves offsets, which nobody here asks for
    if (type != "TemplateProcessing") throw unsupported_type(component);
    const SpecialFrame outer = parse_template(component);
    frame.before.insert(frame.before.begin(), outer.before.begin(), outer.before.end());
    frame.after.insert(frame.after.end(), outer.after.begin(), outer.after.end());
  });
  return frame;
}

std::vector<DecoderStep> parse_decoder(const Json& json, const std::string& where) {
  if (json.is_null()) return {SpacedDecoding{}};
  std::vector<DecoderStep> steps;
  for_each_component(json, where, "decoders", [&](const JsonObject& component) {
    steps.push_back(parse_decoder_step(component));
    if (steps.size() > first_fusing(steps) + 1 && !works_on_pieces(steps.back()))
      throw unsupported(component.where(), fmt::format("{} behind a decoder that joins all tokens",
                                                       component.string("type")));
  });
  return steps;
}

Vocabulary parse_vocabulary(const Json& json, const std::string& where) {
  if (!json.is_object())
    throw data_error(fmt::format("{} should be an object from tokens to ids, found {}", where,
                                 json.type_name()));
  Vocabulary vocabulary;
  for (const auto& [token, id] : json.items()) vocabulary.add(token, token_id(id, where), where);
  return vocabulary;
}

Merge parse_merge(std::string_view line, const std::string& where) {
  const std::size_t space = line.find(' ');
  if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
    throw data_error(fmt::format(
        "{}: a merge should be two tokens with one space between them, found \"{}\"", where, line));
  return {line.substr(0, space), line.substr(space + 1)};
}

BpeModel parse_bpe_model(const Json& json, const std::string& where) {
  const JsonObject model(json, where);
  // GPT-2's first tokenizer.json files say no type; only BPE has merges.
  if (model.has("type") || !model.has("merges")) {
    if (model.string("type") != "BPE") throw unsupported_type(model);
  }
  model.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
              "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"})
    require_unused(model, key);

  std::vector<Merge> merges;
  for (const Json& merge : model.array("merges")) {
    const bool is_pair =
        merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
    if (is_pair)
      merges.emplace_back(merge[0].get_ref<const std::string&>(),
                          merge[1].get_ref<const std::string&>());
    else if (merge.is_string())
      merges.push_back(parse_merge(merge.get_ref<const std::string&>(), where));
    else
      throw data_error(fmt::format("{}: a merge should be \"A B\" or [\"A\", \"B\"], found {}",
                                   where, merge.dump().substr(0, 60)));
  }
  return BpeModel(parse_vocabulary(model.at("vocab"), where + ", vocab"), merges,
                  {.unknown_token = model.string_or("unk_token", ""),
                   .fuse_unknown = model.boolean_or("fuse_unk", false),
                   .byte_fallback = model.boolean_or("byte_fallback", false),
                   .ignore_merges = model.boolean_or("ignore_merges", false)},
                  where);
}

AddedToken parse_added_token(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  AddedToken token;
  token.content = object.string("content");
  token.single_word = object.boolean_or("single_word", false);
  token.lstrip = object.boolean_or("lstrip", false);
  token.rstrip = object.boolean_or("rstrip", false);
  token.special = object.boolean_or("special", false);
  token.normalized = object.boolean_or("normalized", !token.special);
  return token;
}

bool is_byte_tokenizer(const Json& tokenizer_json) {
  const JsonObject root(tokenizer_json, "tokenizer.json");
  if (!root.has("model") || !root.at("model").is_object()) return false;
  const auto type = root.at("model").find("type");
  return type != root.at("model").end() && *type == "StagecoachByte";
}

}  // namespace stagecoach
