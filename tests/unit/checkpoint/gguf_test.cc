#include "checkpoint/gguf/gguf.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "support_gguf.h"

namespace stagecoach {
namespace {

using test::gguf_string;
using test::GgufTensor;
using test::GgufWriter;
using test::raw;
using test::write_bytes;

namespace fs = std::filesystem;

// The message and its hint, or "accepted".
std::string error_of(const fs::path& path) {
  try {
    read_gguf(path);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    return std::string(error.what()) + "\n" + error.hint();
  }
  return "accepted";
}

std::string error_of(const std::string& bytes) {
  const TemporaryFolder folder;
  write_bytes(folder / "m.gguf", bytes);
  return error_of(folder / "m.gguf");
}

std::string error_of(const GgufWriter& writer) {
  return error_of(writer.bytes());
}

#define EXPECT_REFUSED(error, part)                                    \
  do {                                                                 \
    const std::string message = error;                                 \
    EXPECT_NE(message.find(part), std::string::npos) << message;       \
    EXPECT_EQ(message.find("accepted"), std::string::npos) << message; \
  } while (false)

GgufTensor floats(const std::string& name, std::vector<std::uint64_t> dimensions,
                  std::int64_t offset = -1) {
  std::uint64_t count = 1;
  for (const std::uint64_t dimension : dimensions) count *= dimension;
  return {name, std::move(dimensions), 0, std::string(count * 4, '\1'), offset};
}

GgufWriter small() {
  GgufWriter writer;
  writer.add("general.architecture", "llama").add("llama.block_count", 2u);
  writer.tensors = {floats("a", {3, 2}), floats("b", {5})};
  return writer;
}

TEST(Gguf, ReadsTensorsInPyTorchsOrder) {
  const TemporaryFolder folder;
  GgufWriter writer = small();
  writer.tensors.push_back({"q", {64, 3}, 8, std::string(6 * 34, '\2')});
  write_bytes(folder / "m.gguf", writer.bytes());
  const GgufCheckpoint checkpoint = read_gguf(folder / "m.gguf");
  ASSERT_EQ(checkpoint.set.tensors.size(), 3u);
  const StoredTensor &a = checkpoint.set.tensors.at("a"), &q = checkpoint.set.tensors.at("q");
  EXPECT_EQ(a.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(a.bytes, 24);
  EXPECT_EQ(a.format, BlockFormat::kF32);
  EXPECT_EQ(a.offset % 32, 0);
  EXPECT_EQ(q.shape, (std::vector<std::int64_t>{3, 64}));
  EXPECT_EQ(q.bytes, 204);
  EXPECT_EQ(q.type, "Q8_0");
  EXPECT_EQ(q.offset + q.bytes, q.file->size());
}

TEST(Gguf, ReadsVersion2AndOtherAlignments) {
  GgufWriter writer = small();
  writer.version = 2;
  writer.alignment = 8;
  writer.add("general.alignment", 8u);
  EXPECT_EQ(error_of(writer), "accepted");
  writer.alignment = 4096;
  writer.pairs.pop_back();
  writer.add("general.alignment", 4096u);
  EXPECT_EQ(error_of(writer), "accepted");
}

TEST(Gguf, ReadsEveryTypeOfValue) {
  const TemporaryFolder folder;
  GgufWriter writer;
  writer.add("u8", GgufType::kU8, std::uint8_t{200}).add("i8", GgufType::kI8, std::int8_t{-3});
  writer.add("u16", GgufType::kU16, std::uint16_t{60000});
  writer.add("i16", GgufType::kI16, std::int16_t{-300});
  writer.add("u32", 4000000000u).add("i32", GgufType::kI32, std::int32_t{-70000});
  writer.add("u64", GgufType::kU64, std::uint64_t{1} << 40);
  writer.add("i64", GgufType::kI64, std::int64_t{1} << 41);
  writer.add("f32", 0.5f).add("f64", GgufType::kF64, 0.25);
  writer.add("true", GgufType::kBool, std::uint8_t{1}).add("text", "naïve");
  writer.add_array("words", GgufType::kString, 2, gguf_string("one") + gguf_string(""));
  writer.add_array("numbers", GgufType::kI32, 3, raw(1) + raw(-2) + raw(3));
  writer.add_array("scores", GgufType::kF32, 2, raw(0.5f) + raw(-1.5f));
  writer.add_array("same", GgufType::kU32, 2, raw(7u) + raw(7u));
  writer.add_array("none", GgufType::kString, 0, "");
  write_bytes(folder / "m.gguf", writer.bytes());
  const GgufMetadata data = read_gguf(folder / "m.gguf").metadata;
  EXPECT_EQ(data.integer("u8"), 200);
  EXPECT_EQ(data.setting("i8"), -3);
  EXPECT_EQ(data.integer("u16"), 60000);
  EXPECT_EQ(data.setting("i16"), -300);
  EXPECT_EQ(data.integer("u32"), 4000000000);
  EXPECT_EQ(data.setting("i32"), -70000);
  EXPECT_EQ(data.integer("u64"), std::int64_t{1} << 40);
  EXPECT_EQ(data.integer("i64"), std::int64_t{1} << 41);
  EXPECT_EQ(data.number("f32"), 0.5);
  EXPECT_EQ(data.number("f64"), 0.25);
  EXPECT_EQ(data.number("u8"), 200);
  EXPECT_TRUE(data.boolean("true"));
  EXPECT_EQ(data.string("text"), "naïve");
  EXPECT_EQ(data.strings("words"), (std::vector<std::string>{"one", ""}));
  EXPECT_EQ(data.integers("numbers"), (std::vector<std::int64_t>{1, -2, 3}));
  EXPECT_EQ(data.numbers("scores"), (std::vector<float>{0.5f, -1.5f}));
  EXPECT_EQ(data.setting("same"), 7);
  EXPECT_TRUE(data.strings("none").empty());
}

TEST(Gguf, LookupsNameFileAndKey) {
  const TemporaryFolder folder;
  GgufWriter writer;
  writer.add("text", "x").add("number", 3u).add("negative", GgufType::kI32, -1).add("nan", NAN);
  writer.add("huge", GgufType::kU64, std::uint64_t{1} << 63).add("broken", "\xff");
  writer.add_array("layers", GgufType::kU32, 2, raw(4u) + raw(8u));
  write_bytes(folder / "m.gguf", writer.bytes());
  const GgufMetadata data = read_gguf(folder / "m.gguf").metadata;
  const auto refusal = [&](const auto& lookup) {
    try {
      lookup();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("m.gguf"), std::string::npos) << error.what();
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_REFUSED(refusal([&] { data.integer("absent"); }), "\"absent\" is missing");
  EXPECT_REFUSED(refusal([&] { data.integer("text"); }), "\"text\" should be a whole number");
  EXPECT_REFUSED(refusal([&] { data.integer("negative"); }), "found -1");
  EXPECT_REFUSED(refusal([&] { data.integer("huge"); }), "from 0 to 2^63-1");
  EXPECT_REFUSED(refusal([&] { data.integer("layers"); }), "found array");
  EXPECT_REFUSED(refusal([&] { data.string("number"); }), "should be a string, found u32");
  EXPECT_REFUSED(refusal([&] { data.string("broken"); }), "UTF-8");
  EXPECT_REFUSED(refusal([&] { data.boolean("number"); }), "true or false");
  EXPECT_REFUSED(refusal([&] { data.number("nan"); }), "finite");
  EXPECT_REFUSED(refusal([&] { data.strings("layers"); }), "should hold strings, found u32");
  EXPECT_REFUSED(refusal([&] { data.strings("text"); }), "should be an array");
  EXPECT_REFUSED(refusal([&] { data.setting("layers"); }), "4 for layer 0 and 8 for layer 1");
}

TEST(Gguf, RefusesEveryTruncation) {
  const std::string whole = small().bytes();
  for (std::size_t length = 0; length < whole.size(); ++length)
    ASSERT_NE(error_of(whole.substr(0, length)), "accepted") << length << " of " << whole.size();
  EXPECT_EQ(error_of(whole), "accepted");
}

// Whatever stands in any eight bytes of the file, the answer is an error or a file that makes
// sense.
TEST(Gguf, SurvivesAnyMutatedLength) {
  const std::string whole = small().bytes();
  const TemporaryFolder folder;
  for (const std::uint64_t value : {std::uint64_t{0}, std::uint64_t{1} << 63, ~std::uint64_t{0},
                                    std::uint64_t{1} << 32, std::uint64_t{0x7fffffffffffffff}}) {
    for (std::size_t at = 0; at + 8 <= whole.size(); ++at) {
      std::string spoilt = whole;
      std::memcpy(spoilt.data() + at, &value, sizeof(value));
      write_bytes(folder / "m.gguf", spoilt);
      try {
        const GgufCheckpoint read = read_gguf(folder / "m.gguf");
        for (const auto& [name, tensor] : read.set.tensors)
          ASSERT_LE(tensor.offset + tensor.bytes, static_cast<std::int64_t>(spoilt.size()));
      } catch (const Error& error) {
        ASSERT_EQ(error.kind(), ErrorKind::kData) << error.what();
      }
    }
  }
}

TEST(Gguf, RefusesOtherFilesAndVersions) {
  EXPECT_REFUSED(error_of(std::string("PK\3\4 and so on")), "not a GGUF file");
  EXPECT_REFUSED(error_of(std::string()), "not a GGUF file");
  GgufWriter writer = small();
  writer.version = 1;
  EXPECT_REFUSED(error_of(writer), "version 1, which is not supported");
  writer.version = 4;
  EXPECT_REFUSED(error_of(writer), "version 4");
  writer.version = 0x03000000;
  EXPECT_REFUSED(error_of(writer), "big-endian");
}

TEST(Gguf, RefusesHostileCounts) {
  for (const std::int64_t claimed :
       {std::numeric_limits<std::int64_t>::max(), std::int64_t{1} << 33}) {
    GgufWriter writer = small();
    writer.claimed_tensors = claimed;
    EXPECT_REFUSED(error_of(writer), "tensors");
    writer = small();
    writer.claimed_pairs = claimed;
    EXPECT_REFUSED(error_of(writer), "keys");
  }
  GgufWriter writer;
  writer.add_array("a", GgufType::kU8, std::uint64_t{1} << 63, "");
  EXPECT_REFUSED(error_of(writer), "claims 9223372036854775808 values");
  writer.pairs.clear();
  writer.add_array("a", GgufType::kString, 1'000'000'000, "");
  EXPECT_REFUSED(error_of(writer), "claims 1000000000 values");
  writer.pairs.clear();
  writer.add_raw("a", GgufType::kString, raw(std::uint64_t{17} << 20));
  EXPECT_REFUSED(error_of(writer), "expected at most 16777216");
  writer.pairs = {raw(~std::uint64_t{0})};
  EXPECT_REFUSED(error_of(writer), "a key");
}

TEST(Gguf, RefusesBadPairs) {
  GgufWriter writer = small();
  writer.add("general.architecture", "again");
  EXPECT_REFUSED(error_of(writer), "\"general.architecture\" is there twice");
  writer = small();
  writer.add_raw("key", static_cast<GgufType>(13), "");
  EXPECT_REFUSED(error_of(writer), "unknown type 13");
  writer = small();
  writer.add_array("key", GgufType::kArray, 0, "");
  EXPECT_REFUSED(error_of(writer), "array of arrays");
  writer = small();
  writer.add("", 1u);
  EXPECT_REFUSED(error_of(writer), "printable ASCII");
  writer = small();
  writer.add("\x1b[2J", 1u);
  EXPECT_EQ(error_of(writer).find('\x1b'), std::string::npos);
}

TEST(Gguf, RefusesBadTensors) {
  const auto error_with = [](const GgufTensor& tensor) {
    GgufWriter writer = small();
    writer.tensors.push_back(tensor);
    return error_of(writer);
  };
  EXPECT_REFUSED(error_with({"t", {1, 1, 1, 1, 1}, 0, "xxxx"}), "5 dimensions, expected 1 to 4");
  EXPECT_REFUSED(error_with({"t", {}, 0, "xxxx"}), "0 dimensions");
  EXPECT_REFUSED(error_with({"t", {4, 0}, 0, ""}), "a dimension of 0");
  EXPECT_REFUSED(error_with({"t", {1ull << 63}, 0, ""}), "expected 1 to 2^63-1");
  EXPECT_REFUSED(error_with({"t", {1ull << 40, 1ull << 40}, 0, ""}), "overflows");
  EXPECT_REFUSED(error_with({"t", {1ull << 62}, 0, ""}), "overflows");
  EXPECT_REFUSED(error_with({"t", {1ull << 40}, 0, ""}), "the file has");
  EXPECT_REFUSED(error_with(floats("a", {1})), "\"a\" is there twice");
  EXPECT_REFUSED(error_with(floats("", {1})), "tensor's name");
  EXPECT_REFUSED(error_with(floats("\xc3(", {1})), "UTF-8");
  EXPECT_REFUSED(error_with({"t", {33}, 8, std::string(68, 'x')}), "multiple of Q8_0's 32");
  EXPECT_REFUSED(error_with({"t", {256}, 16, std::string(66, 'x')}), "type 16 (IQ2_XXS)");
  EXPECT_REFUSED(error_with({"t", {256}, 39, std::string(66, 'x')}), "MXFP4");
  EXPECT_REFUSED(error_with({"t", {256}, 138, std::string(66, 'x')}), "type 138, which is not");
}

TEST(Gguf, RefusesTensorsThatShareBytesOrLeaveTheFile) {
  GgufWriter writer = small();
  writer.tensors = {floats("a", {16}), floats("b", {16}, 32)};
  EXPECT_REFUSED(error_of(writer), "inside another tensor");
  writer.tensors = {floats("a", {16}), floats("b", {16}, 0)};
  EXPECT_REFUSED(error_of(writer), "inside another tensor");
  writer.tensors = {floats("a", {16}), floats("b", {16}, 65)};
  EXPECT_REFUSED(error_of(writer), "expected a multiple of 32");
  writer.tensors = {floats("a", {16}, std::int64_t{1} << 61)};
  EXPECT_REFUSED(error_of(writer), "the file has");
  writer.tensors = {floats("a", {16}, std::numeric_limits<std::int64_t>::max())};
  EXPECT_REFUSED(error_of(writer), "far beyond the file");
  // A gap is no harm.
  writer.tensors = {floats("a", {16}), floats("b", {16}, 128)};
  writer.tensors[1].bytes += std::string(64, 'x');
  EXPECT_EQ(error_of(writer), "accepted");
}

TEST(Gguf, RefusesBadAlignments) {
  for (const std::uint32_t alignment : {0u, 4u, 12u, 1u << 31}) {
    GgufWriter writer = small();
    writer.add("general.alignment", alignment);
    EXPECT_REFUSED(error_of(writer), "general.alignment should be a power of two");
  }
}

class GgufSplit : public testing::Test {
 protected:
  static std::string part_name(int number, int count) {
    return fmt::format("m-{:05}-of-{:05}.gguf", number, count);
  }
  static GgufWriter part(int number, int count, int total) {
    GgufWriter writer;
    writer.add("split.no", GgufType::kU16, static_cast<std::uint16_t>(number - 1));
    writer.add("split.count", GgufType::kU16, static_cast<std::uint16_t>(count));
    writer.add("split.tensors.count", GgufType::kI32, total);
    if (number == 1) writer.add("general.name", "whole");
    writer.tensors = {floats(fmt::format("t{}", number), {8})};
    return writer;
  }
  void SetUp() override {
    for (int i = 1; i <= 3; ++i) write_bytes(folder_ / part_name(i, 3), part(i, 3, 3).bytes());
  }
  TemporaryFolder folder_;
};

TEST_F(GgufSplit, OpensFromAnyOfItsFiles) {
  for (int i = 1; i <= 3; ++i) {
    const GgufCheckpoint read = read_gguf(folder_ / part_name(i, 3));
    EXPECT_EQ(read.set.tensors.size(), 3u);
    EXPECT_EQ(read.metadata.string("general.name"), "whole");
    EXPECT_EQ(read.set.tensors.at("t2").file->path(), folder_ / part_name(2, 3));
  }
}

TEST_F(GgufSplit, NamesAMissingFile) {
  fs::remove(folder_ / part_name(2, 3));
  EXPECT_REFUSED(error_of(folder_ / part_name(3, 3)), "m-00002-of-00003.gguf is missing");
}

TEST_F(GgufSplit, RefusesFilesThatDoNotBelongTogether) {
  write_bytes(folder_ / part_name(2, 3), part(3, 3, 3).bytes());
  EXPECT_REFUSED(error_of(folder_ / part_name(1, 3)), "file 3 of 3, which its name contradicts");
  GgufWriter twice = part(2, 3, 3);
  twice.tensors[0].name = "t1";
  write_bytes(folder_ / part_name(2, 3), twice.bytes());
  EXPECT_REFUSED(error_of(folder_ / part_name(1, 3)), "is there twice, first in");
  write_bytes(folder_ / part_name(2, 3), part(2, 3, 3).bytes());
  write_bytes(folder_ / part_name(1, 3), part(1, 3, 4).bytes());
  EXPECT_REFUSED(error_of(folder_ / part_name(1, 3)), "the 3 files hold 3 tensors");
  write_bytes(folder_ / "renamed.gguf", part(1, 3, 3).bytes());
  EXPECT_REFUSED(error_of(folder_ / "renamed.gguf"), "NAME-00001-of-00003.gguf");
}

}  // namespace
}  // namespace stagecoach
