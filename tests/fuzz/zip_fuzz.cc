#include "checkpoint/pytorch/zip_archive.h"
#include "fuzz_input.h"

using namespace stagecoach;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return fuzz::check(data, size, [](std::string_view bytes) {
    const fuzz::MemoryFile memory(bytes);
    const File file = File::open_read(memory.path());
    std::int64_t total = 0;
    for (const auto& [name, member] : read_zip_directory(file)) {
      STAGECOACH_CHECK(member.offset >= 0 && member.bytes >= 0 &&
                       member.bytes <= file.size() - member.offset);
      total += member.bytes;
    }
    STAGECOACH_CHECK(total <= file.size());  // members do not overlap
  });
}
