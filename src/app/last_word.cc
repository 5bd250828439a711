#include "app/last_word.h"

#include <string>
#include <string_view>

#include "app/output.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"

namespace stagecoach {
namespace {

std::string file;

bool is_the_jobs_own(int code) {
  return code < static_cast<int>(ErrorKind::kPeerLost);
}

}  // namespace

void find_last_word_file(int argc, const char* const* argv) {
  constexpr std::string_view kFlag = "--done-file=";
  for (int i = 1; i < argc; ++i)
    if (const std::string_view word = argv[i]; word.starts_with(kFlag))
      file = word.substr(kFlag.size());
}

bool has_last_word_file() {
  return !file.empty();
}

void leave_last_word(int code) {
  if (file.empty() || !is_the_jobs_own(code)) return;
  const std::string name = code == 0 ? file : fmt::format("{}.{}", file, code);
  write_file_atomically(name, fmt::format("{}\n", printed_bytes()));
}

void try_to_leave_last_word(int code) try {
  leave_last_word(code);
} catch (const std::exception& exception) {
  spdlog::debug("no last word: {}", exception.what());
}

}  // namespace stagecoach
