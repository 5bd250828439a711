#include "launcher/relay.h"

#include <algorithm>

namespace stagecoach {
namespace {

// "generating  42 %  12 tokens of 20 tokens  3 tokens/s  ETA 4 s"
bool is_progress(std::string_view line) {
  return line.find(" %  ") != std::string_view::npos &&
         line.find("  ETA ") != std::string_view::npos && line.ends_with(" s");
}

bool is_frame(std::string_view line) {
  return line.size() >= 60 &&
         std::all_of(line.begin(), line.end(), [](char c) { return c == '-' || c == '='; });
}

bool is_of_open_mpi(std::string_view line) {
  constexpr std::string_view kNames[]{"mpirun",  "ORTE ", "[prterun",
                                      "prterun", "PRTE ", "MPI_ABORT"};
  // "[pc-a:12345] …"
  if (const std::size_t end = line.find(']');
      line.starts_with("[") && end != std::string_view::npos) {
    const std::string_view place = line.substr(1, end - 1);
    const std::size_t colon = place.rfind(':');
    if (colon != std::string_view::npos && colon + 1 < place.size() &&
        place.substr(colon + 1).find_first_not_of("0123456789") == std::string_view::npos)
      return true;
  }
  return std::any_of(std::begin(kNames), std::end(kNames),
                     [&](std::string_view name) { return line.starts_with(name); });
}

// Open MPI 5 ends its messages with a zero byte, which then stands before what comes next: on
// either side of one are lines of their own.
template <typename Take>
void for_each_between_zeros(const std::string& text, const Take& take) {
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\0', begin), text.size());
    if (end > begin) take(text.substr(begin, end - begin));
    begin = end + 1;
  }
}

}  // namespace

void OutputRelay::restart() {
  to_skip_ = passed_;
  taken_ = of_open_mpi_ = 0;
  line_.clear();
  held_.clear();
}

void OutputRelay::take(std::string_view data) {
  if (!lines_) return take_amid_messages(data);
  for (const char c : data) {
    line_ += c;
    if (c != '\n') continue;
    for_each_between_zeros(line_, [this](std::string part) { take_line(std::move(part)); });
    line_.clear();
  }
}

// A message of Open MPI 5 has a zero byte before it or none: only with one it is surely no text.
void OutputRelay::take_amid_messages(std::string_view data) {
  std::string text;
  for (const char c : data) {
    if (held_.empty() && c != '\0') {
      text += c;
      continue;
    }
    held_ += c;
    const std::size_t begin = held_.find_first_not_of('\0');
    if (begin == std::string::npos || (held_[begin] == '[' && c != '\n')) continue;
    const std::string message = held_.substr(begin);
    if (is_of_open_mpi(message)) {
      other_(message);
    } else {
      text += held_;
    }
    held_.clear();
  }
  if (!text.empty()) take_text(text);
}

void OutputRelay::take_text(std::string_view data) {
  for (const char c : data) {
    line_ += c;
    if (c != '\n') continue;
    if (is_of_open_mpi(line_)) of_open_mpi_ += static_cast<std::int64_t>(line_.size());
    line_.clear();
  }
  taken_ += static_cast<std::int64_t>(data.size());
  const std::size_t known = std::min(to_skip_, data.size());
  to_skip_ -= known;
  data.remove_prefix(known);
  passed_ += data.size();
  if (!data.empty()) write_(data);
}

void OutputRelay::take_line(std::string line) {
  if (!line.ends_with('\n')) line += '\n';
  if (!line.starts_with('{')) return other_(line);
  taken_ += static_cast<std::int64_t>(line.size());
  if (to_skip_ > 0) {
    --to_skip_;
  } else {
    ++passed_;
    write_(line);
  }
}

void MessageRelay::take(std::string_view data) {
  for (const char c : data) {
    if (c != '\n') {
      line_ += c;
      continue;
    }
    line(line_);
    line_.clear();
  }
}

void MessageRelay::take_line(std::string_view text) {
  if (text.ends_with('\n')) text.remove_suffix(1);
  line(std::string(text));
}

void MessageRelay::begin() {
  saw_error_ = false;
  loss_.clear();
}

void MessageRelay::end(bool explained) {
  if (!line_.empty()) line(line_);
  if (progress_shown_) write_("\n");
  if (!explained && !held_.empty()) write_(held_);
  line_.clear();
  held_.clear();
  in_frame_ = progress_shown_ = false;
}

void MessageRelay::line(const std::string& text) {
  if (text.find('\0') != std::string::npos)
    return for_each_between_zeros(text, [this](const std::string& part) { line(part); });
  saw_error_ = saw_error_ || text.starts_with("stagecoach: ");
  if (is_frame(text)) {
    in_frame_ = !in_frame_;
    hold(text);
  } else if (in_frame_ || is_of_open_mpi(text)) {
    hold(text);
  } else {
    write(text);
  }
}

// Version 4.1 ends a job with the code of the rank that was killed. Version 5 may have a rank abort
// that missed it, with a code of its own, and after the loss of a host with 0.
void MessageRelay::hold(const std::string& text) {
  constexpr std::string_view kLosses[]{"Socket closed", "has lost communication",
                                       "has unexpectedly disconnected"};
  constexpr std::string_view kPeer = "Peer host:";
  held_ += text + "\n";
  if (loss_.empty() &&
      std::any_of(std::begin(kLosses), std::end(kLosses),
                  [&](std::string_view words) { return text.find(words) != std::string::npos; }))
    loss_ = "Open MPI has lost a rank";
  if (const std::size_t at = text.find(kPeer); at != std::string::npos && !loss_.empty()) {
    const std::size_t name = text.find_first_not_of(' ', at + kPeer.size());
    if (name != std::string::npos) loss_ = "Open MPI has lost a rank on " + text.substr(name);
  }
}

void MessageRelay::write(const std::string& text) {
  if (terminal_ && is_progress(text)) {
    write_("\r" + text + "\033[K");
    progress_shown_ = true;
    return;
  }
  write_((progress_shown_ ? "\n" : "") + text + "\n");
  progress_shown_ = false;
}

}  // namespace stagecoach
