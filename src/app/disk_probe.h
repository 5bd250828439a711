// How fast a disk is read when nothing but the disk is asked: in order, several requests at once,
// past the page cache.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace stagecoach {

struct DiskProbeOptions {
  std::int64_t read_bytes = std::int64_t{2} << 30;       // at most; shorter files are read again
  double read_seconds = 5;                               // at most
  std::int64_t temporary_bytes = std::int64_t{1} << 30;  // of a file of our own, at most
  double write_seconds = 4;                              // what is written by then is read
  std::function<bool()> interrupted = {};                // true stops with kInterrupted
};

struct DiskProbe {
  std::string path;             // what was read: a store, or the folder of a file of our own
  double bytes_per_second = 0;  // 10⁹ is a GB
};

// Reads the slabs of the store at `place`; of a folder that holds none, a temporary file in it that
// is gone when this returns. Null where the file system refuses direct reads or lies
// in memory, with one warning.
// Throws data_error when there is no such folder or its manifest is broken, resource_error when
// there is no room or no permission for the file.
std::optional<DiskProbe> probe_disk(const std::filesystem::path& place,
                                    const DiskProbeOptions& options);

}  // namespace stagecoach
