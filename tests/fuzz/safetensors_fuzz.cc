#include "checkpoint/safetensors/safetensors.h"
#include "fuzz_input.h"

using namespace stagecoach;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::check(data, size, [](std::string_view bytes) {
    const fuzz::MemoryFile file(bytes);
    const SafetensorsFile opened(file.path());
    for (const auto& [name, entry] : opened.tensors())
      STAGECOACH_CHECK(entry.offset >= 0 && entry.bytes >= 0 &&
                       entry.bytes <= static_cast<std::int64_t>(bytes.size()) - entry.offset);
  });
}
