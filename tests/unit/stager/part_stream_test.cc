#include "stager/part_stream.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "fake_disk.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kBlock = 4096;

// Three layers of an attention part (2 blocks) and an MLP part (5 blocks), every byte its own.
class PartStreamTest : public testing::Test {
 protected:
  PartStreamTest() : disk_(content()) {
    std::int64_t offset = 0;
    for (int layer = 0; layer < 3; ++layer)
      for (const int kind : {0, 1}) {
        const std::int64_t bytes = kind == 0 ? 2 * kBlock : 5 * kBlock;
        parts_.push_back({.descriptor = 0,
                          .offset = offset,
                          .bytes = bytes,
                          .kind = kind,
                          .checksum = xxh3(std::span(disk_.content())
                                               .subspan(static_cast<std::size_t>(offset),
                                                        static_cast<std::size_t>(bytes))),
                          .layer = layer,
                          .name = "layer " + std::to_string(layer),
                          .hint = "repair it",
                          .content = 2 * layer + kind});
        offset += bytes;
      }
  }

  static std::vector<std::byte> content() {
    std::vector<std::byte> bytes(3 * 7 * kBlock);
    std::mt19937 random(5);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
  }

  PartStreamOptions options(std::vector<int> slots) const {
    return {
        .slots = std::move(slots), .stall = std::chrono::milliseconds(200), .chunk_bytes = kBlock};
  }
  std::unique_ptr<PartStream> stream(const PartStreamOptions& wanted,
                                     const DiskScript& script = {}) {
    return std::make_unique<PartStream>(parts_, wanted, disk_.queue(script), timeline_);
  }
  void expect_part(const PartStream& from, std::uint64_t number, const std::byte* data) {
    const StreamedPart& part = from.part(number);
    EXPECT_EQ(std::memcmp(data, disk_.content().data() + part.offset,
                          static_cast<std::size_t>(part.bytes)),
              0)
        << "part " << number;
  }
  template <typename Act>
  Error error_of(Act act) {
    try {
      act();
    } catch (const Error& error) {
      return error;
    }
    return {ErrorKind::kInternal, "nothing was thrown"};
  }

  FakeDisk disk_;
  std::vector<StreamedPart> parts_;
  Timeline timeline_;
};

TEST_F(PartStreamTest, GivesEveryPartOverAndOverWhateverTheOrderOfReads) {
  for (const auto& slots : std::vector<std::vector<int>>{{1, 1}, {2, 1}, {2, 2}, {3, 3}}) {
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      const auto parts = stream(options(slots), {.seed = seed});
      for (std::uint64_t n = 0; n < 4 * parts_.size() + 1; ++n) {
        expect_part(*parts, n, parts->wait(n));
        parts->release(n);
      }
    }
  }
}

TEST_F(PartStreamTest, HoldsPartsUntilTheyAreReleased) {
  const auto parts = stream(options({2, 2}));
  std::vector<const std::byte*> held;
  for (std::uint64_t n = 0; n < 4; ++n) held.push_back(parts->wait(n));
  std::this_thread::sleep_for(
      std::chrono::milliseconds(20));  // time to overwrite them, if it would
  for (std::uint64_t n = 0; n < 4; ++n) expect_part(*parts, n, held[n]);
  parts->release(0);
  expect_part(*parts, 4, parts->wait(4));
  for (std::uint64_t n = 1; n < 4; ++n) expect_part(*parts, n, held[n]);
}

TEST_F(PartStreamTest, ReadsNoFurtherThanTheSlotsAllow) {
  const auto parts = stream(options({2, 1}));
  parts->wait(0);
  parts->wait(1);
  parts->wait(2);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(disk_.bytes_read(), (2 + 5 + 2) * kBlock) << "part 3 has no slot yet";
}

TEST_F(PartStreamTest, BeginsAndEndsWhereItIsTold) {
  PartStreamOptions wanted = options({2, 2});
  wanted.first = 3;
  wanted.end = 6;
  const auto parts = stream(wanted);
  for (std::uint64_t n = 3; n < 6; ++n) {
    expect_part(*parts, n, parts->wait(n));
    parts->release(n);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(disk_.bytes_read(), (5 + 2 + 5) * kBlock) << "nothing beyond the end is read";
}

TEST_F(PartStreamTest, AWrongByteIsNamed) {
  const auto parts = stream(options({1, 1}), {.fault = DiskScript::Fault::kFlip, .fault_at = 9});
  const Error error = error_of([&] {
    for (std::uint64_t n = 0; n < 6; ++n) {
      parts->wait(n);
      parts->release(n);
    }
  });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  EXPECT_NE(std::string(error.what()).find("layer 1 is damaged"), std::string::npos)
      << error.what();
  EXPECT_EQ(error.hint(), "repair it");
}

TEST_F(PartStreamTest, ChecksTheFirstTimeAlwaysOrNever) {
  const auto passes = [&](CheckParts check, int damaged_pass) {
    PartStreamOptions wanted = options({1, 1});
    wanted.check = check;
    // Reads of two passes overlap: well into the pass.
    const std::int64_t reads_a_pass = 30;
    const auto parts = stream(wanted, {.fault = DiskScript::Fault::kFlip,
                                       .fault_at = disk_.reads() + damaged_pass * reads_a_pass});
    return error_of([&] {
      for (std::uint64_t n = 0; n < 18; ++n) {
        parts->wait(n);
        parts->release(n);
      }
    });
  };
  EXPECT_EQ(passes(CheckParts::kAlways, 1).kind(), ErrorKind::kData);
  EXPECT_EQ(passes(CheckParts::kFirstTime, 0).kind(), ErrorKind::kData);
  EXPECT_STREQ(passes(CheckParts::kFirstTime, 1).what(), "nothing was thrown");
  EXPECT_STREQ(passes(CheckParts::kNever, 0).what(), "nothing was thrown");
}

TEST_F(PartStreamTest, AReadErrorIsNamed) {
  const auto parts = stream(options({2, 2}), {.fault = DiskScript::Fault::kError, .fault_at = 3});
  const Error error = error_of([&] { parts->wait(2); });
  EXPECT_EQ(error.kind(), ErrorKind::kResources);
  EXPECT_NE(std::string(error.what()).find("Input/output error"), std::string::npos);
  EXPECT_EQ(error_of([&] { parts->wait(2); }).kind(), ErrorKind::kResources) << "and again";
}

TEST_F(PartStreamTest, ATruncatedFileIsNamed) {
  const auto parts = stream(options({2, 2}), {.fault = DiskScript::Fault::kShort, .fault_at = 3});
  const Error error = error_of([&] { parts->wait(2); });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  EXPECT_NE(std::string(error.what()).find("is truncated: expected 4096 bytes"), std::string::npos);
}

TEST_F(PartStreamTest, ADiskThatStallsIsNamedAndNothingHangs) {
  const auto parts = stream(options({2, 2}), {.fault = DiskScript::Fault::kStall, .fault_at = 5});
  const Error error = error_of([&] { parts->wait(5); });
  EXPECT_EQ(error.kind(), ErrorKind::kResources);
  EXPECT_NE(std::string(error.what()).find("the disk has given nothing"), std::string::npos);
}

TEST_F(PartStreamTest, AnInterruptEndsAWait) {
  const auto parts = stream(options({1, 1}), {.fault = DiskScript::Fault::kStall, .fault_at = 0});
  EXPECT_EQ(error_of([&] { parts->wait(0, [] { return true; }); }).kind(), ErrorKind::kInterrupted);
}

TEST_F(PartStreamTest, MayBeDestroyedWhileReadsAreUnderWay) {
  for (int i = 0; i < 20; ++i)
    stream(options({2, 2}),
           {.seed = static_cast<std::uint64_t>(i), .delay = std::chrono::microseconds(100)});
}

TEST_F(PartStreamTest, RealQueuesReadTheSame) {
  // The same parts from a file, by each queue that this machine has.
  char name[] = "/tmp/stagecoach-part-stream-XXXXXX";
  const int file = ::mkstemp(name);
  ASSERT_GE(file, 0);
  ::unlink(name);
  ASSERT_EQ(::write(file, disk_.content().data(), disk_.content().size()),
            static_cast<ssize_t>(disk_.content().size()));
  for (StreamedPart& part : parts_) part.descriptor = file;
  for (auto make : {make_uring_queue, make_pread_queue}) {
    auto queue = make(3);
    if (queue == nullptr) continue;  // a kernel without io_uring
    PartStream parts(parts_, options({2, 1}), std::move(queue), timeline_);
    for (std::uint64_t n = 0; n < 13; ++n) {
      expect_part(parts, n, parts.wait(n));
      parts.release(n);
    }
  }
  ::close(file);
}

}  // namespace
}  // namespace stagecoach
