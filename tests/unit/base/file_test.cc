#include "base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "stagecoach-file-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path make(const char* name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return folder_ / name;
  }
  std::size_t entries() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  fs::path folder_;
};

template <typename Action>
Error error_of(Action&& action) {
  try {
    action();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "nothing was thrown";
  return {ErrorKind::kInternal, ""};
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST_F(FileTest, ReadsRangesExactly) {
  const File file = File::open_read(make("a", "0123456789"));
  EXPECT_EQ(file.size(), 10);
  std::vector<std::byte> bytes(4);
  file.read_at(3, bytes);
  EXPECT_EQ(text_of(bytes), "3456");
  EXPECT_NO_THROW(file.read_at(10, {}));
}

TEST_F(FileTest, TruncatedReadSaysExpectedAndFound) {
  const File file = File::open_read(make("a", "0123456789"));
  std::vector<std::byte> bytes(4);
  const Error error = error_of([&] { file.read_at(8, bytes); });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  const std::string message = error.what();
  EXPECT_NE(message.find("expected 4 bytes at offset 8, found 2"), std::string::npos) << message;
  EXPECT_NE(message.find((folder_ / "a").string()), std::string::npos);
}

TEST_F(FileTest, MissingFileIsADataErrorWithThePath) {
  const Error error = error_of([&] { File::open_read(folder_ / "none"); });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  EXPECT_NE(std::string(error.what()).find("none"), std::string::npos);
}

TEST_F(FileTest, FoldersAndFifosAreRefusedWithoutHanging) {
  EXPECT_EQ(error_of([&] { File::open_read(folder_); }).kind(), ErrorKind::kData);
  const fs::path fifo = folder_ / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_EQ(error_of([&] { File::open_read(fifo); }).kind(), ErrorKind::kData);
  EXPECT_EQ(error_of([&] { read_text_file(fifo, 100); }).kind(), ErrorKind::kData);
  EXPECT_EQ(error_of([&] { read_json_file(folder_, 100); }).kind(), ErrorKind::kData);
  EXPECT_EQ(error_of([&] { File::open_read("/dev/null"); }).kind(), ErrorKind::kData);
}

TEST_F(FileTest, ReadTextKeepsEveryByteAndItsLimit) {
  const std::string content("a\0b\r\n", 5);
  EXPECT_EQ(read_text_file(make("a", content), 5), content);
  const Error error = error_of([&] { read_text_file(folder_ / "a", 4); });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  EXPECT_NE(std::string(error.what()).find("5 bytes, expected at most 4"), std::string::npos);
  EXPECT_EQ(read_text_file(make("empty", ""), 0), "");
}

TEST_F(FileTest, AppendsAndPatches) {
  const fs::path path = folder_ / "out";
  File file = File::create(path);
  file.append(as_bytes("hello "));
  file.append(as_bytes("world"));
  file.write_at(0, as_bytes("J"));
  file.append(as_bytes("!"));
  file.close_synced();
  EXPECT_EQ(read_text_file(path, 100), "Jello world!");
  File::create(path).close_synced();
  EXPECT_EQ(read_text_file(path, 100), "");
}

TEST_F(FileTest, MovingHandsOverTheDescriptor) {
  File a = File::open_read(make("a", "A"));
  const int descriptor = a.descriptor();
  File b = File::open_read(make("b", "B"));
  b = std::move(a);
  EXPECT_EQ(b.descriptor(), descriptor);
  EXPECT_EQ(b.path().filename(), "a");
  const File c(std::move(b));
  EXPECT_EQ(c.size(), 1);
  EXPECT_NE(::fcntl(descriptor, F_GETFD), -1);
}

TEST_F(FileTest, AtomicWriteReplacesAndLeavesNothingBehind) {
  const fs::path path = folder_ / "out";
  write_file_atomically(path, "one");
  write_file_atomically(path, "two");
  EXPECT_EQ(read_text_file(path, 100), "two");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(FileTest, FailedAtomicWriteKeepsTheOldAndLeavesNothingBehind) {
  // A folder in the place of the file: the rename fails after everything else went well.
  fs::create_directory(folder_ / "out");
  const Error error = error_of([&] { write_file_atomically(folder_ / "out", "new"); });
  EXPECT_EQ(error.kind(), ErrorKind::kResources) << error.what();
  EXPECT_TRUE(fs::is_directory(folder_ / "out"));
  EXPECT_EQ(entries(), 1u);
}

TEST_F(FileTest, OutputThatCannotBeCreatedIsAResourceError) {
  EXPECT_EQ(error_of([&] { File::create(folder_ / "no" / "such"); }).kind(), ErrorKind::kResources);
  EXPECT_EQ(error_of([&] { File::create(folder_); }).kind(), ErrorKind::kResources);
  EXPECT_EQ(error_of([&] { rename_synced(folder_ / "none", folder_ / "x"); }).kind(),
            ErrorKind::kResources);
}

TEST_F(FileTest, CreateReplacesFilesAndLinksButNothingElse) {
  const fs::path target = folder_ / "target", link = folder_ / "link";
  File::create(target).append(as_bytes("old"));
  fs::create_symlink(target, link);
  File::create(link).append(as_bytes("new"));
  EXPECT_EQ(read_text_file(target, 100), "old");
  EXPECT_EQ(read_text_file(link, 100), "new");
  const fs::path fifo = folder_ / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_EQ(error_of([&] { File::create(fifo); }).kind(), ErrorKind::kResources);
  EXPECT_TRUE(fs::exists(fifo));
}

TEST_F(FileTest, OutputsGoToPipesAndThroughLinks) {
  const fs::path file = folder_ / "file", link = folder_ / "link", pipe = folder_ / "pipe";
  write_output(file, "one");
  fs::create_symlink(file, link);
  write_output(link, "two");
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(read_text_file(file, 10), "two");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  write_output(pipe, "three");
  char text[8] = {};
  EXPECT_EQ(::read(reader, text, sizeof(text)), 5);
  EXPECT_STREQ(text, "three");
  ::close(reader);
  EXPECT_TRUE(fs::is_fifo(pipe));
}

}  // namespace
}  // namespace stagecoach
