// Keeps two processes from writing to one place. The system drops a lock with its process, however
// that ends; file systems that cannot lock are used unlocked.
#pragma once

#include <filesystem>
#include <string>

namespace stagecoach {

class FileLock {
 public:
  // Of a folder itself, or of a file that is made for the purpose. Throws usage_error with
  // `problem` when another process holds it, resource_error when it cannot be opened.
  static FileLock of_folder(const std::filesystem::path& folder, const std::string& problem);
  static FileLock of_file(const std::filesystem::path& file, const std::string& problem);

  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  FileLock(const std::filesystem::path& path, int flags, const std::string& problem);
  int descriptor_;
};

}  // namespace stagecoach
