#include "app/output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

#include "base/byte_size.h"
#include "base/clock.h"
#include "base/error.h"

namespace stagecoach {

namespace {

std::atomic<std::int64_t> all_printed{0};

}  // namespace

std::int64_t printed_bytes() {
  return all_printed;
}

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    throw resource_error(fmt::format("cannot write to stdout: {}", std::strerror(errno)),
                         "look where the output goes: a full disk, or a program that has ended");
  all_printed += static_cast<std::int64_t>(text.size());
}

void print_json_line(const Json& json) {
  print(json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

Error as_error(const std::exception& exception) {
  if (const auto* error = dynamic_cast<const Error*>(&exception)) return *error;
  if (dynamic_cast<const std::bad_alloc*>(&exception) != nullptr)
    return resource_error("out of memory",
                          "use more ranks, a smaller --micro-batch or a smaller weight type");
  if (const auto* system = dynamic_cast<const std::system_error*>(&exception);
      system != nullptr && system->code() == std::errc::resource_unavailable_try_again)
    return resource_error(std::string("cannot start a thread: ") + exception.what(),
                          "a smaller --threads");
  return {ErrorKind::kInternal, std::string("internal error: ") + exception.what(),
          "report this, with the command"};
}

void print_error(const Error& error, const std::string& who) {
  // One write, so that mpirun does not mix it with another rank's.
  std::string text =
      fmt::format("stagecoach: {}{}{}\n", who, who.empty() ? "" : ": ", error.what());
  if (!error.hint().empty()) text += fmt::format("  try: {}\n", error.hint());
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

Progress::Progress(std::string what, ProgressUnit unit, bool enabled)
    : what_(std::move(what)),
      unit_(unit),
      enabled_(enabled),
      terminal_(::isatty(STDERR_FILENO) == 1),
      begin_ns_(now_ns()) {}

Progress::~Progress() {
  if (drawn_ && terminal_) std::fputc('\n', stderr);
}

void Progress::update(std::int64_t done, std::int64_t total) {
  if (!enabled_) return;
  if (begin_done_ < 0) {
    begin_done_ = done;
    if (done > 0 && unit_ != ProgressUnit::kBytes) begin_done_ = 0;  // it took the time since then
  }
  const std::int64_t now = now_ns();
  const std::int64_t interval = terminal_ ? 100'000'000 : 3'000'000'000;
  if (now - (drawn_ ? last_ns_ : begin_ns_) < interval && !(drawn_ && terminal_ && done == total))
    return;
  last_ns_ = now;
  draw(done, total);
}

std::string Progress::amount(double value) const {
  switch (unit_) {
    case ProgressUnit::kBytes:
      return format_bytes(static_cast<std::int64_t>(value));
    case ProgressUnit::kTokens:
      return fmt::format("{:.4g} tokens", value);
    case ProgressUnit::kPasses:
      return fmt::format("{:.4g} passes", value);
  }
  return {};
}

void Progress::draw(std::int64_t done, std::int64_t total) {
  drawn_ = true;
  const double seconds = seconds_since(begin_ns_);
  const double fraction = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
  const double rate = static_cast<double>(done - begin_done_) / seconds;
  const double left = rate > 0 ? static_cast<double>(total - done) / rate : 0;
  const std::string numbers = fmt::format("{:3.0f} %  {} of {}  {}/s  ETA {:.0f} s", fraction * 100,
                                          amount(static_cast<double>(done)),
                                          amount(static_cast<double>(total)), amount(rate), left);
  if (terminal_) {
    constexpr int kWidth = 24;
    const auto filled = static_cast<std::size_t>(fraction * kWidth);
    std::fprintf(stderr, "\r%s [%s%s] %s\033[K", what_.c_str(), std::string(filled, '#').c_str(),
                 std::string(kWidth - filled, '.').c_str(), numbers.c_str());
  } else {
    std::fprintf(stderr, "%s %s\n", what_.c_str(), numbers.c_str());
  }
  std::fflush(stderr);
}

}  // namespace stagecoach
