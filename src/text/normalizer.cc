#include "text/normalizer.h"

#include "text/unicode.h"

namespace stagecoach {
namespace {

struct Apply {
  std::string text;

  std::string operator()(const NfcStep&) { return to_nfc(text); }
  std::string operator()(const PrependStep& step) {
    return text.empty() ? std::move(text) : step.prefix + text;
  }
  std::string operator()(const ReplaceStep& step) { return replace_all(std::move(text), step); }
};

}  // namespace

std::string replace_all(std::string text, const ReplaceStep& replace) {
  std::size_t found = text.find(replace.pattern);
  if (found == std::string::npos) return text;
  std::string result;
  std::size_t copied = 0;
  for (; found != std::string::npos; found = text.find(replace.pattern, copied)) {
    result.append(text, copied, found - copied).append(replace.content);
    copied = found + replace.pattern.size();
  }
  return result.append(text, copied);
}

std::string Normalizer::apply(std::string text) const {
  for (const NormalizerStep& step : steps_) text = std::visit(Apply{std::move(text)}, step);
  return text;
}

}  // namespace stagecoach
