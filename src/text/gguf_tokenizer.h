// A GGUF file's tokenizer, turned into the files that a store keeps: so there is one way into
// load_tokenizer, whatever container a checkpoint came in.
// Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "tokenizer.ggml".
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace stagecoach {

// What the metadata say, as they say it. `where` of the functions below names the file in errors.
struct GgufTokenizer {
  std::string model = {};                // "gpt2" or "llama"
  std::string pre = {};                  // how gpt2's kind splits text; "": the file does not say
  std::vector<std::string> tokens = {};  // by id
  std::vector<float> scores = {};        // by id; "llama" needs them
  // By id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; empty: all normal.
  std::vector<std::int32_t> types = {};
  std::vector<std::string> merges = {};                 // "A B", by rank; "gpt2" needs them
  std::int64_t bos = -1, eos = -1, unk = -1, pad = -1;  // ids; -1: none
  std::vector<std::int64_t> eot = {}, eom = {};         // end of turn, of message
  std::optional<bool> add_bos = {}, add_eos = {}, add_space_prefix = {};
  std::string chat_template = {};  // "": none
};

// Contents by file name (tokenizer.json or tokenizer.model, and tokenizer_config.json).
// Throws data_error naming what is not supported or contradicts itself.
std::map<std::string, std::string> gguf_tokenizer_files(const GgufTokenizer& tokenizer,
                                                        const std::string& where);

// The ids that end a text: eos, eot, eom, each once. For ModelSpec::eos_token_ids.
std::vector<std::int64_t> gguf_end_of_text_ids(const GgufTokenizer& tokenizer);

}  // namespace stagecoach
