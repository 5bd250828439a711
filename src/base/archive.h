// Handshakes, plans and control messages as cereal archives behind a magic, a version and a length
// limit. Weights and hidden states never go through here.
#pragma once

#include <cereal/archives/portable_binary.hpp>
#include <cereal/types/optional.hpp>
#include <cereal/types/string.hpp>
#include <cereal/types/utility.hpp>
#include <cereal/types/vector.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"

namespace stagecoach {

inline constexpr std::uint32_t kArchiveVersion = 1;
// No control message is anywhere near this long; a longer one is not ours.
inline constexpr std::size_t kMaxArchiveBytes = std::size_t{1} << 28;

// `magic` tells message kinds apart, as four characters: archive_magic("HELO").
constexpr std::uint32_t archive_magic(const char (&text)[5]) {
  std::uint32_t magic = 0;
  for (int i = 3; i >= 0; --i) magic = magic << 8 | static_cast<unsigned char>(text[i]);
  return magic;
}

template <typename T>
std::vector<std::byte> to_archive(std::uint32_t magic, const T& value) {
  std::ostringstream stream;
  {
    cereal::PortableBinaryOutputArchive archive(stream);
    archive(magic, kArchiveVersion, value);
  }
  const std::string text = std::move(stream).str();
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

// Throws data_error on another magic, version, or a truncated or overlong message.
template <typename T>
T from_archive(std::uint32_t magic, std::span<const std::byte> bytes, const char* what) {
  if (bytes.size() > kMaxArchiveBytes)
    throw data_error(fmt::format("{}: {} bytes are more than such a message can have", what, bytes.size()));
  std::istringstream stream(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  try {
    cereal::PortableBinaryInputArchive archive(stream);
    std::uint32_t found_magic = 0, found_version = 0;
    archive(found_magic, found_version);
    if (found_magic != magic || found_version != kArchiveVersion)
      throw data_error(fmt::format("{}: expected message {:08x} version {}, found {:08x} version {}", what, magic,
                                   kArchiveVersion, found_magic, found_version),
                       "all ranks must run the same Stagecoach");
    T value;
    archive(value);
    return value;
  } catch (const cereal::Exception& e) {
    throw data_error(fmt::format("{}: broken message: {}", what, e.what()));
  } catch (const std::length_error&) {
    throw data_error(fmt::format("{}: broken message: impossible length", what));
  } catch (const std::bad_alloc&) {
    throw data_error(fmt::format("{}: broken message: impossible length", what));
  }
}

}  // namespace stagecoach
