// The pre_tokenizer component: cuts text into the pieces within which BPE merges.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "text/pattern.h"

namespace stagecoach {

struct Piece {
  std::string text;
  bool at_start = false;  // begins where the whole input begins
};

struct SplitStep {
  Split split;
};

// Turns bytes into their printable alphabet (byte_level.h), after GPT-2's split if asked.
struct ByteLevelStep {
  bool add_prefix_space = false;
  bool use_regex = true;
};

struct MetaspaceStep {
  enum class Prepend { kAlways, kFirst, kNever };
  std::string replacement = "\u2581";  // one character
  Prepend prepend = Prepend::kAlways;
  bool even_before_space = false;  // SentencePiece's own rule: spaces never stand for the prefix
  bool split = true;
};

using PreTokenizerStep = std::variant<SplitStep, ByteLevelStep, MetaspaceStep>;

class PreTokenizer {
 public:
  PreTokenizer() = default;  // leaves text in one piece
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {}

  std::vector<Piece> apply(Piece text) const;

 private:
  std::vector<PreTokenizerStep> steps_;
};

}  // namespace stagecoach
