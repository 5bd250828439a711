#include "base/byte_size.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace stagecoach {
namespace {

TEST(ByteSize, ParsesUnitsOf1000And1024) {
  EXPECT_EQ(parse_byte_size("0"), 0);
  EXPECT_EQ(parse_byte_size("4096"), 4096);
  EXPECT_EQ(parse_byte_size("4096B"), 4096);
  EXPECT_EQ(parse_byte_size("1kB"), 1000);
  EXPECT_EQ(parse_byte_size("500MB"), 500'000'000);
  EXPECT_EQ(parse_byte_size("1KiB"), 1024);
  EXPECT_EQ(parse_byte_size("8GiB"), std::int64_t{8} << 30);
  EXPECT_EQ(parse_byte_size("2TiB"), std::int64_t{2} << 40);
  EXPECT_EQ(parse_byte_size("1.5 GB"), 1'500'000'000);
}

TEST(ByteSize, PlainBytesAreExactBeyond53Bits) {
  EXPECT_EQ(parse_byte_size("9007199254740993"), 9007199254740993);
}

TEST(ByteSize, RefusesWhatIsNoSize) {
  for (const char* text :
       {"", "GiB", "8G", "8gib", "-1", "-1GiB", "8GiB more", " 8GiB", "0x10", "nan", "inf", "1e400",
        "1.5", "0.5B", "9223372036854775807", "99999999999TiB", "1..5GB"}) {
    try {
      parse_byte_size(text);
      ADD_FAILURE() << "accepted '" << text << "'";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kUsage) << text;
      EXPECT_FALSE(e.hint().empty());
    }
  }
}

TEST(ByteSize, FormatsThreeDigits) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.00 kB");
  EXPECT_EQ(format_bytes(5'200'000), "5.20 MB");
  EXPECT_EQ(format_bytes(13'149'000'000), "13.1 GB");
  EXPECT_EQ(format_bytes(999'499), "999 kB");
  EXPECT_EQ(format_bytes(999'999), "1.00 MB");
  EXPECT_EQ(format_bytes(350'000'000'000), "350 GB");
}

}  // namespace
}  // namespace stagecoach
