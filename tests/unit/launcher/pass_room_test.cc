#include "launcher/pass_room.h"

#include <gtest/gtest.h>

namespace stagecoach {
namespace {

TEST(PassRoom, IsDecidedBeforeAHostsFirstRun) {
  PassRoom room;
  EXPECT_TRUE(room.look(0, 100, 90));
  EXPECT_TRUE(room.look(1, std::nullopt, 90)) << "unknown";
  EXPECT_TRUE(room.look(0, 40, 90)) << "a restart: it has kept 60 of them";
  EXPECT_TRUE(room.everywhere());
  EXPECT_FALSE(room.look(2, 89, 90));
  EXPECT_FALSE(room.everywhere());
  EXPECT_TRUE(room.look(2, 89, 90)) << "said once";
  EXPECT_FALSE(room.everywhere());
}

}  // namespace
}  // namespace stagecoach
