// Files with errors that say which file, what was expected and what happened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace stagecoach {

class File {
 public:
  // Throws data_error when a file to read is missing, resource_error when the system refuses.
  static File open_read(const std::filesystem::path& path);
  // For reads past the page cache (O_DIRECT); nullopt where the file system refuses.
  static std::optional<File> open_direct(const std::filesystem::path& path);
  static File create(const std::filesystem::path& path);  // in place of what was there
  // To write into what is there; made if need be.
  static File open_update(const std::filesystem::path& path);

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const std::filesystem::path& path() const { return path_; }
  int descriptor() const { return descriptor_; }
  std::int64_t size() const;

  // Reads exactly destination.size() bytes at `offset`, or throws data_error ("truncated").
  void read_at(std::int64_t offset, std::span<std::byte> destination) const;
  // Writes all of `source` at the end of what was written. A full disk is a resource_error.
  void append(std::span<const std::byte> source);
  void write_at(std::int64_t offset, std::span<const std::byte> source);
  // fsync and close; errors that a destructor would swallow surface here.
  void close_synced();

 private:
  File(std::filesystem::path path, int descriptor);
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::int64_t written_ = 0;
};

// The whole file; throws data_error beyond `max_bytes`.
std::string read_text_file(const std::filesystem::path& path, std::int64_t max_bytes);

// Writes `content` to a temporary neighbour, syncs it, renames it over `path` and syncs the folder:
// after a crash `path` holds either the old content or the new.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

// A new file that only its owner may read. Throws resource_error.
void write_secret(const std::filesystem::path& path, std::string_view content);

// For an output that the user names: a device or a pipe is written to, a link is followed; anything
// else is written atomically.
void write_output(const std::filesystem::path& path, std::string_view content);

// `path` itself, or the nearest folder above it that is there. Empty where the system does not say.
std::filesystem::path nearest_existing(const std::filesystem::path& path);

// A file name that nobody else makes in a folder that hosts share.
std::string unique_name(std::string_view stem);

// Makes the folder if need be, and sees whether files can be made in it. Throws resource_error.
void check_writable(const std::filesystem::path& folder);

void rename_synced(const std::filesystem::path& from, const std::filesystem::path& to);

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace stagecoach
