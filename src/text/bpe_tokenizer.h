// A tokenizer put together from its components, in the order in which text passes through them.
#pragma once

#include <memory>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"

namespace stagecoach {

// What a post-processor puts around the ids of the text, as BOS and EOS.
struct SpecialFrame {
  std::vector<TokenId> before;
  std::vector<TokenId> after;
};

struct BpeTokenizerParts {
  AddedTokens added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  AddedTokens user_defined = {};  // found in what the pre-tokenizer makes; not among `added`
  BpeModel model;
  SpecialFrame frame;
  std::vector<DecoderStep> decoder;
};

std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeTokenizerParts parts);
std::unique_ptr<Tokenizer> make_byte_tokenizer();

}  // namespace stagecoach
