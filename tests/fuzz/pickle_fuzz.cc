#include "checkpoint/pytorch/torch_tensor.h"
#include "checkpoint/pytorch/unpickler.h"
#include "fuzz_input.h"

using namespace stagecoach;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::check(data, size, [](std::string_view bytes) {
    const Pickle pickle = unpickle(bytes, {.where = "input", .callables = torch_callables()});
    STAGECOACH_CHECK(pickle.bytes <= bytes.size());
    for (const PickleNode& node : pickle.nodes)
      for (const std::string_view text : {node.text, node.name})
        STAGECOACH_CHECK(text.empty() || (text.data() >= bytes.data() &&
                                          text.end() <= bytes.data() + pickle.bytes));
    for (const PickleNode* persistent : pickle.persistent) parse_storage(*persistent, "input");
  });
}
