#include "app/text_input.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdio>

#include "base/error.h"
#include "base/file.h"
#include "base/quote.h"
#include "checkpoint/import.h"

namespace stagecoach {
namespace {

// More text than any context can hold.
constexpr std::int64_t kMaxTextBytes = std::int64_t{1} << 30;

std::string read_stdin() {
  std::string text;
  char buffer[65536];
  for (std::size_t n = 0; (n = std::fread(buffer, 1, sizeof(buffer), stdin)) > 0;) {
    text.append(buffer, n);
    if (static_cast<std::int64_t>(text.size()) > kMaxTextBytes)
      throw data_error("stdin holds more text than 1 GiB");
  }
  if (std::ferror(stdin) != 0) throw resource_error("cannot read stdin");
  return text;
}

}  // namespace

std::string read_text(const std::string& file) {
  std::string text = file == "-" ? read_stdin() : read_text_file(file, kMaxTextBytes);
  if (!is_valid_utf8(text))
    throw data_error(fmt::format("{} is not valid UTF-8", file == "-" ? "stdin" : file),
                     "convert it first, for example with iconv");
  return text;
}

std::vector<std::string> read_prompts(const std::string& file) {
  const std::string text = read_text(file);
  std::vector<std::string> prompts;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    if (end < text.size() && !line.empty() && line.back() == '\r') line.pop_back();
    prompts.push_back(std::move(line));
    at = end + 1;
  }
  if (prompts.empty())
    throw usage_error(fmt::format("{} holds no prompts", file), "write one prompt a line");
  return prompts;
}

std::vector<TokenId> parse_ids(const std::string& text, const std::string& where) {
  std::vector<TokenId> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    while (at < end && std::isspace(static_cast<unsigned char>(*at)) != 0) ++at;
    if (at == end) return ids;
    TokenId id = 0;
    const auto [after, error] = std::from_chars(at, end, id);
    if (error != std::errc{} ||
        (after < end && std::isspace(static_cast<unsigned char>(*after)) == 0))
      throw usage_error(
          fmt::format(
              "{}: expected token ids separated by blanks, found {}", where,
              quote_value({at, static_cast<std::size_t>(std::min<std::ptrdiff_t>(20, end - at))})),
          "stagecoach tokenize STORE --string TEXT prints a text's ids");
    ids.push_back(id);
    at = after;
  }
}

std::unique_ptr<Tokenizer> store_tokenizer(const std::filesystem::path& store) {
  return load_tokenizer(store / "tokenizer");
}

ChatTemplate store_chat_template(const std::filesystem::path& store) {
  const std::filesystem::path folder = store / "tokenizer";
  return ChatTemplate::load(read_tokenizer_files(folder), folder.string());
}

std::unique_ptr<Tokenizer> require_tokenizer(const std::filesystem::path& source) {
  std::error_code error;
  const bool store = std::filesystem::exists(source / "manifest.json", error);
  if (error)
    throw data_error(fmt::format("cannot look into {}: {}", source.string(), error.message()),
                     "check the path");
  auto tokenizer = store ? store_tokenizer(source)
                         : load_tokenizer(checkpoint_tokenizer_files(source), source.string());
  if (tokenizer == nullptr)
    throw data_error(
        fmt::format("{} has no tokenizer files (tokenizer.json, vocab.json with merges.txt, or "
                    "tokenizer.model)",
                    source.string()),
        store ? "give token ids instead of text: --prompt-ids or --ids"
              : "put the checkpoint's tokenizer.json there");
  return tokenizer;
}

void check_text_length(std::string_view text, const ModelSpec& spec, const std::string& what) {
  constexpr std::size_t kLongestToken =
      1024;  // bytes; runs of blanks are the longest that vocabularies hold
  const std::size_t limit = static_cast<std::size_t>(spec.max_position_embeddings) * kLongestToken;
  if (text.size() > limit)
    throw usage_error(
        fmt::format("{} has {} bytes, far more than the model's context of {} tokens can hold",
                    what, text.size(), spec.max_position_embeddings),
        "shorten it");
}

void check_tokens(const std::vector<TokenId>& ids, const ModelSpec& spec, const std::string& what) {
  if (ids.empty())
    throw usage_error(fmt::format("{} is empty, and the tokenizer adds no token of its own", what),
                      "give at least one token");
  for (TokenId id : ids)
    if (id < 0 || id >= spec.vocab_size)
      throw usage_error(fmt::format("{}: token id {} is outside the vocabulary: expected 0 to {}",
                                    what, id, spec.vocab_size - 1),
                        "stagecoach tokenize STORE --string TEXT prints a text's ids");
  if (static_cast<std::int64_t>(ids.size()) > spec.max_position_embeddings)
    throw usage_error(fmt::format("{} has {} tokens, the model's context is {}", what, ids.size(),
                                  spec.max_position_embeddings),
                      "shorten it");
}

}  // namespace stagecoach
