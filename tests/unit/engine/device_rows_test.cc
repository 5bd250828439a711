#include "engine/device_rows.h"

#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "backend/cpu/cpu_backend.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kBytes = 64 << 20;  // which the system takes back at once

class DeviceRowsTest : public testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = make_cpu_backend({.threads = 1, .isa = {}});
  std::optional<DeviceRows> rows_{std::in_place, *backend_, 2, kBytes};
};

TEST_F(DeviceRowsTest, APieceHasOneOwnerUntilTheLastCopyIsGone) {
  auto first = rows_->take(kBytes), second = rows_->take(1);
  ASSERT_NE(first, nullptr);
  ASSERT_NE(second, nullptr);
  EXPECT_GE(std::abs(first.get() - second.get()), kBytes);
  EXPECT_EQ(rows_->take(1), nullptr);
  auto copy = second;
  second.reset();
  EXPECT_EQ(rows_->take(1), nullptr);
  copy.reset();
  EXPECT_NE(rows_->take(kBytes), nullptr);
}

TEST_F(DeviceRowsTest, MoreThanAPieceIsRefused) {
  EXPECT_EQ(rows_->take(kBytes + 1), nullptr);
}

// As MPI may after an error, when nobody can wait for it.
TEST_F(DeviceRowsTest, WhoHasAPieceMayWriteThereAfterTheEnd) {
  const auto piece = rows_->take(kBytes);
  rows_.reset();
  std::memset(piece.get(), 1, kBytes);
  EXPECT_EQ(piece.get()[kBytes - 1], std::byte{1});
}

}  // namespace
}  // namespace stagecoach
