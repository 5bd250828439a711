// GGUF's fields, turned into files, encode as the tokenizer.json or tokenizer.model that the same
// model was published with.
#include "text/gguf_tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "text/sentencepiece.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

fs::path data() {
  return fs::path(TEST_DATA_DIR) / "tokenizers";
}

std::vector<std::string> texts() {
  return read_json_file(data() / "texts.json", 1 << 20).at("texts");
}

// What a converter would make of a published tokenizer.json.
GgufTokenizer from_json(const std::string& name, const std::string& pre) {
  const Json json = read_json_file(data() / name / "tokenizer.json", 1 << 20);
  GgufTokenizer tokenizer{.model = "gpt2", .pre = pre};
  const auto put = [&](std::size_t id, const std::string& token, std::int32_t type) {
    if (tokenizer.tokens.size() <= id) {
      tokenizer.tokens.resize(id + 1);
      tokenizer.types.resize(id + 1, 1);
    }
    tokenizer.tokens[id] = token;
    tokenizer.types[id] = type;
  };
  for (const auto& [token, id] : json.at("model").at("vocab").items()) put(id, token, 1);
  for (const Json& token : json.at("added_tokens"))
    put(token.at("id"), token.at("content"), token.at("special") == true ? 3 : 4);
  for (const Json& merge : json.at("model").at("merges")) {
    tokenizer.merges.push_back(merge.is_string() ? merge.get<std::string>()
                                                 : merge[0].get<std::string>() + " " +
                                                       merge[1].get<std::string>());
  }
  return tokenizer;
}

GgufTokenizer from_model(const std::string& name) {
  const SentencePieceModel model =
      parse_sentencepiece(read_text_file(data() / name / "tokenizer.model", 1 << 20), name);
  GgufTokenizer tokenizer{.model = "llama", .pre = "default", .bos = 1, .eos = 2, .unk = 0};
  for (const SentencePiece& piece : model.pieces) {
    tokenizer.tokens.push_back(piece.text);
    tokenizer.scores.push_back(piece.score);
    tokenizer.types.push_back(static_cast<std::int32_t>(piece.type));
  }
  return tokenizer;
}

std::unique_ptr<Tokenizer> load(const GgufTokenizer& tokenizer) {
  return load_tokenizer(gguf_tokenizer_files(tokenizer, "test.gguf"), "test.gguf");
}

std::string refusal(const GgufTokenizer& tokenizer) {
  try {
    load(tokenizer);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    return error.what();
  }
  return "loaded";
}

bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void expect_same(const Tokenizer& converted, const Tokenizer& published) {
  EXPECT_EQ(converted.vocab_size(), published.vocab_size());
  for (const std::string& text : texts()) {
    const std::vector<TokenId> ids = published.encode(text);
    EXPECT_EQ(converted.encode(text), ids) << text;
    EXPECT_EQ(converted.decode_bytes(ids), published.decode_bytes(ids)) << text;
  }
}

struct Named {
  const char* folder = "";
  const char* pre = "";
  std::int64_t bos = -1;
};

class GgufPreTokenizer : public testing::TestWithParam<Named> {};

TEST_P(GgufPreTokenizer, SplitsAsTheModelsTokenizerJson) {
  GgufTokenizer tokenizer = from_json(GetParam().folder, GetParam().pre);
  const auto published = load_tokenizer(data() / GetParam().folder);
  if (GetParam().bos == 0) tokenizer.bos = published->added_token("<s>").value();
  expect_same(*load(tokenizer), *published);
}

INSTANTIATE_TEST_SUITE_P(All, GgufPreTokenizer,
                         testing::Values(Named{"gpt2", "gpt-2"}, Named{"llama3", "llama-bpe", 0},
                                         Named{"llama3", "llama3", 0}, Named{"bloom", "bloom"},
                                         Named{"falcon", "falcon"}, Named{"smollm", "smollm"}));

TEST(GgufTokenizer, Qwen2ComposesCharacters) {
  const auto published = load_tokenizer(data() / "qwen2");
  const auto converted = load(from_json("qwen2", "qwen2"));
  for (const std::string text : {"cafe\u0301 12 345", "A\u030a\r\n\r\nx"})
    EXPECT_EQ(converted->encode(text), published->encode(text)) << text;
}

TEST(GgufTokenizer, LlamaIsSentencePiece) {
  expect_same(*load(from_model("spm_llama")), *load_tokenizer(data() / "spm_llama"));
  GgufTokenizer plain = from_model("spm_plain");
  plain.add_space_prefix = false;
  expect_same(*load(plain), *load_tokenizer(data() / "spm_plain"));
}

TEST(GgufTokenizer, FlagsAndRoles) {
  GgufTokenizer llama = from_model("spm_llama");
  llama.add_bos = false;
  llama.add_eos = true;
  EXPECT_EQ(load(llama)->encode(""), std::vector<TokenId>{2});
  GgufTokenizer gpt2 = from_json("gpt2", "gpt-2");
  EXPECT_TRUE(load(gpt2)->encode("").empty());
  gpt2.bos = static_cast<std::int64_t>(gpt2.tokens.size()) - 1;
  gpt2.add_bos = true;
  EXPECT_EQ(load(gpt2)->encode(""), std::vector<TokenId>{static_cast<TokenId>(gpt2.bos)});
  gpt2.chat_template = "{{ 'x' }}";
  const Json config =
      parse_json(gguf_tokenizer_files(gpt2, "test").at("tokenizer_config.json"), "test");
  EXPECT_EQ(config.at("chat_template"), "{{ 'x' }}");
  EXPECT_EQ(config.at("bos_token"), gpt2.tokens.back());
}

TEST(GgufTokenizer, EndsOfText) {
  const GgufTokenizer tokenizer{.eos = 2, .eot = {7, 2}, .eom = {-1, 9}};
  EXPECT_EQ(gguf_end_of_text_ids(tokenizer), (std::vector<std::int64_t>{2, 7, 9}));
  EXPECT_TRUE(gguf_end_of_text_ids({}).empty());
}

TEST(GgufTokenizer, RefusesByName) {
  EXPECT_TRUE(mentions(refusal(from_json("gpt2", "tekken")), "\"tekken\""));
  EXPECT_TRUE(mentions(refusal(from_json("gpt2", "tekken")), "llama-bpe"));
  EXPECT_TRUE(mentions(refusal(from_json("gpt2", "")), "missing"));
  EXPECT_TRUE(mentions(refusal(from_json("gpt2", "default")), "\"default\""));
  GgufTokenizer bad = from_json("gpt2", "gpt-2");
  bad.model = "bert\x1b[0m";
  EXPECT_TRUE(mentions(refusal(bad), "bert"));
  EXPECT_FALSE(mentions(refusal(bad), "\x1b"));
}

TEST(GgufTokenizer, RefusesContradictions) {
  const GgufTokenizer good = from_json("gpt2", "gpt-2");
  const auto refusal_with = [&](auto change) {
    GgufTokenizer bad = good;
    change(bad);
    return refusal(bad);
  };
  EXPECT_TRUE(mentions(refusal_with([](GgufTokenizer& g) { g.tokens.clear(); }), "empty"));
  EXPECT_TRUE(mentions(refusal_with([](GgufTokenizer& g) { g.types.pop_back(); }), "token_type"));
  EXPECT_TRUE(mentions(refusal_with([](GgufTokenizer& g) { g.types[3] = 7; }), "1..6"));
  EXPECT_TRUE(
      mentions(refusal_with([](GgufTokenizer& g) { g.tokens[1] = g.tokens[0]; }), "two ids"));
  EXPECT_TRUE(mentions(refusal_with([](GgufTokenizer& g) { g.tokens[1] = "\xff"; }), "UTF-8"));
  EXPECT_TRUE(mentions(refusal_with([](GgufTokenizer& g) { g.merges[0] = "\xff a"; }), "UTF-8"));
  EXPECT_TRUE(mentions(refusal_with([](GgufTokenizer& g) { g.merges.clear(); }), "merges"));
  EXPECT_TRUE(mentions(refusal_with([](GgufTokenizer& g) { g.bos = 1 << 20; }), "bos_token_id"));
  EXPECT_TRUE(mentions(refusal_with([](GgufTokenizer& g) { g.add_bos = true; }), "bos_token_id"));
  EXPECT_TRUE(mentions(refusal_with([](GgufTokenizer& g) { g.model = "llama"; }), "score"));
  EXPECT_TRUE(mentions(refusal_with([](GgufTokenizer& g) { g.chat_template = "\xff"; }), "UTF-8"));
}

}  // namespace
}  // namespace stagecoach
