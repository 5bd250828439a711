#include "tokenizer_input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return stagecoach::fuzz::check_tokenizer("tokenizer.model", data, size);
}
