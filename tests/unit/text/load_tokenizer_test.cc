// What load_tokenizer makes of folders: the files' roles, and files that nobody should trust.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "support_temporary_folder.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

using Ids = std::vector<TokenId>;

class LoadTokenizer : public testing::Test {
 protected:
  std::unique_ptr<Tokenizer> load() const { return load_tokenizer(folder_.path()); }

  // The message of the data_error that loading ends with.
  std::string refusal() const {
    try {
      load();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
      return error.what();
    }
    return "loaded";
  }

  std::string refusal_of(const Json& tokenizer) const {
    folder_.write("tokenizer.json", tokenizer.dump());
    return refusal();
  }

  TemporaryFolder folder_;
};

// A complete small tokenizer.json to break in one place.
Json small() {
  return parse_json(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 4, "content": "<s>", "single_word": false, "lstrip": false,
                      "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": {"type": "TemplateProcessing",
                       "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                       "pair": [],
                       "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
              "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
              "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": [["a", "b"]]}})",
                    "small");
}

TEST_F(LoadTokenizer, NothingThere) {
  EXPECT_EQ(load(), nullptr);
  folder_.write("generation_config.json", "{}");
  EXPECT_EQ(load(), nullptr);
}

TEST_F(LoadTokenizer, SmallOne) {
  folder_.write("tokenizer.json", small().dump());
  const auto tokenizer = load();
  EXPECT_EQ(tokenizer->encode("ab a<s>"), (Ids{4, 2, 3, 0, 4}));
  EXPECT_EQ(tokenizer->encode("ab", {.add_special_tokens = false}), Ids{2});
  EXPECT_EQ(tokenizer->vocab_size(), 5);
  EXPECT_EQ(tokenizer->decode_bytes({4, 2, 3, 0, 99, -7, 2147483647}), "ab a");
  EXPECT_EQ(tokenizer->decode_bytes({4, 2}, false), "<s>ab");
}

TEST_F(LoadTokenizer, PlainTextHasNoAddedTokens) {
  Json json = small();
  json["model"]["vocab"] = {{"<", 0}, {"s", 1}, {">", 2}};
  json["model"]["merges"] = Json::array();
  folder_.write("tokenizer.json", json.dump());
  EXPECT_EQ(load()->encode("<s>", {.recognise_added_tokens = false}), (Ids{4, 0, 1, 2}));
}

TEST_F(LoadTokenizer, InvalidTextIsADataError) {
  folder_.write("tokenizer.json", small().dump());
  EXPECT_THROW(load()->encode("a\xFF"), Error);
}

TEST_F(LoadTokenizer, ByteTokenizer) {
  folder_.write("tokenizer.json", byte_tokenizer_json());
  const auto tokenizer = load();
  EXPECT_EQ(tokenizer->encode("hé"), (Ids{'h', 0xC3, 0xA9}));
  EXPECT_EQ(tokenizer->decode_bytes({'h', 0xC3, 256, -1}), "h\xC3");
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_THROW(tokenizer->encode("\xC3"), Error);
}

// --- vocab.json + merges.txt and the files beside them ---

class VocabAndMerges : public LoadTokenizer {
 protected:
  VocabAndMerges() {
    folder_.write(
        "vocab.json",
        R"({"a": 0, "b": 1, "ab": 2, "Ġ": 3, "#": 4, "##": 5, "<|endoftext|>": 6, "</s>": 7})");
    folder_.write("merges.txt", "#version: 0.2\na b\n# #\n");
  }
};

TEST_F(VocabAndMerges, Gpt2Rules) {
  const auto tokenizer = load();
  EXPECT_EQ(tokenizer->encode("ab ##<|endoftext|>"), (Ids{2, 3, 5, 6}));
  EXPECT_EQ(tokenizer->decode_bytes({2, 3, 5, 6}), "ab ##");
}

TEST_F(VocabAndMerges, LineEnds) {
  folder_.write("merges.txt", "#version: 0.2\r\na b\r\n\r\n# #\r\n");
  EXPECT_NE(refusal().find("line 3"), std::string::npos);
  folder_.write("merges.txt", "#version: 0.2\r\na b\r\n");
  EXPECT_EQ(load()->encode("ab"), Ids{2});
}

TEST_F(VocabAndMerges, BosAsTheConfigSays) {
  folder_.write(
      "tokenizer_config.json",
      R"({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": true, "bos_token": {"__type": "AddedToken",
                    "content": "</s>", "lstrip": false, "normalized": true, "rstrip": false, "single_word": false}})");
  const auto tokenizer = load();
  EXPECT_EQ(tokenizer->encode("ab"), (Ids{7, 2}));
  EXPECT_EQ(tokenizer->encode("ab", {.add_special_tokens = false}), Ids{2});
  EXPECT_EQ(tokenizer->encode("</s>", {.add_special_tokens = false}), Ids{7});
}

TEST_F(VocabAndMerges, TokensOfAllCompanionFiles) {
  folder_.write(
      "tokenizer_config.json",
      R"({"add_prefix_space": true, "added_tokens_decoder": {"9": {"content": "<x>", "lstrip": true, "special": true}}})");
  folder_.write("added_tokens.json", R"({"<y>": 10, "<z>": 12})");
  folder_.write("special_tokens_map.json",
                R"({"additional_special_tokens": ["<z>", "</s>", "<lost>"], "pad_token": null})");
  const auto tokenizer = load();
  EXPECT_EQ(tokenizer->encode("ab  <x><y><z></s>"), (Ids{3, 2, 9, 10, 12, 7}));
  EXPECT_EQ(tokenizer->decode_bytes({2, 9, 10, 12, 7}), "ab<y>");
  EXPECT_EQ(tokenizer->vocab_size(), 13);
}

TEST_F(VocabAndMerges, Refusals) {
  folder_.write("added_tokens.json", R"({"<y>": 2})");
  EXPECT_NE(refusal().find("belongs to two tokens"), std::string::npos);
  folder_.write("added_tokens.json", R"({"<y>": -2})");
  EXPECT_NE(refusal().find("found -2"), std::string::npos);
  folder_.write("added_tokens.json", "[]");
  EXPECT_NE(refusal().find("added_tokens.json"), std::string::npos);
  folder_.write("added_tokens.json", "{}");
  folder_.write("tokenizer_config.json", R"({"added_tokens_decoder": {"9x": {"content": "<x>"}}})");
  EXPECT_NE(refusal().find("9x"), std::string::npos);
  folder_.write("tokenizer_config.json", R"({"tokenizer_class": "Qwen2Tokenizer"})");
  EXPECT_NE(refusal().find("Qwen2Tokenizer"), std::string::npos);
  folder_.write("tokenizer_config.json", R"({"add_bos_token": true, "bos_token": "<none>"})");
  EXPECT_NE(refusal().find("<none>"), std::string::npos);
}

TEST_F(LoadTokenizer, HalfAPair) {
  folder_.write("vocab.json", "{}");
  EXPECT_NE(refusal().find("merges.txt"), std::string::npos);
}

// --- what is not supported is refused by name, what is broken is a data_error ---

struct Breakage {
  const char* name;
  std::function<void(Json&)> apply;
  const char* expected;  // in the message
};

TEST_F(LoadTokenizer, BrokenTokenizerJson) {
  const std::vector<Breakage> breakages = {
      {"version", [](Json& j) { j["version"] = "2.0"; }, "2.0"},
      {"model type", [](Json& j) { j["model"]["type"] = "Unigram"; }, "Unigram"},
      {"no model", [](Json& j) { j.erase("model"); }, "\"model\" is missing"},
      {"model list", [](Json& j) { j["model"] = Json::array(); }, "object"},
      {"model key", [](Json& j) { j["model"]["surprise"] = 1; }, "surprise"},
      {"dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }, "dropout"},
      {"suffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "</w>"},
      {"vocab list", [](Json& j) { j["model"]["vocab"] = Json::array({"a"}); },
       "from tokens to ids"},
      {"no vocab", [](Json& j) { j["model"].erase("vocab"); }, "\"vocab\" is missing"},
      {"text id", [](Json& j) { j["model"]["vocab"]["a"] = "0"; }, "found \"0\""},
      {"float id", [](Json& j) { j["model"]["vocab"]["a"] = 0.5; }, "found 0.5"},
      {"negative id", [](Json& j) { j["model"]["vocab"]["a"] = -1; }, "found -1"},
      {"id 2^31", [](Json& j) { j["model"]["vocab"]["a"] = 2147483648U; }, "found 2147483648"},
      {"id 2^64-1", [](Json& j) { j["model"]["vocab"]["a"] = 18446744073709551615U; },
       "18446744073709551615"},
      {"twice the id", [](Json& j) { j["model"]["vocab"]["b"] = 0; }, "belongs to two tokens"},
      {"unknown merge",
       [](Json& j) {
         j["model"]["merges"][0] = {"a", "x"};
       },
       "\"x\""},
      {"unknown result",
       [](Json& j) {
         j["model"]["merges"][0] = {"b", "a"};
       },
       "\"ba\""},
      {"merge of three",
       [](Json& j) {
         j["model"]["merges"][0] = {"a", "b", "b"};
       },
       "merge"},
      {"merge text", [](Json& j) { j["model"]["merges"][0] = "a b b"; }, "one space"},
      {"merge number", [](Json& j) { j["model"]["merges"][0] = 7; }, "found 7"},
      {"merges object", [](Json& j) { j["model"]["merges"] = Json::object(); }, "an array"},
      {"normalizer",
       [](Json& j) {
         j["normalizer"] = {{"type", "Lowercase"}};
       },
       "Lowercase"},
      {"normalizer regex",
       [](Json& j) {
         j["normalizer"] = {
             {"type", "Replace"}, {"pattern", {{"Regex", " {2,}"}}}, {"content", "x"}};
       },
       " {2,}"},
      {"empty pattern",
       [](Json& j) {
         j["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}};
       },
       "not be empty"},
      {"no type", [](Json& j) { j["normalizer"] = Json::object(); }, "\"type\" is missing"},
      {"pre-tokenizer", [](Json& j) { j["pre_tokenizer"]["type"] = "BertPreTokenizer"; },
       "BertPreTokenizer"},
      {"nested",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Sequence"},
                               {"pretokenizers", {{{"type", "UnicodeScripts"}}}}};
       },
       "UnicodeScripts"},
      {"regex",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Split"},
                               {"pattern", {{"Regex", "\\d+"}}},
                               {"behavior", "Isolated"},
                               {"invert", false}};
       },
       "\\d+"},
      {"scheme",
       [](Json& j) {
         j["pre_tokenizer"] = {
             {"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}};
       },
       "last"},
      {"replacement",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "__"}};
       },
       "one character"},
      {"post-processor", [](Json& j) { j["post_processor"]["type"] = "RobertaProcessing"; },
       "RobertaProcessing"},
      {"template id", [](Json& j) { j["post_processor"]["special_tokens"]["<s>"]["ids"] = {77}; },
       "77"},
      {"template name", [](Json& j) { j["post_processor"]["special_tokens"] = Json::object(); },
       "<s>"},
      {"template without text", [](Json& j) { j["post_processor"]["single"] = Json::array(); },
       "once"},
      {"decoder", [](Json& j) { j["decoder"]["type"] = "CTC"; }, "CTC"},
      {"decoder order",
       [](Json& j) {
         j["decoder"] = {{"type", "Sequence"},
                         {"decoders", {{{"type", "Fuse"}}, {{"type", "ByteFallback"}}}}};
       },
       "ByteFallback"},
      {"endless strip",
       [](Json& j) {
         j["decoder"] = {{"type", "Strip"}, {"content", " "}, {"start", 0}, {"stop", 4000000000U}};
       },
       "stop"},
      {"added list", [](Json& j) { j["added_tokens"] = "x"; }, "an array"},
      {"added id", [](Json& j) { j["added_tokens"][0]["id"] = 4294967296; }, "4294967296"},
      {"added content", [](Json& j) { j["added_tokens"][0]["content"] = 3; }, "content"},
      {"added id taken", [](Json& j) { j["added_tokens"][0]["id"] = 0; }, "belongs to two tokens"},
      {"added twice",
       [](Json& j) {
         j["added_tokens"].push_back(j["added_tokens"][0]);
         j["added_tokens"][1]["id"] = 5;
       },
       "two ids"},
      {"added flag", [](Json& j) { j["added_tokens"][0]["special"] = "yes"; }, "special"},
  };
  for (const Breakage& breakage : breakages) {
    Json json = small();
    breakage.apply(json);
    const std::string message = refusal_of(json);
    EXPECT_NE(message.find(breakage.expected), std::string::npos)
        << breakage.name << ": " << message;
  }
}

TEST_F(LoadTokenizer, HugeIdsCostNothing) {
  Json json = small();
  json["model"]["vocab"]["b"] = 2147483646;
  json["added_tokens"][0]["id"] = 2147483647;
  json["post_processor"] = nullptr;
  folder_.write("tokenizer.json", json.dump());
  const auto tokenizer = load();
  EXPECT_EQ(tokenizer->vocab_size(), std::int64_t{1} << 31);
  EXPECT_EQ(tokenizer->encode("b<s>"), (Ids{2147483646, 2147483647}));
}

TEST_F(LoadTokenizer, TruncatedAnywhere) {
  const std::string text = small().dump();
  for (std::size_t size = 0; size < text.size(); ++size) {
    folder_.write("tokenizer.json", text.substr(0, size));
    ASSERT_NE(refusal(), "loaded") << size;
  }
}

TEST_F(LoadTokenizer, FlippedBytesNeverCrash) {
  const std::string text = small().dump();
  std::mt19937 random(17);
  for (int i = 0; i < 1500; ++i) {
    std::string broken = text;
    for (int flips = 0; flips < 3; ++flips)
      broken[random() % broken.size()] = "{}[]\",:0123456789-a\x80"[random() % 20];
    folder_.write("tokenizer.json", broken);
    if (refusal() == "loaded") load()->decode_bytes(load()->encode("ab <s> ab"));
  }
}

}  // namespace
}  // namespace stagecoach
