// The decoder component, as a chain of stages that work token by token: whole texts and streams go
// through the same code, and a stage keeps back only what a later token could still change.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "text/normalizer.h"

namespace stagecoach {

struct ByteLevelDecoding {};
struct ByteFallbackDecoding {};
struct FuseDecoding {};
struct StripDecoding {
  std::string content = " ";  // one character
  std::size_t start = 0;      // at most so many of them leave a token's begin
  std::size_t stop = 0;       // and its end
};
struct MetaspaceDecoding {
  std::string replacement = "\u2581";  // one character
  bool drop_from_first = true;         // in the first token it was put there, not a space
};
struct SpacedDecoding {};  // no decoder: tokens are joined with spaces

using DecoderStep = std::variant<ReplaceStep, ByteLevelDecoding, ByteFallbackDecoding, FuseDecoding,
                                 StripDecoding, MetaspaceDecoding, SpacedDecoding>;

// Index of the first step behind which all text is one token (steps.size(): none). The steps behind
// it see that token in pieces that may end inside a character, so they may only look for single
// bytes.
std::size_t first_fusing(const std::vector<DecoderStep>& steps);

// Receives the pieces of one token after another.
class DecoderStage {
 public:
  virtual ~DecoderStage() = default;
  virtual void push(std::string piece) = 0;
  virtual void finish() = 0;  // no more tokens
};

// A chain for one text, appending to `output`, which must outlive it.
std::unique_ptr<DecoderStage> start_decoder(const std::vector<DecoderStep>& steps,
                                            std::string& output);

}  // namespace stagecoach
