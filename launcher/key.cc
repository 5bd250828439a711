#include "launcher/key.h"

#include <sys/random.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "base/host.h"

namespace stagecoach {
namespace {

constexpr const char* kMakeOne = "stagecoach agent --new-key FILE makes one";

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

Key Key::random() {
  Key key;
  if (::getrandom(key.bytes.data(), key.bytes.size(), 0) != static_cast<ssize_t>(key.bytes.size()))
    throw resource_error("the system gives no random numbers for a key");
  return key;
}

std::string Key::text() const {
  std::string text;
  for (const std::uint8_t byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

Key parse_key(const std::string& text, const std::string& where) {
  std::string digits = text;
  while (!digits.empty() && (digits.back() == '\n' || digits.back() == '\r')) digits.pop_back();
  // The text itself is secret: no message quotes it.
  const bool well_formed =
      digits.size() == 2 * kKeyBytes &&
      std::all_of(digits.begin(), digits.end(), [](char c) { return digit(c) >= 0; });
  if (!well_formed)
    throw data_error(
        fmt::format("{}: expected a key, {} hexadecimal digits in a line", where, 2 * kKeyBytes),
        kMakeOne);
  Key key;
  for (std::size_t i = 0; i < kKeyBytes; ++i)
    key.bytes[i] = static_cast<std::uint8_t>(16 * digit(digits[2 * i]) + digit(digits[2 * i + 1]));
  return key;
}

Key read_key_file(const std::filesystem::path& file) {
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0)
    throw data_error(fmt::format("there is no key {}", file.string()), kMakeOne);
  constexpr mode_t kOthers = S_IRWXG | S_IRWXO;
  if ((status.st_mode & kOthers) != 0)
    throw resource_error(
        fmt::format("{}: others than its owner may read this key (mode {:o})", file.string(),
                    status.st_mode & 0777),
        fmt::format("chmod 600 {}; and a new key on every PC if somebody may have read it",
                    file.string()));
  return parse_key(read_text_file(file, 4096), file.string());
}

std::filesystem::path default_key_file() {
  const std::filesystem::path folder = user_folder("XDG_CONFIG_HOME", ".config");
  return folder.empty() ? folder : folder / "key";
}

}  // namespace stagecoach
