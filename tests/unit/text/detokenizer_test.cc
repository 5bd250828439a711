#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/json.h"
#include "support_temporary_folder.h"
#include "text/decoder.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

using Ids = std::vector<TokenId>;

std::unique_ptr<Tokenizer> golden(const std::string& name) {
  return load_tokenizer(std::filesystem::path(TEST_DATA_DIR) / "tokenizers" / name);
}

std::string decode(const Tokenizer& tokenizer, const Ids& ids) {
  return replace_invalid_utf8(tokenizer.decode_bytes(ids));
}

// text[len(prefix):] as Python has it, in characters.
std::string without_prefix(const std::string& text, const std::string& prefix) {
  const auto begins_character = [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  };
  auto characters = std::count_if(prefix.begin(), prefix.end(), begins_character);
  std::size_t i = 0;
  for (; i < text.size(); ++i) {
    if (begins_character(text[i]) && characters-- == 0) break;
  }
  return text.substr(i);
}

Ids random_ids(std::mt19937& random, std::int64_t vocab_size) {
  Ids ids(random() % 20);
  for (TokenId& id : ids) {
    // Half of them among the bytes, which is where texts break; a few that no vocabulary has.
    const auto limit = random() % 2 ? 260U : static_cast<std::uint32_t>(vocab_size);
    id = static_cast<TokenId>(random() % limit);
    if (random() % 20 == 0) id = static_cast<TokenId>(vocab_size + random() % 1000);
    if (random() % 40 == 0) id = -1;
  }
  return ids;
}

class Streaming : public testing::TestWithParam<std::string> {};

TEST_P(Streaming, EqualsWholeDecode) {
  const auto tokenizer = golden(GetParam());
  std::mt19937 random(11);
  for (int i = 0; i < 3000; ++i) {
    const Ids prompt = random_ids(random, tokenizer->vocab_size());
    const Ids ids = random_ids(random, tokenizer->vocab_size());
    StreamingDetokenizer stream(*tokenizer, prompt);
    std::string text;
    for (const TokenId id : ids) {
      const std::string chunk = stream.push(id);
      ASSERT_TRUE(is_valid_utf8(chunk));
      text += chunk;
    }
    text += stream.finish();

    Ids all = prompt;
    all.insert(all.end(), ids.begin(), ids.end());
    ASSERT_EQ(text, without_prefix(decode(*tokenizer, all), decode(*tokenizer, prompt)))
        << Json(prompt).dump() << " " << Json(ids).dump();
  }
}

INSTANTIATE_TEST_SUITE_P(All, Streaming,
                         testing::Values("gpt2", "gpt2_prefix_added", "llama3", "llama2",
                                         "llama2_added", "metaspace_first", "metaspace_always",
                                         "metaspace_never", "no_decoder"),
                         [](const auto& instance) { return instance.param; });

class RoundTrip : public testing::TestWithParam<std::string> {};

TEST_P(RoundTrip, DecodeUndoesEncode) {
  const auto tokenizer = golden(GetParam());
  static constexpr std::string_view kLikely = "ab'sd 1\n\t\xC3\xA9\xF0\x9F\x90\x8E\xE2\x80\x83";
  std::mt19937 random(5);
  for (int i = 0; i < 3000; ++i) {
    std::string bytes(random() % 40, '\0');
    for (char& byte : bytes)
      byte = random() % 3 ? kLikely[random() % kLikely.size()] : static_cast<char>(random());
    const std::string text = replace_invalid_utf8(bytes);
    const EncodeOptions plain{.recognise_added_tokens = false};
    ASSERT_EQ(tokenizer->decode_bytes(tokenizer->encode(text, plain)), text);
  }
}

// Byte-level ones that normalise nothing and put nothing in front.
INSTANTIATE_TEST_SUITE_P(ByteLevel, RoundTrip, testing::Values("gpt2", "llama3", "bloom", "falcon"),
                         [](const auto& instance) { return instance.param; });

TEST(StreamingDetokenizer, HoldsBackPartsOfCharacters) {
  const TemporaryFolder folder;
  folder.write("tokenizer.json", byte_tokenizer_json());
  const auto bytes = load_tokenizer(folder.path());
  StreamingDetokenizer stream(*bytes, {'h', 'i'});
  EXPECT_EQ(stream.push('!'), "!");
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(0x90), "");
  EXPECT_EQ(stream.push(0x8E), "🐎");
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.push('x'), "\uFFFDx");
  EXPECT_EQ(stream.push(300), "");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
}

TEST(StreamingDetokenizer, KeepsTheSpaceBehindAPrompt) {
  const auto tokenizer = golden("llama2");
  const Ids prompt = tokenizer->encode("the stage");
  const Ids all = tokenizer->encode("the stage road");
  ASSERT_TRUE(std::equal(prompt.begin(), prompt.end(), all.begin()));
  StreamingDetokenizer stream(*tokenizer, prompt);
  std::string text;
  for (std::size_t i = prompt.size(); i < all.size(); ++i) text += stream.push(all[i]);
  EXPECT_EQ(text, " road");
}

// One broken byte turns a whole run of byte tokens into U+FFFD; so the run waits until it ends.
TEST(StreamingDetokenizer, WaitsForTheEndOfARunOfByteTokens) {
  const auto tokenizer = golden("llama2");
  const auto byte = [](int value) { return static_cast<TokenId>(3 + value); };
  StreamingDetokenizer good(*tokenizer, {});
  EXPECT_EQ(good.push(byte(0xC3)), "");
  EXPECT_EQ(good.push(byte(0xA9)), "");
  EXPECT_EQ(good.finish(), "é");
  StreamingDetokenizer broken(*tokenizer, {});
  EXPECT_EQ(broken.push(byte(0xC3)), "");
  EXPECT_EQ(broken.push(byte(0xA9)), "");
  EXPECT_EQ(broken.push(byte(0xFF)), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(broken.push(byte('a')), "\uFFFD");
  EXPECT_EQ(broken.finish(), "");
}

TEST(Decoder, StripWorksOnTheFusedText) {
  const std::vector<DecoderStep> steps = {FuseDecoding{},
                                          StripDecoding{.content = " ", .start = 2, .stop = 1}};
  std::string text;
  const auto chain = start_decoder(steps, text);
  for (const char* piece : {" ", " ", " a ", " ", "b ", " "}) chain->push(piece);
  EXPECT_EQ(text, " a  b ");  // the last space may yet be the end
  chain->finish();
  EXPECT_EQ(text, " a  b ");
}

}  // namespace
}  // namespace stagecoach
