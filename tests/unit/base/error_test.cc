#include "base/error.h"

#include <gtest/gtest.h>

#include <string>

namespace stagecoach {
namespace {

TEST(Error, ExitCodesAreTheDocumentedOnes) {
  EXPECT_EQ(usage_error("x").exit_code(), 2);
  EXPECT_EQ(data_error("x").exit_code(), 3);
  EXPECT_EQ(resource_error("x").exit_code(), 4);
  EXPECT_EQ(Error(ErrorKind::kInternal, "x").exit_code(), 1);
  EXPECT_EQ(Error(ErrorKind::kPeerLost, "x").exit_code(), 5);
  EXPECT_EQ(Error(ErrorKind::kInterrupted, "x").exit_code(), 130);
}

TEST(Error, CarriesProblemAndHint) {
  const Error error = data_error("expected 2, found 3", "run it again");
  EXPECT_STREQ(error.what(), "expected 2, found 3");
  EXPECT_EQ(error.hint(), "run it again");
  EXPECT_TRUE(usage_error("x").hint().empty());
}

TEST(Error, CheckThrowsInternalWithPlaceAndCondition) {
  int evaluated = 0;
  EXPECT_NO_THROW(STAGECOACH_CHECK(++evaluated == 1));
  EXPECT_EQ(evaluated, 1);
  try {
    STAGECOACH_CHECK(1 + 1 == 3);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInternal);
    const std::string message = error.what();
    EXPECT_NE(message.find("error_test.cc:"), std::string::npos) << message;
    EXPECT_NE(message.find("1 + 1 == 3"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace stagecoach
