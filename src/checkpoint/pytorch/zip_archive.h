// Where the members of a ZIP file lie (PKWARE's APPNOTE 6.3.10). Only what torch.save writes:
// stored, unencrypted members on one disk, zip64 or not; such a member is an extent of the file and
// is read in place. Anything else is refused, and so is every archive that two readers could read
// in two ways: overlapping members, equal names, local headers that contradict the directory.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/file.h"

namespace stagecoach {

// In bytes, from the start of the file.
struct ZipMember {
  std::int64_t offset = 0, bytes = 0;
};

// By name. Checksums of the data are not compared: that would read a checkpoint twice, and PyTorch
// does not do it either. Allocates no more than the file holds. Throws data_error.
std::map<std::string, ZipMember> read_zip_directory(const File& file);

}  // namespace stagecoach
