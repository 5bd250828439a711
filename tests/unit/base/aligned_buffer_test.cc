#include "base/aligned_buffer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace stagecoach {
namespace {

TEST(AlignedBuffer, IsPageAlignedAndZero) {
  AlignedBuffer buffer(100'000);
  EXPECT_EQ(buffer.size(), 100'000u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) %
                static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE)),
            0u);
  EXPECT_TRUE(std::all_of(buffer.span().begin(), buffer.span().end(),
                          [](std::byte b) { return b == std::byte{0}; }));
}

TEST(AlignedBuffer, EmptyAndMoved) {
  AlignedBuffer empty(0);
  EXPECT_EQ(empty.data(), nullptr);
  AlignedBuffer a(64);
  std::byte* const data = a.data();
  AlignedBuffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  empty = std::move(b);
  EXPECT_EQ(empty.data(), data);
  EXPECT_EQ(empty.size(), 64u);
}

TEST(AlignedBuffer, ImpossibleSizesAreResourceErrors) {
  for (const std::int64_t bytes : {std::int64_t{-1}, std::numeric_limits<std::int64_t>::max()}) {
    try {
      AlignedBuffer buffer(bytes);
      ADD_FAILURE() << bytes;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kResources);
    }
  }
}

}  // namespace
}  // namespace stagecoach
