// A model's chat template: what stands around a system message and a question, so that the model
// answers. Templates are programs in Jinja; here they are recognised, never run: a published one by
// the checksum of its source, so that a changed one is refused rather than rendered wrongly.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace stagecoach {

struct ChatFormat;  // one of the templates known

// One question; the answer comes next.
struct ChatPrompt {
  std::optional<std::string> system;  // none: the template's own, if it has one
  std::string user;
};

class ChatTemplate {
 public:
  // From chat_template.jinja, else tokenizer_config.json's "chat_template" (of a list, "default").
  // `where` names the files' folder in errors. Throws data_error when there is no template, or one
  // that is not known.
  static ChatTemplate load(const TokenizerFiles& files, const std::string& where);

  // As transformers' apply_chat_template renders it with add_generation_prompt. What the template
  // says is markup, what the prompt says is not. Throws usage_error for a system message that the
  // template has no place for.
  std::vector<TextSegment> render(const ChatPrompt& prompt) const;

  // The ids of the rendered text. BOS is there only if the template says it, as transformers has
  // it. What the prompt says is plain text: no id of an added token comes from it.
  std::vector<TokenId> encode(const Tokenizer& tokenizer, const ChatPrompt& prompt) const;

  // The id that ends the model's turn, which config.json's list of end-of-text tokens may lack
  // (base models end texts otherwise than chats). Throws data_error when the tokenizer does not
  // have the template's tokens: everything would be plain text then, and nothing would end a turn.
  TokenId turn_end(const Tokenizer& tokenizer) const;

  const std::string& name() const { return name_; }  // "chatml", "llama3", …

 private:
  std::string name_;
  const ChatFormat* format_ = nullptr;
  std::string default_system_;  // where the template is recognised up to this text
  std::string bos_, eos_;
};

}  // namespace stagecoach
