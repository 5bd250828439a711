#include "base/archive.h"

#include <gtest/gtest.h>

#include <limits>
#include <optional>

namespace stagecoach {
namespace {

constexpr std::uint32_t kMagic = archive_magic("TEST");

enum class Colour : std::uint8_t { kRed, kBlue };

struct Inner {
  std::string name;
  std::vector<std::int32_t> values;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(name, values);
  }
};

struct Outer {
  bool flag = false;
  Colour colour = Colour::kRed;
  double number = 0;
  std::uint64_t big = 0;
  std::vector<Inner> inners;
  std::optional<std::int64_t> maybe;
  template <class Archive>
  void serialize(Archive& archive) {
    archive(flag, colour, number, big, inners, maybe);
  }
};

std::string error_of(std::span<const std::byte> bytes, std::uint32_t magic = kMagic) {
  try {
    from_archive<Outer>(magic, bytes, "outer");
    return {};
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    return error.what();
  }
}

TEST(Archive, RoundTrip) {
  const Outer outer{true, Colour::kBlue, 0.1, ~std::uint64_t{0}, {{"a", {1, -2}}, {"", {}}}, -7};
  const auto bytes = to_archive(kMagic, outer);
  const auto back = from_archive<Outer>(kMagic, bytes, "outer");
  EXPECT_TRUE(back.flag);
  EXPECT_EQ(back.colour, Colour::kBlue);
  EXPECT_EQ(back.number, 0.1);
  EXPECT_EQ(back.big, ~std::uint64_t{0});
  ASSERT_EQ(back.inners.size(), 2U);
  EXPECT_EQ(back.inners[0].name, "a");
  EXPECT_EQ(back.inners[0].values, (std::vector<std::int32_t>{1, -2}));
  EXPECT_EQ(back.maybe, -7);
  EXPECT_EQ(to_archive(kMagic, back), bytes);
}

TEST(Archive, KindsAndVersionsAreToldApart) {
  auto bytes = to_archive(kMagic, Outer{});
  EXPECT_NE(error_of(bytes, archive_magic("ELSE")).find("expected message"), std::string::npos);
  bytes[4] ^= std::byte{2};
  EXPECT_NE(error_of(bytes).find("version"), std::string::npos);
}

TEST(Archive, TruncatedAndOverlongMessagesAreRefused) {
  const auto bytes = to_archive(kMagic, Outer{true, Colour::kBlue, 1, 2, {{"name", {1, 2, 3}}}, 4});
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(error_of(std::span(bytes).first(size)).empty()) << size;
  auto longer = bytes;
  longer.push_back({});
  EXPECT_NE(error_of(longer).find("1 bytes follow"), std::string::npos);
}

// A length that asks for more than the message has is refused before it is allocated: this test
// would run out of memory.
TEST(Archive, ImpossibleLengthsAllocateNothing) {
  for (std::uint64_t length : {std::uint64_t{100}, std::uint64_t{1} << 33, std::uint64_t{1} << 61,
                               std::numeric_limits<std::uint64_t>::max()}) {
    const auto bytes = to_archive(kMagic, length);
    const auto refused = [&](auto value) {
      try {
        from_archive<decltype(value)>(kMagic, bytes, "list");
        return false;
      } catch (const Error& error) {
        return error.kind() == ErrorKind::kData;
      }
    };
    EXPECT_TRUE(refused(std::string()));
    EXPECT_TRUE(refused(std::vector<double>()));
    EXPECT_TRUE(refused(std::vector<Inner>()));
  }
}

TEST(Archive, AFlagIsZeroOrOne) {
  auto bytes = to_archive(kMagic, Outer{});
  bytes[8] = std::byte{2};
  EXPECT_NE(error_of(bytes).find("flag"), std::string::npos);
}

}  // namespace
}  // namespace stagecoach
