// Tokens that are found in the text before the model sees it: special ones, and what fine-tuning
// added.
#pragma once

#include <bitset>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/normalizer.h"
#include "text/pattern.h"
#include "text/tokenizer.h"

namespace stagecoach {

struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool single_word = false;  // not beside a word character
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // and after it
  bool normalized = false;   // its normalised content is looked for in normalised text
  bool special = false;      // left out of decoded text
  bool markup_only = false;  // found by split_marked alone
};

// A stretch of text, with the token that it is, if it is one.
struct Segment {
  std::size_t begin = 0;
  std::size_t end = 0;
  std::optional<TokenId> token;
};

class AddedTokens {
 public:
  AddedTokens() = default;
  // Contents and ids are distinct, contents not empty.
  AddedTokens(std::vector<AddedToken> tokens, const Normalizer& normalizer);

  // Cuts text at the tokens that lie in one of the `marked` ranges (ascending, disjoint) entirely,
  // by their raw contents; white space beside them may be outside.
  std::vector<Segment> split_marked(std::string_view text, const std::vector<Range>& marked) const;
  // Cuts text at the tokens that match before (after) normalisation, leftmost-longest.
  std::vector<Segment> split_raw(std::string_view text) const {
    return split(text, raw_, {{0, text.size()}});
  }
  std::vector<Segment> split_normalized(std::string_view text) const {
    return split(text, normalized_, {{0, text.size()}});
  }

  struct Decoded {
    std::string_view text;  // normalised where matching is, so that decoders undo the normalisation
    bool special = false;
  };
  std::optional<Decoded> decoded(TokenId id) const;
  std::optional<TokenId> id_of(std::string_view content) const;
  TokenId largest_id() const { return largest_id_; }  // -1: there are none

 private:
  struct Pattern {
    std::string text;
    const AddedToken* token = nullptr;
  };
  // Patterns in the order of their bytes: those that agree with the text so far are one range,
  // which shrinks byte by byte, and the shortest of them comes first.
  struct PatternSet {
    std::vector<Pattern> patterns;
    std::bitset<256> first_bytes;

    void add(std::string text, const AddedToken& token);
    void sort();
    const Pattern* longest_at(std::string_view text, std::size_t position) const;
  };

  static std::vector<Segment> split(std::string_view text, const PatternSet& set,
                                    const std::vector<Range>& ranges);

  std::vector<AddedToken> tokens_;
  std::unordered_map<TokenId, Pattern> by_id_;
  PatternSet raw_;
  PatternSet contents_;  // of all tokens, not normalised
  PatternSet normalized_;
  TokenId largest_id_ = -1;
};

}  // namespace stagecoach
