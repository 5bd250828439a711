// One sequence that is being generated, as text: streaming, stop strings, end of text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/tokenizer.h"

namespace stagecoach {

// Holds text back as long as it may be the beginning of a stop string.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops);
  // Text that may be shown now. Once a stop string has appeared, stopped() is true and what follows
  // it is swallowed.
  std::string push(std::string_view text);
  std::string finish();  // what was held back, at the end of the text
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

struct GenerationRules {
  std::vector<std::string> stops;
  std::vector<std::int64_t> eos_token_ids;
  bool ignore_eos = false;
};

class Generation {
 public:
  // `tokenizer` may be null (no text then) and outlives this.
  Generation(std::optional<std::string> prompt, std::vector<TokenId> prompt_ids,
             const Tokenizer* tokenizer, const GenerationRules& rules);

  void admit();  // the clock starts
  // Takes one more token; returns the text that became certain. ended() tells whether the text is
  // over.
  std::string push(TokenId id);
  // The same, for a token that an earlier run has drawn: it took no time of this one.
  std::string replay(TokenId id) {
    ++replayed_;
    return push(id);
  }
  // After the last token: what was held back.
  std::string finish();

  bool ended() const { return ended_; }
  bool finished() const { return finished_; }
  const std::string& text() const { return text_; }
  const std::vector<TokenId>& prompt_ids() const { return prompt_ids_; }
  const std::vector<TokenId>& ids() const { return ids_; }
  std::vector<TokenId> all_ids() const {
    std::vector<TokenId> all = prompt_ids_;
    all.insert(all.end(), ids_.begin(), ids_.end());
    return all;
  }
  const std::optional<std::string>& prompt() const { return prompt_; }
  Json to_json() const;  // the object of docs/cli.md

 private:
  std::optional<std::string> prompt_;
  std::vector<TokenId> prompt_ids_, ids_;
  GenerationRules rules_;
  std::optional<StreamingDetokenizer> detokenizer_;
  StopStrings stops_;
  std::string text_;
  bool ended_ = false, finished_ = false;
  std::int64_t begin_ns_ = 0, last_token_ns_ = 0;
  std::size_t replayed_ = 0;
};

}  // namespace stagecoach
