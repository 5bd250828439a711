#include "checkpoint/import.h"
#include "fuzz_input.h"

using namespace stagecoach;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::check(data, size, [](std::string_view bytes) {
    const Json config = parse_json(bytes, "input");
    resolve_config(config, &config, "input");  // generation_config.json is as foreign
  });
}
