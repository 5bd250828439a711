// SentencePiece's model file (tokenizer.model), as Llama 1 and 2, Mistral and Phi-3 have it: a
// protocol buffer of pieces with scores. Source: sentencepiece_model.proto in
// https://github.com/google/sentencepiece.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace stagecoach {

class TokenizerConfig;

enum class PieceType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,  // <s>: never found in plain text
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,  // <0x00>…<0xFF>: stand for characters that have no piece
};

struct SentencePiece {
  std::string text = {};  // spaces are U+2581
  float score = 0;
  PieceType type = PieceType::kNormal;
};

struct SentencePieceModel {
  std::vector<SentencePiece> pieces = {};  // by id
  bool byte_fallback = false;
  bool add_dummy_prefix = true;          // a space before the text
  bool remove_extra_whitespaces = true;  // at both ends, and all but one of a run
  std::int64_t bos_id = 1, eos_id = 2;   // -1: none
};

// Throws data_error ("where: …") for bytes that are no model, and for models that split text in a
// way that is not supported: other algorithms than BPE, normalisation by a character map.
SentencePieceModel parse_sentencepiece(std::string_view file, const std::string& where);

// A file that parse_sentencepiece reads back.
std::string serialize_sentencepiece(const SentencePieceModel& model);

// Encodes as the sentencepiece library does: the neighbours whose concatenation is a piece of the
// highest score join first, leftmost on ties. Two choices differ, so that plain text stays plain
// and text decodes as it does from a tokenizer.json:
// - Control pieces, <unk> and what `config` adds are found in the raw text, as transformers does
// it;
//   user-defined pieces, as the library does it, in the text with its spaces escaped; neither
//   without EncodeOptions::recognise_added_tokens.
// - A run of byte pieces that is not valid UTF-8 decodes to U+FFFD for each byte, and <unk> is a
//   special token, not the library's " ⁇ ".
// BOS is added unless `config` says add_bos_token: false, EOS only if it says so, as for Llama.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(SentencePieceModel model,
                                                        const TokenizerConfig& config,
                                                        const std::string& where);

}  // namespace stagecoach
