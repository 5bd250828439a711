// tokenizer.model: against what the sentencepiece library does
// (scripts/make_sentencepiece_golden.py), and files that nobody should trust.
#include "text/sentencepiece.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "text/protobuf.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<TokenId>;

fs::path data() {
  return fs::path(TEST_DATA_DIR) / "tokenizers";
}

std::string file_of(const std::string& name) {
  return read_text_file(data() / name / "tokenizer.model", 1 << 20);
}

std::unique_ptr<Tokenizer> load(const std::string& model, const std::string& config = "{}") {
  return load_tokenizer({{"tokenizer.model", model}, {"tokenizer_config.json", config}}, "test");
}

std::string refusal(const std::string& model, const std::string& config = "{}") {
  try {
    load(model, config);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    return error.what();
  }
  return "loaded";
}

bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class GoldenSentencePiece : public testing::TestWithParam<std::string> {};

TEST_P(GoldenSentencePiece, EncodesAndDecodesAsTheLibrary) {
  const auto tokenizer = load_tokenizer(data() / GetParam());
  const Json golden = read_json_file(data() / GetParam() / "cases.json", 1 << 20).at("cases");
  const std::vector<std::string> texts = read_json_file(data() / "texts.json", 1 << 20).at("texts");
  ASSERT_EQ(golden.size(), texts.size());
  // The library knows user-defined pieces everywhere, control pieces nowhere.
  const EncodeOptions options{.add_special_tokens = false,
                              .recognise_added_tokens = GetParam() == "spm_user_defined"};
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (golden[i].is_null()) continue;
    const Ids ids = golden[i].at("ids");
    EXPECT_EQ(tokenizer->encode(texts[i], options), ids) << "text " << i << ": " << texts[i];
    const Json decoded = golden[i].value("decoded", Json(texts[i]));
    if (decoded.is_null()) continue;  // unknown characters print differently
    EXPECT_EQ(tokenizer->decode_bytes(ids), decoded.get<std::string>()) << "text " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenSentencePiece,
                         testing::Values("spm_llama", "spm_plain", "spm_user_defined",
                                         "spm_collapsed", "spm_odd"),
                         [](const auto& instance) { return instance.param; });

TEST(SentencePiece, EqualScoresMergeFromLeftToRight) {
  SentencePieceModel model{
      .pieces = {{"<unk>", 0, PieceType::kUnknown}, {"a"}, {"b"}, {"ab", -1}, {"ba", -1}},
      .add_dummy_prefix = false,
      .bos_id = -1};
  const auto tokenizer = load(serialize_sentencepiece(model), R"({"add_bos_token": false})");
  EXPECT_EQ(tokenizer->encode("aba"), (Ids{3, 1}));
  EXPECT_EQ(tokenizer->encode("bab"), (Ids{4, 2}));
  model.pieces[4].score = -0.5;
  const auto scored = load(serialize_sentencepiece(model), R"({"add_bos_token": false})");
  EXPECT_EQ(scored->encode("aba"), (Ids{1, 4}));
}

TEST(SentencePiece, FramesAsLlamaDoes) {
  const std::string model = file_of("spm_llama");
  const Ids plain = load(model)->encode("a", {.add_special_tokens = false});
  Ids framed = plain;
  framed.insert(framed.begin(), 1);
  EXPECT_EQ(load(model)->encode("a"), framed);
  framed.push_back(2);
  EXPECT_EQ(load(model, R"({"add_eos_token": true})")->encode("a"), framed);
  EXPECT_EQ(load(model, R"({"add_bos_token": false})")->encode("a"), plain);
  EXPECT_EQ(load(model, R"({"bos_token": "</s>"})")->encode("").front(), 2);
  EXPECT_TRUE(mentions(refusal(model, R"({"bos_token": "<none>"})"), "<none>"));
}

TEST(SentencePiece, PrefixOnlyAtTheBeginning) {
  const auto tokenizer = load(file_of("spm_llama"));
  const Ids start = tokenizer->encode("a", {.add_special_tokens = false});
  const Ids later = tokenizer->encode("</s>a", {.add_special_tokens = false});
  EXPECT_EQ(later.front(), 2);
  EXPECT_NE(Ids(later.begin() + 1, later.end()), start);
  EXPECT_EQ(tokenizer->decode_bytes(later, false), "</s>a");
}

TEST(SentencePiece, ControlAndUserDefinedPiecesOnlyWhereAsked) {
  const auto tokenizer = load(file_of("spm_user_defined"));
  const TokenId end = tokenizer->added_token("<|end|>").value();
  const EncodeOptions plain{.add_special_tokens = false, .recognise_added_tokens = false};
  for (const std::string text : {"<|end|>", "<s>", "a</s> b<|end|>"}) {
    for (const TokenId id : tokenizer->encode(text, plain)) {
      EXPECT_NE(id, end) << text;
      EXPECT_GT(id, 2) << text;
    }
  }
  const Ids mixed =
      tokenizer->encode_segments({{"<s>", true}, {"<s><|end|>", false}, {"<|end|>", true}});
  EXPECT_EQ(mixed.front(), 1);
  EXPECT_EQ(mixed.back(), end);
  EXPECT_EQ(std::count(mixed.begin(), mixed.end(), 1), 1);
  EXPECT_EQ(std::count(mixed.begin(), mixed.end(), end), 1);
}

TEST(SentencePiece, WritesWhatItReads) {
  SentencePieceModel model = parse_sentencepiece(file_of("spm_llama"), "test");
  model.bos_id = -1;
  const SentencePieceModel again = parse_sentencepiece(serialize_sentencepiece(model), "test");
  ASSERT_EQ(again.pieces.size(), model.pieces.size());
  for (std::size_t i = 0; i < model.pieces.size(); ++i) {
    EXPECT_EQ(again.pieces[i].text, model.pieces[i].text);
    EXPECT_EQ(again.pieces[i].score, model.pieces[i].score);
    EXPECT_EQ(again.pieces[i].type, model.pieces[i].type);
  }
  EXPECT_EQ(again.bos_id, -1);
  EXPECT_TRUE(again.byte_fallback && again.add_dummy_prefix && !again.remove_extra_whitespaces);
}

TEST(SentencePiece, RefusesByName) {
  const std::string pieces = file_of("spm_llama");
  const auto with = [&](std::uint64_t field, const std::string& message) {
    std::string file = pieces;
    append_proto_bytes(file, field, message);
    return refusal(file);
  };
  std::string message;
  append_proto_number(message, 3, 1);
  EXPECT_TRUE(mentions(with(2, message), "UNIGRAM"));
  EXPECT_TRUE(mentions(with(2, ""), "UNIGRAM"));  // what a file says that says nothing
  message.clear();
  append_proto_bytes(message, 1, "nmt_nfkc");
  append_proto_bytes(message, 2, "map");
  EXPECT_TRUE(mentions(with(3, message), "nmt_nfkc"));
  EXPECT_TRUE(mentions(with(5, message), "nmt_nfkc"));
  message.clear();
  append_proto_number(message, 5, 0);
  EXPECT_TRUE(mentions(with(3, message), "white space"));
  EXPECT_TRUE(mentions(refusal(pieces, R"({"tokenizer_class": "T5Tokenizer"})"), "T5Tokenizer"));
}

std::string with_piece(const std::string& text, float score, std::uint64_t type) {
  std::string piece;
  append_proto_bytes(piece, 1, text);
  append_proto_float(piece, 2, score);
  append_proto_number(piece, 3, type);
  std::string file = file_of("spm_llama");
  append_proto_bytes(file, 1, piece);
  return file;
}

TEST(SentencePiece, RefusesPiecesThatMakeNoSense) {
  EXPECT_EQ(refusal(with_piece("[PAD]", -1, 5)), "loaded");
  EXPECT_TRUE(mentions(refusal(with_piece("", 0, 1)), "UTF-8"));
  EXPECT_TRUE(mentions(refusal(with_piece("\xff\x1b[2J", 0, 1)), "UTF-8"));
  EXPECT_FALSE(mentions(refusal(with_piece("\xff\x1b[2J", 0, 1)), "\x1b"));
  EXPECT_TRUE(mentions(refusal(with_piece(std::string(2000, 'a'), 0, 1)), "1024"));
  EXPECT_TRUE(
      mentions(refusal(with_piece("new", std::numeric_limits<float>::quiet_NaN(), 1)), "finite"));
  EXPECT_TRUE(mentions(refusal(with_piece("new", 0, 7)), "1..6"));
  EXPECT_TRUE(mentions(refusal(with_piece("<unk2>", 0, 2)), "UNKNOWN"));
  EXPECT_TRUE(mentions(refusal(with_piece("<0x100>", 0, 6)), "BYTE"));
  EXPECT_TRUE(mentions(refusal(with_piece("<s>", 0, 1)), "two ids"));
  EXPECT_TRUE(mentions(refusal(with_piece("qq", 0, 5)), "unused"));
}

// Found by fuzzing: a byte without its piece became the id -1.
TEST(SentencePiece, RefusesByteFallbackThatLacksAByte) {
  std::string file = file_of("spm_llama");
  file.replace(file.find("<0xC3>"), 6, "<0xc3>");
  EXPECT_TRUE(mentions(refusal(file), "<0xc3>"));
}

TEST(SentencePiece, LongTextsTakeNoQuadraticTime) {
  const auto tokenizer = load(file_of("spm_llama"));
  const std::string text(1 << 20, 'a');
  const Ids ids = tokenizer->encode(text);
  EXPECT_EQ(tokenizer->decode_bytes(ids), text);
}

TEST(SentencePiece, HostileBytes) {
  EXPECT_TRUE(mentions(refusal(std::string("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x", 12)),
                       "only 1 follow"));
  EXPECT_TRUE(mentions(refusal(std::string(11, '\xff')), "64 bits"));
  EXPECT_TRUE(mentions(refusal("\x0b"), "wire type 3"));
  EXPECT_TRUE(mentions(refusal(std::string("\x02\x00", 2)), "number 0"));
  EXPECT_TRUE(mentions(refusal("\x0d\x01"), "expected 4 bytes"));
  EXPECT_TRUE(mentions(refusal(""), "UNIGRAM"));
  const std::string good = file_of("spm_plain");
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    std::string bad = good.substr(0, i % 4 == 0 ? random() % good.size() : good.size());
    for (int k = 0; k < 1 + i % 3 && !bad.empty(); ++k)
      bad[random() % bad.size()] = static_cast<char>(random());
    try {
      const auto tokenizer = load(bad);
      tokenizer->decode_bytes(tokenizer->encode("The driver 東京 took"));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    }
  }
}

}  // namespace
}  // namespace stagecoach
