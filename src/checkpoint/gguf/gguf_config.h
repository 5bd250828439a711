// What a GGUF file's metadata say about its model.
#pragma once

#include "checkpoint/family.h"
#include "checkpoint/gguf/gguf.h"
#include "model/model_spec.h"
#include "text/gguf_tokenizer.h"

namespace stagecoach {

// The tokenizer's keys as they stand in the file; `model` is empty where it has none.
GgufTokenizer read_gguf_tokenizer(const GgufMetadata& metadata);

struct GgufModel {
  ModelSpec spec;
  const TensorNames* names = nullptr;
};

// Takes out of `set` what is no weight of its own: rotary divisors, which go into the spec, and a
// head that repeats the token embedding. Throws data_error naming an architecture that is not
// supported, with the list of those that are, and settings that would change results.
GgufModel resolve_gguf(const GgufMetadata& metadata, const GgufTokenizer& tokenizer,
                       TensorSet& set);

}  // namespace stagecoach
