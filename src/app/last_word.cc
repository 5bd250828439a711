#include "app/last_word.h"

#include <chrono>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "app/output.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"

namespace stagecoach {
namespace {

std::string file;

}  // namespace

void find_last_word_file(int argc, const char* const* argv) {
  constexpr std::string_view kFlag = "--done-file=";
  for (int i = 1; i < argc; ++i)
    if (const std::string_view word = argv[i]; word.starts_with(kFlag))
      file = word.substr(kFlag.size());
}

bool is_worth_a_last_word(int code) {
  return !file.empty() && code < static_cast<int>(ErrorKind::kPeerLost);
}

void leave_last_word(int code) {
  if (!is_worth_a_last_word(code)) return;
  const std::string name = code == 0 ? file : fmt::format("{}.{}", file, code);
  write_file_atomically(name, fmt::format("{}\n", printed_bytes()));
}

void leave_abort_word(int code) try {
  if (!is_worth_a_last_word(code) || code == static_cast<int>(ErrorKind::kInternal)) return;
  // By another thread: the disk may be what fails, and nobody may wait for it.
  const auto written = std::make_shared<std::promise<void>>();
  std::future<void> done = written->get_future();
  std::thread([written, name = fmt::format("{}.abort.{}", file, code)] {
    std::ofstream(name).put('\n');
    written->set_value();
  }).detach();
  done.wait_for(std::chrono::seconds(1));
} catch (const std::exception& exception) {  // no thread: the error matters more
  spdlog::debug("no word of the abort: {}", exception.what());
}

}  // namespace stagecoach
