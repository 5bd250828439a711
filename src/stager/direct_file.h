// A slab opened for reading past the page cache, whose LRU would reread everything in a cyclic
// scan.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "base/file.h"
#include "store/layer_store.h"

namespace stagecoach {

// Offsets, lengths and addresses of direct reads are multiples of this.
inline constexpr std::int64_t kDirectAlignment = 4096;
constexpr std::int64_t align_down(std::int64_t value) {
  return value / kDirectAlignment * kDirectAlignment;
}
constexpr std::int64_t align_up(std::int64_t value) {
  return align_down(value + kDirectAlignment - 1);
}

struct DirectFile {
  int descriptor = -1;
  bool direct = false;  // false: this file system refuses; read, then drop what was read
};

// The slabs of a store, opened when first asked for, each checked by LayerStore. Not thread-safe.
class DirectFiles {
 public:
  explicit DirectFiles(const LayerStore& store) : store_(store) {}
  // Warns once when a file system refuses direct reads.
  DirectFile open(const SlabEntry& slab);

 private:
  const LayerStore& store_;
  std::map<std::string, File> files_;  // opened with O_DIRECT
  std::map<std::string, DirectFile> opened_;
  bool warned_ = false;
};

}  // namespace stagecoach
