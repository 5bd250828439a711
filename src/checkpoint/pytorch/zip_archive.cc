#include "checkpoint/pytorch/zip_archive.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/foreign_text.h"

namespace stagecoach {
namespace {

// Signatures, and the bytes of the fixed part that each begins.
constexpr std::uint32_t kLocalSignature = 0x04034b50, kCentralSignature = 0x02014b50,
                        kDescriptorSignature = 0x08074b50, kEndSignature = 0x06054b50,
                        kEnd64Signature = 0x06064b50, kLocatorSignature = 0x07064b50;
constexpr std::int64_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56,
                       kLocatorBytes = 20;
constexpr std::int64_t kMaxComment = 0xffff;
constexpr std::int64_t kMaxDirectory = 64 << 20;  // a million members

constexpr std::uint16_t kEncrypted = 1 << 0, kHasDescriptor = 1 << 3, kStrongEncryption = 1 << 6,
                        kMaskedHeaders = 1 << 13;
constexpr std::uint16_t kZip64Extra = 1;
// A 16- or 32-bit field of all ones says that the real value stands in a zip64 record.
constexpr std::uint64_t kFull16 = 0xffff, kFull32 = 0xffffffff;

using Bytes = std::vector<std::byte>;
using View = std::span<const std::byte>;

// Little-endian fields in order. Whoever makes one has seen to it that the bytes suffice.
class Fields {
 public:
  explicit Fields(View bytes) : bytes_(bytes) {}

  std::uint16_t u16() { return take<std::uint16_t>(); }
  std::uint32_t u32() { return take<std::uint32_t>(); }
  std::uint64_t u64() { return take<std::uint64_t>(); }
  void skip(std::size_t count) { bytes_ = bytes_.subspan(count); }
  std::size_t left() const { return bytes_.size(); }

 private:
  template <typename T>
  T take() {
    T value;
    STAGECOACH_CHECK(bytes_.size() >= sizeof value);
    std::memcpy(&value, bytes_.data(), sizeof value);
    skip(sizeof value);
    return value;
  }

  View bytes_;
};

std::string_view text_of(View bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

struct Directory {
  std::int64_t offset = 0, bytes = 0;
  std::uint64_t members = 0;
};

struct Entry {
  std::string name;
  std::uint16_t flags = 0;
  std::uint32_t checksum = 0;
  std::int64_t bytes = 0;   // of its data
  std::int64_t header = 0;  // offset of its local header
};

class ZipReader {
 public:
  explicit ZipReader(const File& file)
      : file_(file), where_(file.path().string()), size_(file.size()) {}
  std::map<std::string, ZipMember> read();

 private:
  Bytes read_at(std::int64_t offset, std::int64_t bytes) const;
  Error broken(const std::string& problem) const {
    return data_error(fmt::format("{}: {}", where_, problem),
                      "the file is damaged or was not written by torch.save: fetch it again");
  }
  std::int64_t find_end() const;
  Directory read_end() const;
  void widen(std::int64_t end, Directory& directory, std::int64_t& limit) const;
  std::vector<Entry> read_entries(const Directory& directory) const;
  Entry read_entry(View& rest) const;
  void read_zip64_sizes(View extra, Entry& entry, bool needs_size, bool needs_header) const;
  std::int64_t locate_data(const Entry& entry, std::int64_t limit) const;
  void check_descriptor(const Entry& entry, std::int64_t offset, std::int64_t limit) const;

  const File& file_;
  std::string where_;
  std::int64_t size_;
};

Bytes ZipReader::read_at(std::int64_t offset, std::int64_t bytes) const {
  STAGECOACH_CHECK(offset >= 0 && bytes >= 0 && bytes <= size_ - offset);
  Bytes result(static_cast<std::size_t>(bytes));
  file_.read_at(offset, result);
  return result;
}

// The end record is the file's last thing but for a comment, whose length it states. Of several
// candidates the last counts: a comment that contains a whole end record is an attack.
std::int64_t ZipReader::find_end() const {
  const std::int64_t window = std::min(size_, kEndBytes + kMaxComment);
  const Bytes tail = read_at(size_ - window, window);
  for (std::int64_t at = window - kEndBytes; at >= 0; --at) {
    Fields fields(View(tail).subspan(static_cast<std::size_t>(at)));
    if (fields.u32() != kEndSignature) continue;
    fields.skip(16);
    if (fields.u16() == window - kEndBytes - at) return size_ - window + at;
  }
  throw broken("no ZIP directory at the end: the file is truncated");
}

Directory ZipReader::read_end() const {
  const std::int64_t end = find_end();
  const Bytes record = read_at(end, kEndBytes);
  Fields fields(record);
  fields.skip(4);
  const std::uint16_t disk = fields.u16(), directory_disk = fields.u16();
  const std::uint16_t members_here = fields.u16(), members = fields.u16();
  const std::uint32_t bytes = fields.u32(), offset = fields.u32();
  if (disk != 0 || directory_disk != 0 || members_here != members)
    throw broken("a ZIP archive that is split over several files is not supported");
  Directory directory{.offset = offset, .bytes = bytes, .members = members};
  std::int64_t limit = end;
  widen(end, directory, limit);
  if (directory.bytes > kMaxDirectory)
    throw broken(fmt::format("the ZIP directory has {} bytes, expected at most {}", directory.bytes,
                             kMaxDirectory));
  // Nothing may stand between the directory and its end record: not even what a reader that
  // searches for either might take for one.
  if (directory.offset > limit || directory.bytes != limit - directory.offset)
    throw broken(fmt::format("the ZIP directory should be bytes {} to {}, but ends at {}",
                             directory.offset, limit,
                             static_cast<std::uint64_t>(directory.offset) +
                                 static_cast<std::uint64_t>(directory.bytes)));
  return directory;
}

// Replaces the fields by those of the zip64 end record if there is one, and `limit` by its offset.
void ZipReader::widen(std::int64_t end, Directory& directory, std::int64_t& limit) const {
  const Directory narrow = directory;
  const bool needed = narrow.members == kFull16 ||
                      static_cast<std::uint64_t>(narrow.bytes) == kFull32 ||
                      static_cast<std::uint64_t>(narrow.offset) == kFull32;
  const std::int64_t locator_at = end - kLocatorBytes;
  const Bytes locator =
      locator_at >= kEnd64Bytes ? read_at(locator_at, kLocatorBytes) : Bytes(kLocatorBytes);
  Fields fields(locator);
  if (fields.u32() != kLocatorSignature) {
    if (needed) throw broken("the ZIP end record refers to a zip64 record that is not there");
    return;
  }
  const std::uint32_t disk = fields.u32();
  const std::uint64_t offset = fields.u64();
  if (disk != 0 || fields.u32() > 1)
    throw broken("a ZIP archive that is split over several files is not supported");
  if (offset != static_cast<std::uint64_t>(locator_at - kEnd64Bytes))
    throw broken(fmt::format("the zip64 end record should stand at byte {}, the locator says {}",
                             locator_at - kEnd64Bytes, offset));
  const Bytes record = read_at(locator_at - kEnd64Bytes, kEnd64Bytes);
  Fields wide(record);
  if (wide.u32() != kEnd64Signature || wide.u64() != kEnd64Bytes - 12)
    throw broken("the zip64 end record is not one of 56 bytes");
  wide.skip(4);  // versions
  const std::uint32_t this_disk = wide.u32(), directory_disk = wide.u32();
  const std::uint64_t members_here = wide.u64(), members = wide.u64();
  const std::uint64_t bytes = wide.u64(), directory_at = wide.u64();
  if (this_disk != 0 || directory_disk != 0 || members_here != members)
    throw broken("a ZIP archive that is split over several files is not supported");
  const auto agrees = [](std::uint64_t narrow_value, std::uint64_t full, std::uint64_t value) {
    return narrow_value == value || narrow_value == full;
  };
  if (!agrees(narrow.members, kFull16, members) ||
      !agrees(static_cast<std::uint64_t>(narrow.bytes), kFull32, bytes) ||
      !agrees(static_cast<std::uint64_t>(narrow.offset), kFull32, directory_at))
    throw broken("the ZIP end record and its zip64 record contradict each other");
  limit = locator_at - kEnd64Bytes;
  if (bytes > static_cast<std::uint64_t>(limit) || directory_at > static_cast<std::uint64_t>(limit))
    throw broken(fmt::format("the zip64 record places a directory of {} bytes at {} in {} bytes",
                             bytes, directory_at, size_));
  directory = {.offset = static_cast<std::int64_t>(directory_at),
               .bytes = static_cast<std::int64_t>(bytes),
               .members = members};
}

std::vector<Entry> ZipReader::read_entries(const Directory& directory) const {
  if (directory.members > static_cast<std::uint64_t>(directory.bytes / kCentralBytes))
    throw broken(fmt::format("the ZIP directory claims {} members in {} bytes", directory.members,
                             directory.bytes));
  const Bytes bytes = read_at(directory.offset, directory.bytes);
  std::vector<Entry> entries;
  entries.reserve(static_cast<std::size_t>(directory.members));
  View rest(bytes);
  for (std::uint64_t i = 0; i < directory.members; ++i) entries.push_back(read_entry(rest));
  if (!rest.empty())
    throw broken(fmt::format("{} bytes follow the {} members of the ZIP directory", rest.size(),
                             directory.members));
  return entries;
}

Entry ZipReader::read_entry(View& rest) const {
  if (rest.size() < static_cast<std::size_t>(kCentralBytes))
    throw broken("the ZIP directory ends inside an entry");
  Fields fields(rest.first(kCentralBytes));
  if (fields.u32() != kCentralSignature)
    throw broken("the ZIP directory holds something that is not an entry");
  fields.skip(4);  // versions
  Entry entry;
  entry.flags = fields.u16();
  const std::uint16_t method = fields.u16();
  fields.skip(4);  // time and date
  entry.checksum = fields.u32();
  const std::uint32_t stored = fields.u32(), unpacked = fields.u32();
  const std::size_t name_bytes = fields.u16(), extra_bytes = fields.u16(),
                    comment_bytes = fields.u16();
  const std::uint16_t disk = fields.u16();
  fields.skip(6);  // attributes
  const std::uint32_t header = fields.u32();
  rest = rest.subspan(kCentralBytes);
  if (name_bytes + extra_bytes + comment_bytes > rest.size())
    throw broken("the ZIP directory ends inside an entry");
  entry.name = text_of(rest.first(name_bytes));
  const View extra = rest.subspan(name_bytes, extra_bytes);
  rest = rest.subspan(name_bytes + extra_bytes + comment_bytes);

  const std::string member = fmt::format("ZIP member {}", quote_name(entry.name));
  if (entry.name.empty() || entry.name.find('\0') != std::string::npos)
    throw broken(member + " has no proper name");
  if ((entry.flags & (kEncrypted | kStrongEncryption | kMaskedHeaders)) != 0)
    throw broken(member + " is encrypted");
  if (method != 0)
    throw data_error(
        fmt::format("{}: {} is compressed (method {}), expected stored", where_, member, method),
        "unpack the archive and pack it again with: zip -0 -r FILE FOLDER");
  if (stored != unpacked)
    throw broken(
        fmt::format("{} is stored, but its sizes differ: {} and {}", member, stored, unpacked));
  if (disk != 0 && disk != kFull16)
    throw broken("a ZIP archive that is split over several files is not supported");
  entry.bytes = stored;
  entry.header = header;
  read_zip64_sizes(extra, entry, stored == kFull32, header == kFull32);
  return entry;
}

// The zip64 field holds, in this order, only what did not fit: both sizes, then the offset.
void ZipReader::read_zip64_sizes(View extra, Entry& entry, bool needs_size,
                                 bool needs_header) const {
  const std::string member = fmt::format("ZIP member {}", quote_name(entry.name));
  bool found = false;
  for (Fields fields(extra); fields.left() > 0;) {
    if (fields.left() < 4) throw broken(member + " has a broken extra field");
    const std::uint16_t id = fields.u16();
    const std::size_t bytes = fields.u16();
    if (bytes > fields.left()) throw broken(member + " has a broken extra field");
    const std::size_t needed = (needs_size ? 16u : 0u) + (needs_header ? 8u : 0u);
    if (id != kZip64Extra || needed == 0) {
      fields.skip(bytes);
      continue;
    }
    if (found || bytes < needed) throw broken(member + " has a broken zip64 field");
    found = true;
    const std::uint64_t unpacked = needs_size ? fields.u64() : 0;
    const std::uint64_t stored = needs_size ? fields.u64() : 0;
    const std::uint64_t header = needs_header ? fields.u64() : 0;
    const auto limit = static_cast<std::uint64_t>(size_);
    if (unpacked != stored || stored > limit || header > limit)
      throw broken(
          fmt::format("{} claims {} bytes at {} in a file of {}", member, stored, header, size_));
    if (needs_size) entry.bytes = static_cast<std::int64_t>(stored);
    if (needs_header) entry.header = static_cast<std::int64_t>(header);
    fields.skip(bytes - needed);
  }
  if ((needs_size || needs_header) && !found) throw broken(member + " lacks its zip64 field");
}

// Where the data of `entry` begins. Everything of it lies before `limit`: members do not overlap.
std::int64_t ZipReader::locate_data(const Entry& entry, std::int64_t limit) const {
  const std::string member = fmt::format("ZIP member {}", quote_name(entry.name));
  const auto name_bytes = static_cast<std::int64_t>(entry.name.size());
  const std::int64_t room = limit - entry.header;
  const auto overlap = [&] { return broken(member + " overlaps what follows it"); };
  // Compared before anything is read, so that all reads together cover the file at most once.
  if (room < kLocalBytes + name_bytes || entry.bytes > room - kLocalBytes - name_bytes)
    throw overlap();
  const Bytes bytes = read_at(entry.header, kLocalBytes + name_bytes);
  Fields fields(bytes);
  if (fields.u32() != kLocalSignature) throw broken(member + " has no local header");
  fields.skip(2);  // version
  const std::uint16_t flags = fields.u16(), method = fields.u16();
  fields.skip(4);  // time and date
  const std::uint32_t checksum = fields.u32(), stored = fields.u32(), unpacked = fields.u32();
  const std::int64_t local_name_bytes = fields.u16(), extra_bytes = fields.u16();
  const bool descriptor = (flags & kHasDescriptor) != 0;
  const auto agrees = [&](std::uint32_t size) {
    return static_cast<std::int64_t>(size) == entry.bytes || size == kFull32 ||
           (descriptor && size == 0);
  };
  if (flags != entry.flags || method != 0 || local_name_bytes != name_bytes ||
      text_of(View(bytes).subspan(kLocalBytes)) != entry.name || !agrees(stored) ||
      !agrees(unpacked) || (checksum != entry.checksum && !(descriptor && checksum == 0)))
    throw broken(member + " is described differently by its local header");
  const std::int64_t data = entry.header + kLocalBytes + name_bytes + extra_bytes;
  if (extra_bytes > room - kLocalBytes - name_bytes - entry.bytes) throw overlap();
  if (stored == kFull32 || unpacked == kFull32) {
    const Bytes extra = read_at(entry.header + kLocalBytes + name_bytes, extra_bytes);
    Entry local = entry;
    read_zip64_sizes(extra, local, true, false);
    if (local.bytes != entry.bytes)
      throw broken(member + " is described differently by its local header");
  }
  if (descriptor) check_descriptor(entry, data + entry.bytes, limit);
  return data;
}

// Checksum and both sizes once more, of 32 or 64 bits: nothing says which. Its signature is
// optional in the standard, but every writer writes it.
void ZipReader::check_descriptor(const Entry& entry, std::int64_t offset,
                                 std::int64_t limit) const {
  const Bytes bytes = read_at(offset, std::min<std::int64_t>(24, limit - offset));
  const auto size = static_cast<std::uint64_t>(entry.bytes);
  bool agrees = false;
  if (bytes.size() >= 16) {
    Fields narrow(bytes);
    agrees = narrow.u32() == kDescriptorSignature && narrow.u32() == entry.checksum;
    Fields wide = narrow;
    const bool fits_narrow = narrow.u32() == size && narrow.u32() == size;
    agrees =
        agrees && (fits_narrow || (bytes.size() == 24 && wide.u64() == size && wide.u64() == size));
  }
  if (!agrees)
    throw broken(fmt::format("ZIP member {} is described differently by its data descriptor",
                             quote_name(entry.name)));
}

std::map<std::string, ZipMember> ZipReader::read() {
  const Directory directory = read_end();
  std::vector<Entry> entries = read_entries(directory);
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.header < b.header; });
  std::map<std::string, ZipMember> members;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = entries[i];
    // What follows may claim any place: no member reaches into the directory.
    const std::int64_t next = i + 1 < entries.size() ? entries[i + 1].header : directory.offset;
    const std::int64_t limit = std::min(next, directory.offset);
    const ZipMember member{.offset = locate_data(entry, limit), .bytes = entry.bytes};
    if (!members.emplace(entry.name, member).second)
      throw broken(fmt::format("ZIP member {} stands twice", quote_name(entry.name)));
  }
  return members;
}

}  // namespace

std::map<std::string, ZipMember> read_zip_directory(const File& file) {
  return ZipReader(file).read();
}

}  // namespace stagecoach
