// Text ↔ token ids, exactly as the checkpoint's own tokenizer does it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

using TokenId = std::int32_t;

struct EncodeOptions {
  bool add_special_tokens = true;  // BOS and EOS as the tokenizer adds them; false: --no-bos
  bool recognise_added_tokens = true;  // false: the text is plain text throughout (chat contents)
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // `text` is valid UTF-8 (check with is_valid_utf8 first: invalid text is a data_error).
  virtual std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options = {}) const = 0;

  // Raw bytes of the ids, concatenated by the tokenizer's decoder; may end inside a UTF-8 character.
  // Ids beyond the vocabulary decode to nothing. Special tokens are skipped if asked.
  virtual std::string decode_bytes(const std::vector<TokenId>& ids, bool skip_special = true) const = 0;

  virtual std::int64_t vocab_size() const = 0;  // largest id + 1
};

// From a directory that holds tokenizer.json, or vocab.json + merges.txt, with tokenizer_config.json
// and friends if present; or stagecoach's own byte tokenizer. Throws data_error naming the
// component that is not supported. Returns null when the directory holds no tokenizer files.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory);

// id = byte, no BOS: for random models. Its serialised form is byte_tokenizer_json().
std::string byte_tokenizer_json();

// Names of the files that an import copies.
const std::vector<std::string>& tokenizer_file_names();

bool is_valid_utf8(std::string_view text);
// Broken sequences become U+FFFD, as Python's errors="replace" does (one per maximal invalid prefix).
std::string replace_invalid_utf8(std::string_view bytes);

// decode(prompt + ids) − decode(prompt), chunk by chunk, never inside a character.
class StreamingDetokenizer {
 public:
  StreamingDetokenizer(const Tokenizer& tokenizer, std::vector<TokenId> prompt);
  // Text that is certain now, given one more id; may be empty.
  std::string push(TokenId id);
  // What is left, with broken UTF-8 replaced.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::vector<TokenId> ids_;      // the window that decoding needs for context
  std::size_t window_begin_ = 0;
  std::string pending_;
};

}  // namespace stagecoach
