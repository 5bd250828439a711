#include "launcher/key.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace stagecoach {
namespace {

class KeyFile : public ::testing::Test {
 protected:
  void SetUp() override {
    file_ =
        std::filesystem::temp_directory_path() / ("stagecoach-key-" + std::to_string(::getpid()));
    write(Key::random().text() + "\n", 0600);
  }
  void TearDown() override { std::filesystem::remove(file_); }
  void write(const std::string& text, mode_t mode) {
    std::filesystem::remove(file_);
    std::ofstream(file_) << text;
    ::chmod(file_.c_str(), mode);
  }
  std::filesystem::path file_;
};

TEST(Key, ReadsBackAndIsNeverTheSame) {
  const Key key = Key::random();
  EXPECT_EQ(parse_key(key.text(), "test"), key);
  EXPECT_EQ(key.text().size(), 64U);
  EXPECT_FALSE(key == Key::random());
}

TEST(Key, RefusesWhatIsNoneWithoutQuotingIt) {
  const std::string good = Key::random().text();
  for (const std::string& text :
       {std::string(), good.substr(1), good + "0", "g" + good.substr(1), good.substr(1) + "\xff"}) {
    try {
      parse_key(text, "the key file");
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find(good.substr(4, 20)), std::string::npos);
    }
  }
}

TEST_F(KeyFile, IsReadByItsOwnerOnly) {
  EXPECT_NO_THROW(read_key_file(file_));
  for (const mode_t mode : {0640, 0604, 0660, 0622}) {
    ::chmod(file_.c_str(), mode);
    try {
      read_key_file(file_);
      FAIL() << mode;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kResources);
      EXPECT_NE(error.hint().find("chmod 600"), std::string::npos);
    }
  }
}

TEST_F(KeyFile, MustBeThere) {
  std::filesystem::remove(file_);
  EXPECT_THROW(read_key_file(file_), Error);
}

}  // namespace
}  // namespace stagecoach
