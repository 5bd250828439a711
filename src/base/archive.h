// Handshakes, plans and control messages as cereal archives behind a magic, a version and a length
// limit. Weights and hidden states never go through here.
#pragma once

#include <bit>
#include <cereal/cereal.hpp>
#include <cereal/types/optional.hpp>
#include <cereal/types/string.hpp>
#include <cereal/types/utility.hpp>
#include <cereal/types/vector.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/error.h"

namespace stagecoach {

inline constexpr std::uint32_t kArchiveVersion = 1;
// No control message is anywhere near this long; a longer one is not ours.
inline constexpr std::size_t kMaxArchiveBytes = std::size_t{1} << 28;

static_assert(std::endian::native == std::endian::little,
              "archives hold values as little-endian machines do");

// cereal's portable binary archive believes the lengths it reads: after one flipped bit it fills
// gigabytes with zeros before it notices that the bytes for them are missing. This pair holds the
// same plain values, and its reader compares with what is left before anything is allocated.
class ArchiveWriter : public cereal::OutputArchive<ArchiveWriter, cereal::AllowEmptyClassElision> {
 public:
  ArchiveWriter() : OutputArchive(this) {}

  void write(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), bytes, bytes + size);
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class ArchiveReader : public cereal::InputArchive<ArchiveReader, cereal::AllowEmptyClassElision> {
 public:
  explicit ArchiveReader(std::span<const std::byte> bytes) : InputArchive(this), rest_(bytes) {}

  void read(void* data, std::size_t size) {
    if (size > rest_.size()) throw cereal::Exception("it is cut off");
    if (size > 0) std::memcpy(data, rest_.data(), size);
    rest_ = rest_.subspan(size);
  }
  std::size_t remaining() const { return rest_.size(); }

 private:
  std::span<const std::byte> rest_;
};

// What cereal looks for, by argument-dependent lookup on the archive.
template <typename T>
std::enable_if_t<std::is_arithmetic_v<T>> save(ArchiveWriter& archive, const T& value) {
  archive.write(&value, sizeof(value));
}

template <typename T>
std::enable_if_t<std::is_arithmetic_v<T>> load(ArchiveReader& archive, T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    // A bool that is neither must not come to exist.
    std::uint8_t byte = 0;
    archive.read(&byte, 1);
    if (byte > 1) throw cereal::Exception("a flag is neither 0 nor 1");
    value = byte == 1;
  } else {
    archive.read(&value, sizeof(value));
  }
}

template <typename T>
void save(ArchiveWriter& archive, const cereal::SizeTag<T>& tag) {
  archive(static_cast<std::uint64_t>(tag.size));
}

template <typename T>
void load(ArchiveReader& archive, cereal::SizeTag<T>& tag) {
  archive(tag.size);
  // An element takes a byte at least.
  if (tag.size > archive.remaining()) throw cereal::Exception("impossible length");
}

template <typename T>
void save(ArchiveWriter& archive, const cereal::BinaryData<T>& data) {
  archive.write(data.data, static_cast<std::size_t>(data.size));
}

template <typename T>
void load(ArchiveReader& archive, cereal::BinaryData<T>& data) {
  archive.read(data.data, static_cast<std::size_t>(data.size));
}

// Names are for text archives; cereal's own types bring some all the same.
template <typename T>
void save(ArchiveWriter& archive, const cereal::NameValuePair<T>& named) {
  archive(named.value);
}

template <typename T>
void load(ArchiveReader& archive, cereal::NameValuePair<T>& named) {
  archive(named.value);
}

// Structs in memory can be far larger than their archived form, so a list of them grows as they
// arrive instead of by its announced length.
template <typename T>
std::enable_if_t<!std::is_arithmetic_v<T>> load(ArchiveReader& archive, std::vector<T>& values) {
  std::uint64_t size = 0;
  archive(cereal::make_size_tag(size));
  values.clear();
  for (std::uint64_t i = 0; i < size; ++i) archive(values.emplace_back());
}

// `magic` tells message kinds apart, as four characters: archive_magic("HELO").
constexpr std::uint32_t archive_magic(const char (&text)[5]) {
  std::uint32_t magic = 0;
  for (int i = 3; i >= 0; --i) magic = magic << 8 | static_cast<unsigned char>(text[i]);
  return magic;
}

template <typename T>
std::vector<std::byte> to_archive(std::uint32_t magic, const T& value) {
  ArchiveWriter archive;
  archive(magic, kArchiveVersion, value);
  return archive.take();
}

// Throws data_error on another magic, version, or a truncated or overlong message.
template <typename T>
T from_archive(std::uint32_t magic, std::span<const std::byte> bytes, const char* what) {
  if (bytes.size() > kMaxArchiveBytes)
    throw data_error(
        fmt::format("{}: {} bytes are more than such a message can have", what, bytes.size()));
  try {
    ArchiveReader archive(bytes);
    std::uint32_t found_magic = 0, found_version = 0;
    archive(found_magic, found_version);
    if (found_magic != magic || found_version != kArchiveVersion)
      throw data_error(
          fmt::format("{}: expected message {:08x} version {}, found {:08x} version {}", what,
                      magic, kArchiveVersion, found_magic, found_version),
          "all ranks must run the same Stagecoach");
    T value;
    archive(value);
    if (archive.remaining() > 0)
      throw data_error(
          fmt::format("{}: broken message: {} bytes follow its end", what, archive.remaining()));
    return value;
  } catch (const cereal::Exception& e) {
    throw data_error(fmt::format("{}: broken message: {}", what, e.what()));
  }
}

}  // namespace stagecoach

CEREAL_SETUP_ARCHIVE_TRAITS(stagecoach::ArchiveReader, stagecoach::ArchiveWriter)
