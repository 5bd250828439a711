#include "checkpoint/gguf/gguf.h"
#include "checkpoint/gguf/gguf_config.h"
#include "fuzz_input.h"

using namespace stagecoach;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::check(data, size, [](std::string_view bytes) {
    const fuzz::MemoryFile file(bytes);
    GgufCheckpoint checkpoint = read_gguf(file.path());
    for (const auto& [name, tensor] : checkpoint.set.tensors)
      STAGECOACH_CHECK(tensor.offset >= 0 && tensor.bytes >= 0 &&
                       tensor.bytes <= tensor.file->size() - tensor.offset);
    const GgufTokenizer tokenizer = read_gguf_tokenizer(checkpoint.metadata);
    resolve_gguf(checkpoint.metadata, tokenizer, checkpoint.set);
  });
}
