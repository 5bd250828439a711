#include "fuzz_input.h"
#include "support_temporary_folder.h"
#include "text/tokenizer.h"

using namespace stagecoach;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::check(data, size, [](std::string_view bytes) {
    static const TemporaryFolder folder;
    folder.write("tokenizer.json", bytes);
    const auto tokenizer = load_tokenizer(folder.path());
    if (tokenizer == nullptr) return;
    const std::vector<TokenId> ids = tokenizer->encode("It's 12345\n\n  caf\u00e9 <s>\U0001f600 ");
    for (const TokenId id : ids) STAGECOACH_CHECK(id >= 0 && id < tokenizer->vocab_size());
    tokenizer->decode_bytes(ids, false);
  });
}
