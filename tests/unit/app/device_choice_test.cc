#include "app/device_choice.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace stagecoach {
namespace {

TEST(DeviceChoice, NamesAreAutoCpuAndGpusWithOrWithoutNumber) {
  using Kind = DeviceChoice::Kind;
  EXPECT_EQ(parse_device("auto").kind, Kind::kAuto);
  EXPECT_EQ(parse_device("cpu").kind, Kind::kCpu);
  EXPECT_EQ(parse_device("cuda").kind, Kind::kCuda);
  EXPECT_FALSE(parse_device("cuda").ordinal.has_value());
  EXPECT_EQ(parse_device("cuda:12").ordinal, 12);
}

TEST(DeviceChoice, OthersAreRefusedByName) {
  for (const char* text :
       {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda: 1", "cuda:99999999999", "CPU", "cpu "}) {
    try {
      parse_device(text);
      FAIL() << "accepted '" << text << "'";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find("expected auto, cpu, cuda or cuda:N"),
                std::string::npos);
    }
  }
}

}  // namespace
}  // namespace stagecoach
