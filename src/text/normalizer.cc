#include "text/normalizer.h"

#include "base/error.h"

#include "text/unicode.h"

namespace stagecoach {
namespace {

std::string collapse_spaces(std::string_view text) {
  for (const std::string_view space : {" ", "\u2581"}) {
    if (!text.ends_with(space)) continue;
    text.remove_suffix(space.size());
    return collapse_spaces(text);
  }
  std::string result;
  for (const char c : text) {
    if (c != ' ' || (!result.empty() && result.back() != ' ')) result += c;
  }
  return result;
}

struct Apply {
  std::string text;

  std::string operator()(const NfcStep&) { return to_nfc(text); }
  std::string operator()(const PrependStep& step) {
    return text.empty() ? std::move(text) : step.prefix + text;
  }
  std::string operator()(const ReplaceStep& step) { return replace_all(std::move(text), step); }
  std::string operator()(const CollapseSpacesStep&) { return collapse_spaces(text); }
};

}  // namespace

std::string replace_all(std::string text, const ReplaceStep& replace) {
  std::size_t found = text.find(replace.pattern);
  if (found == std::string::npos) return text;
  // Two such steps multiply: a file of a few bytes must not make terabytes of text.
  constexpr std::size_t kMaxBytes = std::size_t{1} << 30;
  std::string result;
  std::size_t copied = 0;
  for (; found != std::string::npos; found = text.find(replace.pattern, copied)) {
    result.append(text, copied, found - copied).append(replace.content);
    copied = found + replace.pattern.size();
    if (result.size() > kMaxBytes)
      throw data_error("the tokenizer's normalizer makes more than 1 GiB of this text",
                       "check its Replace steps");
  }
  return result.append(text, copied);
}

std::string Normalizer::apply(std::string text) const {
  for (const NormalizerStep& step : steps_) text = std::visit(Apply{std::move(text)}, step);
  return text;
}

}  // namespace stagecoach
