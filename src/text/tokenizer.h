// Text ↔ token ids, exactly as the checkpoint's own tokenizer does it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

using TokenId = std::int32_t;

struct EncodeOptions {
  bool add_special_tokens = true;      // BOS and EOS as the tokenizer adds them; false: --no-bos
  bool recognise_added_tokens = true;  // false: the text is plain text throughout (chat contents)
};

// A stretch of a chat, say: what its template says, or what somebody typed.
struct TextSegment {
  std::string text;
  bool is_markup = false;
};

// Decodes id by id; what is appended, all together, is what decode_bytes makes of all the ids.
class IncrementalDecoder {
 public:
  virtual ~IncrementalDecoder() = default;
  // Appends the bytes that no later id can change. Amortised cost: the length of the token.
  virtual void push(TokenId id, std::string& bytes) = 0;
  virtual void finish(std::string& bytes) = 0;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // `text` is valid UTF-8 (check with is_valid_utf8 first: invalid text is a data_error).
  virtual std::vector<TokenId> encode(std::string_view text,
                                      const EncodeOptions& options = {}) const = 0;
  // The ids of the segments' texts, one behind the other, as if they were one text without special
  // tokens around it; added tokens are recognised where they lie in markup entirely.
  virtual std::vector<TokenId> encode_segments(const std::vector<TextSegment>& segments) const = 0;
  // The id of the added token (or user-defined piece) with this content.
  virtual std::optional<TokenId> added_token(std::string_view content) const = 0;

  // Raw bytes of the ids, concatenated by the tokenizer's decoder; may end inside a UTF-8
  // character. Ids beyond the vocabulary decode to nothing. Special tokens are skipped if asked.
  std::string decode_bytes(const std::vector<TokenId>& ids, bool skip_special = true) const;
  // The decoder refers to the tokenizer, which must outlive it.
  virtual std::unique_ptr<IncrementalDecoder> start_decoding(bool skip_special = true) const = 0;

  virtual std::int64_t vocab_size() const = 0;  // largest id + 1
};

// Contents by file name: those of tokenizer_file_names() that exist.
using TokenizerFiles = std::map<std::string, std::string>;
TokenizerFiles read_tokenizer_files(const std::filesystem::path& directory);

// From tokenizer.json, else vocab.json + merges.txt, else tokenizer.model, with
// tokenizer_config.json and friends if present; or stagecoach's own byte tokenizer. `where` (the
// folder, say) names them in errors. Throws data_error naming the component that is not supported.
// Returns null when there are no such files.
std::unique_ptr<Tokenizer> load_tokenizer(const TokenizerFiles& files, const std::string& where);
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory);

// id = byte, no BOS: for random models. Its serialised form is byte_tokenizer_json().
std::string byte_tokenizer_json();

// Names of the files that an import copies.
const std::vector<std::string>& tokenizer_file_names();

bool is_valid_utf8(std::string_view text);
// Broken sequences become U+FFFD, as Python's errors="replace" does (one per maximal invalid
// prefix).
std::string replace_invalid_utf8(std::string_view bytes);

// Repairs a stream of bytes: what is appended is valid UTF-8 and never ends
// inside a character. All of it, with finish, is replace_invalid_utf8 of all the bytes.
class Utf8Repairer {
 public:
  void push(std::string_view bytes, std::string& repaired);
  void finish(std::string& repaired);

 private:
  std::string incomplete_;  // at most three bytes, a prefix of some valid character
};

// decode(prompt + ids) without as many characters as decode(prompt) has, chunk by chunk, each valid
// UTF-8; broken bytes are U+FFFD. A prompt that ends inside a character counts that as one.
class StreamingDetokenizer {
 public:
  StreamingDetokenizer(const Tokenizer& tokenizer, const std::vector<TokenId>& prompt);
  // Text that is certain now, given one more id; may be empty.
  std::string push(TokenId id);
  // What is left, with broken UTF-8 replaced.
  std::string finish();

 private:
  std::string take_new(std::string_view text);

  std::unique_ptr<IncrementalDecoder> decoder_;
  Utf8Repairer repairer_;
  std::size_t prompt_characters_ = 0;  // that are still to be left out
};

}  // namespace stagecoach
