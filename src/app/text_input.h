// Prompts and texts from flags, files and stdin.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "store/manifest.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace stagecoach {

// All bytes of a file, `-` being stdin. Throws data_error on invalid UTF-8.
std::string read_text(const std::string& file);
// One prompt a line, without \n or \r\n; an empty line is an empty prompt.
std::vector<std::string> read_prompts(const std::string& file);
// "1 2 3", separated by blanks of any kind. Throws usage_error or, for a file, data_error.
std::vector<TokenId> parse_ids(const std::string& text, const std::string& where);

// The tokenizer of a store or of a Hugging Face directory. Throws data_error saying what to do when
// it has none.
std::unique_ptr<Tokenizer> require_tokenizer(const std::filesystem::path& source);
std::unique_ptr<Tokenizer> store_tokenizer(
    const std::filesystem::path& store);  // null when there is none

// The chat template of a store. Throws data_error when it has none, or none that is known.
ChatTemplate store_chat_template(const std::filesystem::path& store);

// Throws usage_error for a text so long that no tokenizer could fit it into the model's context:
// encoding it first would take the time and memory of the whole text.
void check_text_length(std::string_view text, const ModelSpec& spec, const std::string& what);

// Throws usage_error for ids outside the vocabulary, no tokens at all, or more than the context.
void check_tokens(const std::vector<TokenId>& ids, const ModelSpec& spec, const std::string& what);

}  // namespace stagecoach
