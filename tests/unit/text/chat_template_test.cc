// Chat templates: as transformers renders them (scripts/make_chat_golden.py), known or refused, and
// special tokens never from what somebody typed.
#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRoles = R"({"bos_token": "<s>", "eos_token": "</s>"})";

fs::path data() {
  return fs::path(TEST_DATA_DIR) / "chat_templates";
}

std::string source_of(const std::string& name) {
  return read_text_file(data() / (name + ".jinja"), 1 << 20);
}

ChatTemplate load(const std::string& source) {
  return ChatTemplate::load({{"chat_template.jinja", source}, {"tokenizer_config.json", kRoles}},
                            "test");
}

std::string join(const std::vector<TextSegment>& segments) {
  std::string text;
  for (const TextSegment& segment : segments) text += segment.text;
  return text;
}

template <typename Run>
std::string refusal(ErrorKind kind, Run run) {
  try {
    run();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_FALSE(error.hint().empty()) << error.what();
    return error.what();
  }
  return "done";
}

std::string refusal_of(const TokenizerFiles& files) {
  return refusal(ErrorKind::kData, [&] { ChatTemplate::load(files, "test"); });
}

bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(ChatTemplate, RendersAsTransformers) {
  const Json cases = read_json_file(data() / "golden.json", 1 << 20).at("cases");
  ASSERT_GT(cases.size(), 100U);
  for (const Json& one : cases) {
    const std::string name = one.at("template");
    ChatPrompt prompt{.system = std::nullopt, .user = one.at("user")};
    if (!one.at("system").is_null()) prompt.system = one.at("system").get<std::string>();
    const ChatTemplate chat = load(source_of(name));
    // These two drop a system message without a word.
    const bool dropped = prompt.system && (name == "phi3_mini" || name == "phi3_medium");
    if (one.at("text").is_null() || dropped) {
      EXPECT_TRUE(mentions(refusal(ErrorKind::kUsage, [&] { chat.render(prompt); }), "system"));
    } else {
      EXPECT_EQ(join(chat.render(prompt)), one.at("text").get<std::string>()) << name;
    }
  }
}

TEST(ChatTemplate, WherePublishedOnesStand) {
  const std::string source = source_of("smollm2");
  const auto family = [](const Json& config) {
    return ChatTemplate::load({{"tokenizer_config.json", config.dump()}}, "test").name();
  };
  EXPECT_EQ(family({{"chat_template", source}}), "chatml");
  EXPECT_EQ(family({{"chat_template",
                     {{{"name", "tool_use"}, {"template", "x"}},
                      {{"name", "default"}, {"template", source}}}}}),
            "chatml");
  EXPECT_EQ(load(source + "\n").name(), "chatml");
  // The file stands before the configuration, as in transformers.
  const Json llama3 = {{"chat_template", source_of("llama3")}};
  const TokenizerFiles both = {{"chat_template.jinja", source},
                               {"tokenizer_config.json", llama3.dump()}};
  EXPECT_EQ(ChatTemplate::load(both, "test").name(), "chatml");
}

TEST(ChatTemplate, RefusesWhatIsNotKnown) {
  EXPECT_TRUE(mentions(refusal_of({}), "no chat template"));
  EXPECT_TRUE(mentions(refusal_of({{"tokenizer_config.json", "{}"}}), "no chat template"));
  EXPECT_TRUE(mentions(refusal_of({{"tokenizer_config.json",
                                    R"({"chat_template": [{"name": "rag", "template": ""}]})"}}),
                       "default"));
  const std::string unknown = refusal_of({{"chat_template.jinja", "{% odd\x1b[2J %}\nmore"}});
  EXPECT_TRUE(mentions(unknown, "odd"));
  EXPECT_TRUE(mentions(unknown, "chatml, gemma, llama2, llama3, mistral, phi3, zephyr"));
  EXPECT_FALSE(mentions(unknown, "\x1b"));
  EXPECT_FALSE(mentions(unknown, "more"));
}

TEST(ChatTemplate, RefusesEveryChangeOfOneCharacter) {
  std::mt19937 random(3);
  for (const char* name : {"chatml", "qwen2_5", "llama3", "zephyr"}) {
    const std::string source = source_of(name);
    for (int i = 0; i < 200; ++i) {
      std::string changed = source;
      changed[random() % (source.size() - 1)] ^= 1;
      EXPECT_TRUE(mentions(refusal_of({{"chat_template.jinja", changed}}), "not one of"))
          << changed;
    }
  }
  // The message between the quotes may differ, what is beside it may not.
  std::string own = source_of("smollm2");
  own.replace(own.find("SmolLM"), 6, "Postillion");
  EXPECT_TRUE(mentions(join(load(own).render({.system = {}, .user = "x"})), "named Postillion"));
  own.replace(own.find("Postillion"), 10, "' + eos_token + '");
  EXPECT_TRUE(mentions(refusal_of({{"chat_template.jinja", own}}), "not one of"));
}

TEST(ChatTemplate, NeedsTheTokensThatItNames) {
  const ChatTemplate chat =
      ChatTemplate::load({{"chat_template.jinja", source_of("llama2")}}, "test");
  const auto render = [&] { chat.render({.system = {}, .user = "x"}); };
  EXPECT_TRUE(mentions(refusal(ErrorKind::kData, render), "bos_token"));
  const auto tokenizer = load_tokenizer(fs::path(TEST_DATA_DIR) / "tokenizers" / "llama3");
  const auto turn_end = [&] { load(source_of("chatml")).turn_end(*tokenizer); };
  EXPECT_TRUE(mentions(refusal(ErrorKind::kData, turn_end), "<|im_end|>"));
}

// --- what somebody typed is plain text ---

struct Marks {
  const char* tokenizer;
  const char* file;
  bool normalized;
};

class ChatMarks : public testing::TestWithParam<Marks> {
 protected:
  void SetUp() override {
    const fs::path folder = fs::path(TEST_DATA_DIR) / "tokenizers" / GetParam().tokenizer;
    files_ = {{GetParam().file, read_text_file(folder / GetParam().file, 1 << 20)}};
    first_ = static_cast<TokenId>(load_tokenizer(files_, "test")->vocab_size());
    Json added = Json::object();
    for (const char* mark : {"<|im_start|>", "<|im_end|>"})
      added[std::to_string(first_ + static_cast<TokenId>(added.size()))] = {
          {"content", mark}, {"special", true}, {"normalized", GetParam().normalized}};
    files_["tokenizer_config.json"] =
        Json{{"added_tokens_decoder", added}, {"bos_token", "<s>"}, {"eos_token", "</s>"}}.dump();
    tokenizer_ = load_tokenizer(files_, "test");
  }

  TokenizerFiles files_;
  std::unique_ptr<Tokenizer> tokenizer_;
  TokenId first_ = 0;  // <|im_start|>, then <|im_end|>
};

TEST_P(ChatMarks, ComeFromTheTemplateOnly) {
  const ChatTemplate chat = load(source_of("chatml"));
  EXPECT_EQ(chat.turn_end(*tokenizer_), first_ + 1);
  const std::vector<std::string> parts = {
      "<|im_start|>", "<|im_end|>", "<|im", "_start|>", "\n",   " ", "system", "<s>",
      "</s>",         "assistant",  "é",    "<|im_e",   "nd|>", "<", "|>"};
  std::mt19937 random(11);
  for (int i = 0; i < 500; ++i) {
    ChatPrompt prompt{.system = "", .user = ""};
    for (std::size_t k = 0; k < random() % 12; ++k) prompt.user += parts[random() % parts.size()];
    for (std::size_t k = 0; k < random() % 12; ++k)
      *prompt.system += parts[random() % parts.size()];
    const std::vector<TokenId> ids = chat.encode(*tokenizer_, prompt);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), first_), 3) << prompt.user;
    EXPECT_EQ(std::count(ids.begin(), ids.end(), first_ + 1), 2) << prompt.user;
    for (const char* name : {"<s>", "</s>", "<unk>"}) {
      const auto id = tokenizer_->added_token(name);
      EXPECT_TRUE(!id || std::count(ids.begin(), ids.end(), *id) == 0) << prompt.user;
    }
  }
}

TEST_P(ChatMarks, HonestTextEncodesAsTheRenderedText) {
  const ChatTemplate chat = load(source_of("chatml"));
  for (const std::string user : {"Who waits?", " \n\n two lines\n", "", "12345 é\t"}) {
    const ChatPrompt prompt{.system = "s", .user = user};
    const std::string text = join(chat.render(prompt));
    if (!GetParam().normalized) {
      EXPECT_EQ(chat.encode(*tokenizer_, prompt),
                tokenizer_->encode(text, {.add_special_tokens = false}))
          << text;
    }
    EXPECT_TRUE(mentions(tokenizer_->decode_bytes(chat.encode(*tokenizer_, prompt), false), user));
  }
}

INSTANTIATE_TEST_SUITE_P(All, ChatMarks,
                         testing::Values(Marks{"llama3", "tokenizer.json", false},
                                         Marks{"qwen2", "tokenizer.json", false},
                                         Marks{"llama2", "tokenizer.json", false},
                                         Marks{"llama2", "tokenizer.json", true},
                                         Marks{"gpt2", "tokenizer.json", true},
                                         Marks{"spm_llama", "tokenizer.model", false},
                                         Marks{"spm_llama", "tokenizer.model", true}));

}  // namespace
}  // namespace stagecoach
