#include "checkpoint/pytorch/pytorch_file.h"
#include "fuzz_input.h"

using namespace stagecoach;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::check(data, size, [](std::string_view bytes) {
    const fuzz::MemoryFile file(bytes);
    TensorSet set;
    add_pytorch_file(set, file.path());
    for (const auto& [name, tensor] : set.tensors) {
      STAGECOACH_CHECK(tensor.offset >= 0 && tensor.bytes >= 0 &&
                       tensor.bytes <= tensor.file->size() - tensor.offset);
      STAGECOACH_CHECK(tensor.strides.empty() || tensor.strides.size() == tensor.shape.size());
    }
  });
}
