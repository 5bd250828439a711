#include "base/hash.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/file.h"

namespace stagecoach {
namespace {

TEST(Hash, KnownValuesOfXxh3) {
  // The empty string's XXH3-64, as the algorithm's specification gives it: stores depend on it.
  EXPECT_EQ(hash_to_hex(xxh3({})), "2d06800538d394c2");
}

TEST(Hash, StreamingEqualsOneShotForEverySplit) {
  std::vector<std::byte> bytes(3000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 31 >> 3);
  const std::span<const std::byte> all(bytes);
  StreamingHash hash;
  for (std::size_t cut :
       {std::size_t{0}, std::size_t{1}, std::size_t{255}, std::size_t{1024}, bytes.size()}) {
    hash.reset();
    hash.update(all.first(cut));
    hash.update(all.subspan(cut));
    EXPECT_EQ(hash.digest(), xxh3(all)) << cut;
  }
}

TEST(Hash, DependsOnEveryByte) {
  std::vector<std::byte> bytes(300);
  const std::uint64_t original = xxh3(bytes);
  for (std::byte& b : bytes) {
    b ^= std::byte{1};
    EXPECT_NE(xxh3(bytes), original);
    b ^= std::byte{1};
  }
}

TEST(Hash, HexRoundTripsAndRefusesTheRest) {
  for (const std::uint64_t value :
       {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0}, xxh3(as_bytes("a"))})
    EXPECT_EQ(hash_from_hex(hash_to_hex(value)), value);
  EXPECT_EQ(hash_to_hex(10), "000000000000000a");
  for (const char* text : {"", "a", "000000000000000g", "0x00000000000000", "-00000000000000a",
                           "0000000000000000a", " 00000000000000a", "00000000000000a "})
    EXPECT_FALSE(hash_from_hex(text)) << text;
}

}  // namespace
}  // namespace stagecoach
