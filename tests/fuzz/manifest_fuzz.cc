#include "fuzz_input.h"
#include "store/manifest.h"

using namespace stagecoach;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::check(data, size, [](std::string_view bytes) {
    const Manifest manifest = manifest_from_json(parse_json(bytes, "input"), "input");
    // What was accepted is written so that it reads back.
    const Json json = to_json(manifest);
    STAGECOACH_CHECK(to_json(manifest_from_json(json, "output")) == json);
  });
}
