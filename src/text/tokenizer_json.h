// tokenizer.json, the format of Hugging Face's `tokenizers` library
// (https://github.com/huggingface/tokenizers): a normalizer, a pre-tokenizer, a model, a
// post-processor, a decoder and added tokens, each an object with a "type".
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "text/bpe_tokenizer.h"

namespace stagecoach {

// Each throws data_error naming the component that is unknown or malformed. null is the empty
// component.
Normalizer parse_normalizer(const Json& json, const std::string& where);
PreTokenizer parse_pre_tokenizer(const Json& json, const std::string& where);
SpecialFrame parse_post_processor(const Json& json, const std::string& where);
std::vector<DecoderStep> parse_decoder(const Json& json, const std::string& where);
BpeModel parse_bpe_model(const Json& json, const std::string& where);

// {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}, wherever such objects
// stand; the flags may be left out. The id is the caller's.
AddedToken parse_added_token(const Json& json, const std::string& where);

// model.vocab or vocab.json: an object from tokens to ids.
Vocabulary parse_vocabulary(const Json& json, const std::string& where);

// One line of merges.txt or of old tokenizer.json files: two tokens with one space between them.
Merge parse_merge(std::string_view line, const std::string& where);

bool is_byte_tokenizer(const Json& tokenizer_json);

}  // namespace stagecoach
