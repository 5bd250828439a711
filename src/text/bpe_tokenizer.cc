#include "text/bpe_tokenizer.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"

namespace stagecoach {
namespace {

void require_utf8(std::string_view text) {
  if (!is_valid_utf8(text))
    throw data_error("the text is not valid UTF-8", "convert it, for example with iconv -t UTF-8");
}

class BpeDecoder : public IncrementalDecoder {
 public:
  BpeDecoder(const BpeTokenizerParts& parts, bool skip_special)
      : parts_(parts), skip_special_(skip_special), chain_(start_decoder(parts.decoder, output_)) {}

  void push(TokenId id, std::string& bytes) override {
    if (const auto added = parts_.added.decoded(id)) {
      if (added->special && skip_special_) return;
      chain_->push(std::string(added->text));
    } else if (const std::string* token = parts_.model.vocabulary().token_of(id)) {
      chain_->push(*token);
    }
    drain(bytes);
  }

  void finish(std::string& bytes) override {
    chain_->finish();
    drain(bytes);
  }

 private:
  void drain(std::string& bytes) {
    bytes += output_;
    output_.clear();
  }

  const BpeTokenizerParts& parts_;
  bool skip_special_;
  std::string output_;
  std::unique_ptr<DecoderStage> chain_;  // appends to output_
};

class BpeTokenizer : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeTokenizerParts parts) : parts_(std::move(parts)) {}

  std::vector<TokenId> encode_segments(const std::vector<TextSegment>& segments) const override {
    std::string text;
    std::vector<Range> marked;
    for (const TextSegment& segment : segments) {
      if (segment.is_markup && (marked.empty() || marked.back().end != text.size()))
        marked.push_back({text.size(), text.size()});
      text += segment.text;
      if (segment.is_markup) marked.back().end = text.size();
    }
    require_utf8(text);
    std::vector<TokenId> ids;
    for (const Segment& segment : parts_.added.split_marked(text, marked)) {
      if (segment.token) {
        ids.push_back(*segment.token);
        continue;
      }
      std::string plain = text.substr(segment.begin, segment.end - segment.begin);
      encode_plain({parts_.normalizer.apply(std::move(plain)), segment.begin == 0}, ids);
    }
    return ids;
  }

  std::optional<TokenId> added_token(std::string_view content) const override {
    return parts_.added.id_of(content);
  }

  std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options) const override {
    require_utf8(text);
    std::vector<TokenId> ids;
    if (options.add_special_tokens) ids = parts_.frame.before;
    if (options.recognise_added_tokens) {
      for (const Segment& segment : parts_.added.split_raw(text))
        encode_raw(text.substr(segment.begin, segment.end - segment.begin), segment, ids);
    } else {
      encode_plain({parts_.normalizer.apply(std::string(text)), true}, ids);
    }
    if (options.add_special_tokens)
      ids.insert(ids.end(), parts_.frame.after.begin(), parts_.frame.after.end());
    return ids;
  }

  std::unique_ptr<IncrementalDecoder> start_decoding(bool skip_special) const override {
    return std::make_unique<BpeDecoder>(parts_, skip_special);
  }

  std::int64_t vocab_size() const override {
    const TokenId largest =
        std::max(parts_.added.largest_id(), parts_.model.vocabulary().largest_id());
    return std::int64_t{largest} + 1;
  }

 private:
  void encode_raw(std::string_view text, const Segment& where, std::vector<TokenId>& ids) const {
    if (where.token) {
      ids.push_back(*where.token);
      return;
    }
    const std::string normalized = parts_.normalizer.apply(std::string(text));
    for (const Segment& segment : parts_.added.split_normalized(normalized)) {
      if (segment.token) {
        ids.push_back(*segment.token);
        continue;
      }
      encode_plain({normalized.substr(segment.begin, segment.end - segment.begin),
                    where.begin == 0 && segment.begin == 0},
                   ids, parts_.user_defined);
    }
  }

  // `pieces` are looked for in what the pre-tokenizer makes of the text.
  void encode_plain(Piece text, std::vector<TokenId>& ids, const AddedTokens& pieces = {}) const {
    for (const Piece& piece : parts_.pre_tokenizer.apply(std::move(text))) {
      for (const Segment& segment : pieces.split_raw(piece.text)) {
        if (segment.token)
          ids.push_back(*segment.token);
        else
          parts_.model.encode(
              std::string_view(piece.text).substr(segment.begin, segment.end - segment.begin), ids);
      }
    }
  }

  BpeTokenizerParts parts_;
};

class ByteDecoder : public IncrementalDecoder {
 public:
  void push(TokenId id, std::string& bytes) override {
    if (id >= 0 && id < 256) bytes.push_back(static_cast<char>(id));
  }
  void finish(std::string&) override {}
};

class ByteTokenizer : public Tokenizer {
 public:
  std::vector<TokenId> encode(std::string_view text, const EncodeOptions&) const override {
    require_utf8(text);
    std::vector<TokenId> ids;
    ids.reserve(text.size());
    for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
    return ids;
  }
  std::vector<TokenId> encode_segments(const std::vector<TextSegment>& segments) const override {
    std::string text;
    for (const TextSegment& segment : segments) text += segment.text;
    return encode(text, {});
  }
  std::optional<TokenId> added_token(std::string_view) const override { return std::nullopt; }
  std::unique_ptr<IncrementalDecoder> start_decoding(bool) const override {
    return std::make_unique<ByteDecoder>();
  }
  std::int64_t vocab_size() const override { return 256; }
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeTokenizerParts parts) {
  return std::make_unique<BpeTokenizer>(std::move(parts));
}

std::unique_ptr<Tokenizer> make_byte_tokenizer() {
  return std::make_unique<ByteTokenizer>();
}

}  // namespace stagecoach
