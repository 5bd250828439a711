#include "checkpoint/pytorch/zip_archive.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support_pytorch.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

using namespace test;

std::map<std::string, ZipMember> members_of(const std::string& bytes) {
  const TemporaryFolder folder;
  folder.write("x.zip", bytes);
  return read_zip_directory(File::open_read(folder / "x.zip"));
}

std::string error_of(const std::string& bytes) {
  try {
    members_of(bytes);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    return error.what();
  }
  return "accepted";
}
std::string error_of(const ZipText& zip) {
  return error_of(zip.bytes());
}
std::string error_of(const ZipMemberText& member) {
  return error_of(ZipText{.members = {member, {.name = "last", .data = "123"}}});
}

#define EXPECT_REFUSED(text, part) EXPECT_PRED_FORMAT2(testing::IsSubstring, part, text)

// Signature, checksum, sizes.
std::string descriptor(std::uint64_t size, bool wide = false) {
  return "PK\x07\x08" + u32(7) + (wide ? u64(size) + u64(size) : u32(size) + u32(size));
}

TEST(ZipArchive, FindsStoredMembers) {
  for (const bool zip64 : {false, true}) {
    const std::string bytes =
        ZipText{.members = {{.name = "a/b", .data = "first"},
                            {.name = "empty"},
                            {.name = "c", .data = "x", .local_extra = "FB\0"}},
                .gap = "gap",
                .comment = "hello",
                .zip64 = zip64}
            .bytes();
    const auto members = members_of(bytes);
    ASSERT_EQ(members.size(), 3u);
    const ZipMember& first = members.at("a/b");
    EXPECT_EQ(
        bytes.substr(static_cast<std::size_t>(first.offset), static_cast<std::size_t>(first.bytes)),
        "first");
    EXPECT_EQ(members.at("empty").bytes, 0);
    EXPECT_EQ(bytes.at(static_cast<std::size_t>(members.at("c").offset)), 'x');
  }
  EXPECT_TRUE(members_of(ZipText{}.bytes()).empty());
}

TEST(ZipArchive, ReadsDataDescriptorsOfBothSizes) {
  for (const bool wide : {false, true}) {
    ZipMemberText member{.name = "a", .data = "12345", .flags = 8, .local_size = 0};
    member.descriptor = descriptor(5, wide);
    EXPECT_EQ(error_of(member), "accepted");
    member.descriptor = descriptor(6, wide);
    EXPECT_REFUSED(error_of(member), "data descriptor");
  }
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "a", .data = "12345", .flags = 8, .local_size = 0}),
                 "data descriptor");
}

TEST(ZipArchive, ReadsZip64Sizes) {
  const ZipMemberText member{.name = "a",
                             .data = "12345",
                             .extra = u16(1) + u16(24) + u64(5) + u64(5) + u64(0),
                             .size = 0xffffffff,
                             .header = 0xffffffff,
                             .local_extra = u16(1) + u16(16) + u64(5) + u64(5)};
  EXPECT_EQ(error_of(member), "accepted");
  EXPECT_EQ(members_of(ZipText{.members = {member}}.bytes()).at("a").bytes, 5);
  const auto with_extra = [&](const std::string& extra) {
    ZipMemberText other = member;
    other.extra = extra;
    return error_of(other);
  };
  EXPECT_REFUSED(with_extra(""), "lacks its zip64 field");
  EXPECT_REFUSED(with_extra(u16(1) + u16(16) + u64(5) + u64(5)), "broken zip64");
  EXPECT_REFUSED(with_extra(u16(1) + u16(99) + u64(5)), "broken extra");
  EXPECT_REFUSED(with_extra("ab"), "broken extra");
  EXPECT_REFUSED(with_extra(u16(1) + u16(24) + u64(~0ull) + u64(~0ull) + u64(0)), "claims");
  EXPECT_REFUSED(with_extra(u16(1) + u16(24) + u64(5) + u64(6) + u64(0)), "claims");
  EXPECT_REFUSED(with_extra(u16(1) + u16(24) + u64(5) + u64(5) + u64(~0ull)), "claims");
  ZipMemberText lie = member;
  lie.local_extra = u16(1) + u16(16) + u64(4) + u64(4);
  EXPECT_REFUSED(error_of(lie), "differently by its local header");
}

TEST(ZipArchive, RefusesWhatIsNotStored) {
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "a", .data = "1", .method = 8}), "compressed");
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "a", .data = "1", .flags = 1}), "encrypted");
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "a", .data = "1", .flags = 0x40}), "encrypted");
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "a", .data = "1", .flags = 0x2000}), "encrypted");
}

TEST(ZipArchive, RefusesWhatTwoReadersReadDifferently) {
  EXPECT_REFUSED(error_of(ZipText{.members = {{.name = "a"}, {.name = "a"}}}), "stands twice");
  EXPECT_REFUSED(error_of(ZipMemberText{.name = std::string("a\0b", 3)}), "no proper name");
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "", .local_name = "x"}), "no proper name");
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "a", .local_name = "b"}), "local header");
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "a", .data = "12", .local_size = 1}),
                 "local header");
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "a", .data = "12", .local_size = 0}),
                 "local header");
  EXPECT_REFUSED(error_of(ZipText{.members = {{.name = "a"}}, .before_end = "x"}), "but ends at");
  // An end record inside the comment of another.
  const std::string inner = ZipText{.members = {{.name = "a"}}}.bytes();
  EXPECT_REFUSED(error_of(ZipText{.members = {{.name = "b"}}, .comment = inner}), "");
}

TEST(ZipArchive, RefusesOverlaps) {
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "a", .data = "12", .size = 3}), "overlaps");
  EXPECT_REFUSED(error_of(ZipMemberText{.name = "a", .data = "12", .size = 0x7fffffff}),
                 "overlaps");
  EXPECT_REFUSED(error_of(ZipText{.members = {{.name = "a", .data = "1"},
                                              {.name = "b", .data = "1", .header = 0}}}),
                 "overlaps");
  EXPECT_REFUSED(error_of(ZipText{.members = {{.name = "a", .data = "1", .size = 2}}}), "overlaps");
  EXPECT_REFUSED(error_of(ZipText{.members = {{.name = "a", .header = 0x7fffffff}}}), "overlaps");
  EXPECT_REFUSED(error_of(ZipText{.members = {{.name = "a", .header = 1}}, .gap = "123"}),
                 "no local header");
}

// Found by fuzzing: the first member's end was only compared with the second's place.
TEST(ZipArchive, RefusesSeveralMembersBeyondTheFile) {
  EXPECT_REFUSED(error_of(ZipText{.members = {{.name = "a", .data = "1", .header = 0x10000000},
                                              {.name = "b", .data = "1", .header = 0x20000000}}}),
                 "overlaps");
}

TEST(ZipArchive, RefusesBrokenDirectories) {
  const std::vector<ZipMemberText> one{{.name = "a", .data = "1"}};
  EXPECT_REFUSED(error_of(""), "no ZIP directory");
  EXPECT_REFUSED(error_of(std::string(100000, 'x')), "no ZIP directory");
  EXPECT_REFUSED(error_of(ZipText{.members = one, .members_more = 1}), "claims 2 members");
  EXPECT_REFUSED(error_of(ZipText{.members = one, .members_more = -1}), "bytes follow");
  EXPECT_REFUSED(error_of(ZipText{.members = one, .directory_shift = 1}), "but ends at");
  EXPECT_REFUSED(error_of(ZipText{.members = one, .directory_shift = -1}), "but ends at");
  EXPECT_REFUSED(error_of(ZipText{.members = one, .zip64 = true, .zip64_members = 2}),
                 "contradict");
  EXPECT_REFUSED(error_of(ZipText{.members = one, .members_more = 0xfffe}), "is not there");
  EXPECT_REFUSED(error_of(ZipText{.members = one,
                                  .members_more = 0xfffe,
                                  .zip64 = true,
                                  .zip64_members = ~std::uint64_t{0}}),
                 "claims 18446744073709551615 members");
}

TEST(ZipArchive, EveryTruncationIsRefused) {
  for (const bool zip64 : {false, true}) {
    const std::string bytes =
        ZipText{.members = {{.name = "a", .data = "1"}, {.name = "b"}}, .zip64 = zip64}.bytes();
    for (std::size_t length = 0; length < bytes.size(); ++length)
      EXPECT_REFUSED(error_of(bytes.substr(0, length)), "no ZIP directory");
  }
}

}  // namespace
}  // namespace stagecoach
