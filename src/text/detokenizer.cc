#include <algorithm>

#include "text/tokenizer.h"
#include "text/unicode.h"

namespace stagecoach {

std::string Tokenizer::decode_bytes(const std::vector<TokenId>& ids, bool skip_special) const {
  std::string bytes;
  const auto decoder = start_decoding(skip_special);
  for (const TokenId id : ids) decoder->push(id, bytes);
  decoder->finish(bytes);
  return bytes;
}

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer& tokenizer,
                                           const std::vector<TokenId>& prompt)
    : decoder_(tokenizer.start_decoding()),
      prompt_characters_(count_code_points(replace_invalid_utf8(tokenizer.decode_bytes(prompt)))) {
  // What the prompt leaves open in the decoder counts among prompt_characters_ already: the rest of
  // such a character is dropped when it comes.
  for (const TokenId id : prompt) push(id);
}

std::string StreamingDetokenizer::push(TokenId id) {
  std::string bytes;
  std::string text;
  decoder_->push(id, bytes);
  repairer_.push(bytes, text);
  return take_new(text);
}

std::string StreamingDetokenizer::finish() {
  std::string bytes;
  std::string text;
  decoder_->finish(bytes);
  repairer_.push(bytes, text);
  repairer_.finish(text);
  return take_new(text);
}

std::string StreamingDetokenizer::take_new(std::string_view text) {
  std::size_t old = 0;
  for (; prompt_characters_ > 0 && old < text.size(); --prompt_characters_)
    old += code_point_at(text, old).bytes;
  return std::string(text.substr(old));
}

}  // namespace stagecoach
