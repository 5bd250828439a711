// What the tokenizer targets do with the one file that they feed.
#pragma once

#include <string>

#include "fuzz_input.h"
#include "text/tokenizer.h"

namespace stagecoach::fuzz {

inline int check_tokenizer(const char* file, const std::uint8_t* data, std::size_t size) {
  return check(data, size, [file](std::string_view bytes) {
    const auto tokenizer = load_tokenizer({{file, std::string(bytes)}}, "input");
    if (tokenizer == nullptr) return;
    const std::vector<TokenId> ids = tokenizer->encode("It's 12345\n\n  caf\u00e9 <s>\U0001f600 ");
    for (const TokenId id : ids) STAGECOACH_CHECK(id >= 0 && id < tokenizer->vocab_size());
    tokenizer->decode_bytes(ids, false);
  });
}

}  // namespace stagecoach::fuzz
