// Writes ZIP archives and pickles, honest and hostile, for tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach::test {

template <typename T>
std::string little_endian(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
inline std::string u16(std::uint64_t value) {
  return little_endian(static_cast<std::uint16_t>(value));
}
inline std::string u32(std::uint64_t value) {
  return little_endian(static_cast<std::uint32_t>(value));
}
inline std::string u64(std::uint64_t value) {
  return little_endian(value);
}

// What the directory says of a member; the local header says the same but where it is given apart.
struct ZipMemberText {
  std::string name, data = {};
  std::uint16_t flags = 0, method = 0;
  std::string extra = {};                                // in the directory
  std::uint32_t size = 0xfffffffe, header = 0xfffffffe;  // in the directory; this value: the truth
  std::string local_name = {};                           // empty: the name
  std::uint32_t local_size = 0xfffffffe;
  std::string local_extra = {}, descriptor = {};
};

struct ZipText {
  std::vector<ZipMemberText> members;
  std::string gap = {};         // before the directory
  std::string before_end = {};  // between the directory and its end record
  std::string comment = {};
  int members_more = 0;               // than there are, in the end record
  std::int64_t directory_shift = 0;   // added to its offset in the end record
  bool zip64 = false;                 // with a zip64 end record
  std::uint64_t zip64_members = ~0u;  // what that says; ~0u: the truth

  std::string bytes() const;
};

inline std::string ZipText::bytes() const {
  constexpr std::uint32_t kTruth = 0xfffffffe;
  std::string file, directory;
  for (const ZipMemberText& member : members) {
    const std::size_t header = file.size();
    const std::string& local_name = member.local_name.empty() ? member.name : member.local_name;
    const std::uint64_t size = member.size == kTruth ? member.data.size() : member.size;
    const std::uint64_t local_size = member.local_size == kTruth ? size : member.local_size;
    file += "PK\x03\x04" + u16(0) + u16(member.flags) + u16(member.method) + u32(0) + u32(7) +
            u32(local_size) + u32(local_size) + u16(local_name.size()) +
            u16(member.local_extra.size()) + local_name + member.local_extra + member.data +
            member.descriptor;
    directory += "PK\x01\x02" + u16(0) + u16(0) + u16(member.flags) + u16(member.method) + u32(0) +
                 u32(7) + u32(size) + u32(size) + u16(member.name.size()) +
                 u16(member.extra.size()) + u16(0) + u16(0) + u16(0) + u32(0) +
                 u32(member.header == kTruth ? header : member.header) + member.name + member.extra;
  }
  file += gap;
  const std::uint64_t at = file.size() + static_cast<std::uint64_t>(directory_shift);
  const std::uint64_t count = members.size() + static_cast<std::uint64_t>(members_more);
  file += directory + before_end;
  if (zip64) {
    const std::uint64_t said = zip64_members == ~0u ? count : zip64_members;
    const std::size_t record = file.size();
    file += "PK\x06\x06" + u64(44) + u32(0) + u32(0) + u32(0) + u64(said) + u64(said) +
            u64(directory.size()) + u64(at);
    file += "PK\x06\x07" + u32(0) + u64(record) + u32(1);
  }
  file += "PK\x05\x06" + u16(0) + u16(0) + u16(count) + u16(count) + u32(directory.size()) +
          u32(at) + u16(comment.size()) + comment;
  return file;
}

// Pickle opcodes with their arguments.
inline std::string pickled(std::string_view program) {
  return "\x80\x02" + std::string(program) + ".";
}
inline std::string pickled_text(std::string_view text) {
  return "X" + u32(text.size()) + std::string(text);
}
inline std::string pickled_global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string pickled_number(std::int64_t value) {
  return "\x8a\x08" + little_endian(value);
}
inline std::string pickled_numbers(const std::vector<std::int64_t>& values) {
  std::string text = "(";
  for (const std::int64_t value : values) text += pickled_number(value);
  return text + "t";
}

// A tensor as torch.save pickles it: a view of storage `key`.
struct TensorText {
  std::string storage = "FloatStorage", key = "0";
  std::int64_t elements = 3, offset = 0;
  std::vector<std::int64_t> shape = {3}, strides = {1};

  std::string pickle() const {
    return pickled_global("torch._utils", "_rebuild_tensor_v2") + "((" + pickled_text("storage") +
           pickled_global("torch", storage) + pickled_text(key) + pickled_text("cpu") +
           pickled_number(elements) + "tQ" + pickled_number(offset) + pickled_numbers(shape) +
           pickled_numbers(strides) + "\x89" + pickled_global("collections", "OrderedDict") +
           ")RtR";
  }
};

// An archive of this pickle, with one storage "0".
inline std::string torch_archive(const std::string& pickle, const std::string& storage) {
  return ZipText{.members = {{.name = "m/data.pkl", .data = pickle},
                             {.name = "m/byteorder", .data = "little"},
                             {.name = "m/data/0", .data = storage}}}
      .bytes();
}

// A state_dict of one tensor "a" in an archive of its own.
inline std::string torch_archive(const TensorText& tensor, const std::string& storage) {
  return torch_archive(pickled("}" + pickled_text("a") + tensor.pickle() + "s"), storage);
}

}  // namespace stagecoach::test
