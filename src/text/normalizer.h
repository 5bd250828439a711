// The normalizer component of a tokenizer: text → text, before anything is split.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace stagecoach {

struct NfcStep {};
struct PrependStep {
  std::string prefix;  // not put before empty text
};
struct ReplaceStep {
  std::string pattern;  // never empty
  std::string content;
};
// SentencePiece's remove_extra_whitespaces: none at both ends, one inside, and at the end no U+2581
// either, which is how it writes them.
struct CollapseSpacesStep {};
using NormalizerStep = std::variant<NfcStep, PrependStep, ReplaceStep, CollapseSpacesStep>;

std::string replace_all(std::string text, const ReplaceStep& replace);

class Normalizer {
 public:
  Normalizer() = default;  // changes nothing
  explicit Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {}

  // text is valid UTF-8, and so is the result.
  std::string apply(std::string text) const;

 private:
  std::vector<NormalizerStep> steps_;
};

}  // namespace stagecoach
