// The tokenizers in tests/data/tokenizers against what the `tokenizers` library does with them
// (scripts/make_tokenizer_golden.py), and GPT-2's own against published ids.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "support_temporary_folder.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxBytes = 64 << 20;

fs::path golden_folder() {
  return fs::path(TEST_DATA_DIR) / "tokenizers";
}

std::string decode(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool skip_special) {
  return replace_invalid_utf8(tokenizer.decode_bytes(ids, skip_special));
}

class GoldenTokenizer : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    tokenizer_ = load_tokenizer(golden_folder() / GetParam());
    ASSERT_NE(tokenizer_, nullptr);
    golden_ = read_json_file(golden_folder() / GetParam() / "cases.json", kMaxBytes);
    texts_ = read_json_file(golden_folder() / "texts.json", kMaxBytes).at("texts");
    ASSERT_EQ(golden_.at("cases").size(), texts_.size());
    ASSERT_GT(texts_.size(), 60U);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  Json golden_;
  std::vector<std::string> texts_;
};

TEST_P(GoldenTokenizer, EncodesAsTheLibrary) {
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    const Json& expected = golden_.at("cases").at(i);
    const std::vector<TokenId> ids = expected.at("ids");
    EXPECT_EQ(tokenizer_->encode(texts_[i]), ids) << "text " << i << ": " << texts_[i];
    const std::vector<TokenId> plain = expected.value("ids_without_special", ids);
    EXPECT_EQ(tokenizer_->encode(texts_[i], {.add_special_tokens = false}), plain) << texts_[i];
  }
}

TEST_P(GoldenTokenizer, DecodesAsTheLibrary) {
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    const Json& expected = golden_.at("cases").at(i);
    const std::vector<TokenId> ids = expected.at("ids");
    const std::string decoded = expected.value("decoded", texts_[i]);
    EXPECT_EQ(decode(*tokenizer_, ids, true), decoded) << "text " << i;
    EXPECT_EQ(decode(*tokenizer_, ids, false), expected.value("decoded_with_special", decoded))
        << "text " << i;
  }
}

TEST_P(GoldenTokenizer, DecodesAnyIdsAsTheLibrary) {
  for (const Json& expected : golden_.at("decode")) {
    const std::vector<TokenId> ids = expected.at("ids");
    EXPECT_EQ(decode(*tokenizer_, ids, true), expected.at("text").get<std::string>())
        << expected.at("ids").dump();
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTokenizer,
                         testing::Values("gpt2", "gpt2_prefix_added", "llama3", "qwen2", "bloom",
                                         "falcon", "smollm", "splits", "llama2", "llama2_added",
                                         "metaspace_first", "metaspace_always", "metaspace_never",
                                         "no_decoder"),
                         [](const auto& instance) { return instance.param; });

// --- GPT-2's own vocabulary, where the external data is at hand ---

struct PublishedCase {
  std::string text;
  std::vector<TokenId> ids;
};

std::vector<PublishedCase> published_cases(const fs::path& folder) {
  static const std::string kSeparator = "\n__ggml_vocab_test__\n";
  const std::string texts = read_text_file(folder / "cases.inp", kMaxBytes);
  std::istringstream lines(read_text_file(folder / "cases.out", kMaxBytes));
  std::vector<PublishedCase> cases;
  for (std::size_t begin = 0; begin <= texts.size();) {
    const std::size_t end = std::min(texts.find(kSeparator, begin), texts.size());
    PublishedCase one{texts.substr(begin, end - begin), {}};
    begin = end + kSeparator.size();
    std::string line;  // the last text is empty, and its line is missing
    std::getline(lines, line);
    std::istringstream ids(line);
    for (TokenId id = 0; ids >> id;) one.ids.push_back(id);
    cases.push_back(std::move(one));
  }
  return cases;
}

class PublishedGpt2 : public testing::Test {
 protected:
  void SetUp() override {
    const char* data = std::getenv("STAGECOACH_EXTERNAL_DATA");
    if (data == nullptr || !fs::exists(fs::path(data) / "gpt2-tokenizer"))
      GTEST_SKIP()
          << "GPT-2's tokenizer is not here: set STAGECOACH_EXTERNAL_DATA to a folder with "
             "gpt2-tokenizer/";
    source_ = fs::path(data) / "gpt2-tokenizer";
  }

  void check(const fs::path& folder) {
    const auto tokenizer = load_tokenizer(folder);
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_EQ(tokenizer->vocab_size(), 50257);
    const std::vector<PublishedCase> cases = published_cases(source_);
    ASSERT_EQ(cases.size(), 47U);
    for (const PublishedCase& one : cases) {
      EXPECT_EQ(tokenizer->encode(one.text), one.ids) << one.text;
      EXPECT_EQ(tokenizer->decode_bytes(one.ids), one.text);
    }
    EXPECT_EQ(tokenizer->encode("a<|endoftext|>"), (std::vector<TokenId>{64, 50256}));
    EXPECT_EQ(tokenizer->decode_bytes({64, 50256, 64}), "aa");
  }

  fs::path source_;
  TemporaryFolder folder_;
};

TEST_F(PublishedGpt2, FromTokenizerJson) {
  fs::copy_file(source_ / "tokenizer.json", folder_.path() / "tokenizer.json");
  check(folder_.path());
}

TEST_F(PublishedGpt2, FromVocabAndMerges) {
  for (const char* name : {"vocab.json", "merges.txt"})
    fs::copy_file(source_ / name, folder_.path() / name);
  check(folder_.path());
}

}  // namespace
}  // namespace stagecoach
