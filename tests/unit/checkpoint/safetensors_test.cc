#include "checkpoint/safetensors/safetensors.h"
#include "checkpoint/foreign_text.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "checkpoint/safetensors/safetensors_set.h"
#include "support_safetensors.h"

namespace stagecoach {
namespace {

using namespace test;

std::string error_of(const std::string& bytes) {
  const TemporaryFolder folder;
  write_bytes(folder / "x.safetensors", bytes);
  try {
    const SafetensorsFile file(folder / "x.safetensors");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    EXPECT_NE(std::string(error.what()).find("x.safetensors"), std::string::npos) << error.what();
    return error.what();
  }
  return "accepted";
}

std::string error_of(const std::string& header, const std::string& data) {
  return error_of(safetensors_bytes(header, data));
}

#define EXPECT_REFUSED(text, part) EXPECT_PRED_FORMAT2(testing::IsSubstring, part, text)

const std::string kOne = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";

TEST(SafetensorsFile, ReadsTypesShapesAndPlaces) {
  const TemporaryFolder folder;
  write_safetensors(folder / "m.safetensors",
                    {{"flag", "BOOL", {3}, std::string(3, '\1')},
                     make_tensor("scalar", DType::kBF16, {}, {1.5f}),
                     {"empty", "F16", {4, 0}, ""},
                     make_tensor("b", DType::kF32, {2, 1}, {7.0f, 8.0f})});
  const SafetensorsFile file(folder / "m.safetensors");
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors().at("flag").format(), std::nullopt);
  EXPECT_EQ(file.tensors().at("scalar").format(), BlockFormat::kBF16);
  EXPECT_TRUE(file.tensors().at("scalar").shape.empty());
  EXPECT_EQ(file.tensors().at("empty").bytes, 0);
  const SafetensorsEntry& b = file.tensors().at("b");
  EXPECT_EQ(b.shape, (std::vector<std::int64_t>{2, 1}));
  EXPECT_EQ(b.offset + b.bytes, file.file().size());
  float values[2];
  file.file().read_at(b.offset, std::as_writable_bytes(std::span(values)));
  EXPECT_EQ(values[0], 7.0f);
  EXPECT_EQ(values[1], 8.0f);
}

TEST(SafetensorsFile, AcceptsWhitespaceOnBothSidesAndAnEmptyFile) {
  EXPECT_EQ(error_of(" \n\t" + kOne + "   ", "1234"), "accepted");
  EXPECT_EQ(error_of("{}", ""), "accepted");
}

TEST(SafetensorsFile, FollowsSymbolicLinks) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "blobs");
  write_bytes(folder / "blobs/abc", safetensors_bytes(kOne, "1234"));
  std::filesystem::create_symlink("blobs/abc", folder / "model.safetensors");
  EXPECT_EQ(SafetensorsFile(folder / "model.safetensors").tensors().size(), 1u);
}

TEST(SafetensorsFile, RefusesBrokenLengths) {
  EXPECT_REFUSED(error_of(""), "expected at least the 8");
  EXPECT_REFUSED(error_of("1234567"), "7 bytes");
  // None of these may allocate what the length claims.
  EXPECT_REFUSED(error_of(std::string(7, '\xff') + "\x3c{}"), "at most 100000000");
  EXPECT_REFUSED(error_of(std::string("\x3c") + std::string(7, '\xff') + "{}"),
                 "at most 100000000");
  EXPECT_REFUSED(error_of(std::string("\x00\xe1\xf5\x05\x00\x00\x00\x00{}", 10)), "only 2 follow");
  EXPECT_REFUSED(error_of(std::string("\x01\xe1\xf5\x05\x00\x00\x00\x00{}", 10)),
                 "at most 100000000");
}

TEST(SafetensorsFile, RefusesBrokenHeaders) {
  EXPECT_REFUSED(error_of("", ""), "not valid JSON");
  EXPECT_REFUSED(error_of("{", ""), "not valid JSON");
  EXPECT_REFUSED(error_of("\xff", ""), "not valid JSON");
  EXPECT_REFUSED(error_of("{\"\xff\":1}", ""), "not valid JSON");
  EXPECT_REFUSED(error_of(kOne + "x", "1234"), "not valid JSON");
  EXPECT_REFUSED(error_of("[]", ""), "should be a JSON object");
  EXPECT_REFUSED(error_of(R"({"a":1})", ""), "should be a JSON object");
  EXPECT_REFUSED(error_of(std::string(100000, '['), ""), "nested deeper");
  EXPECT_REFUSED(error_of(R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", "1234"),
                 "nested deeper");
  EXPECT_REFUSED(error_of(R"({"__metadata__":{"a":1}})", ""), "to strings");
  EXPECT_REFUSED(error_of(R"({"__metadata__":[]})", ""), "__metadata__");
}

TEST(SafetensorsFile, RefusesDuplicateKeys) {
  const std::string entry = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  EXPECT_REFUSED(error_of(R"({"a":)" + entry + R"(,"a":)" + entry + "}", "1234"), "stands twice");
  EXPECT_REFUSED(
      error_of(R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", "1234"),
      "stands twice");
}

TEST(SafetensorsFile, RefusesBrokenEntries) {
  const auto entry = [](const std::string& fields) {
    return error_of(R"({"a":{)" + fields + "}}", "1234");
  };
  EXPECT_REFUSED(entry(R"("shape":[1],"data_offsets":[0,4])"), "\"dtype\" is missing");
  EXPECT_REFUSED(entry(R"("dtype":"F32","data_offsets":[0,4])"), "\"shape\" is missing");
  EXPECT_REFUSED(entry(R"("dtype":"F32","shape":[1])"), "\"data_offsets\" is missing");
  EXPECT_REFUSED(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"strides":[1])"),
                 "unknown key");
  EXPECT_REFUSED(entry(R"("dtype":"F33","shape":[1],"data_offsets":[0,4])"), "unknown dtype");
  EXPECT_REFUSED(entry(R"("dtype":7,"shape":[1],"data_offsets":[0,4])"), "a string");
  EXPECT_REFUSED(entry(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), "whole numbers");
  EXPECT_REFUSED(entry(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), "whole numbers");
  EXPECT_REFUSED(entry(R"("dtype":"F32","shape":1,"data_offsets":[0,4])"), "an array");
  EXPECT_REFUSED(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), "[begin, end]");
  EXPECT_REFUSED(entry(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), "before they begin");
  EXPECT_REFUSED(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,9223372036854775808])"),
                 "whole numbers");
  EXPECT_REFUSED(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), "takes 8 bytes");
  EXPECT_REFUSED(entry(R"("dtype":"F4","shape":[3],"data_offsets":[0,4])"), "whole bytes");
}

TEST(SafetensorsFile, RefusesShapesThatOverflow) {
  const auto shape = [](const std::string& text) {
    return error_of(R"({"a":{"dtype":"F32","shape":)" + text + R"(,"data_offsets":[0,4]}})",
                    "1234");
  };
  EXPECT_REFUSED(shape("[2,18446744073709551614]"), "whole numbers");
  EXPECT_REFUSED(shape("[2,9223372036854775807]"), "overflows");
  EXPECT_REFUSED(shape("[4294967296,4294967296]"), "overflows");
  EXPECT_REFUSED(shape("[2305843009213693953]"), "overflows");  // times 4 bytes is 4 again
}

TEST(SafetensorsFile, RefusesHolesOverlapsAndWrongSizes) {
  EXPECT_REFUSED(error_of(kOne, "12345"), "found 5");
  EXPECT_REFUSED(error_of(kOne, "12"), "found 2");
  EXPECT_REFUSED(error_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "12345678"),
                 "a hole");
  EXPECT_REFUSED(error_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                          R"("b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
                          "123456789012"),
                 "a hole");
  // Many tensors on the same bytes: a small file must not become a big model.
  EXPECT_REFUSED(error_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                          R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                          "1234"),
                 "overlap");
  EXPECT_REFUSED(error_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                          R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                          "12345678"),
                 "overlap");
}

TEST(QuoteName, PrintsHostileNamesHarmlessly) {
  const std::string text = error_of("{\"\\u001b[2J" + std::string(1000, 'n') + "\":1}", "");
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_LT(text.size(), 400u);
}

class ShardedSet : public testing::Test {
 protected:
  ShardedSet() {
    write_safetensors(folder_ / "one.safetensors", {make_tensor("a", DType::kF32, {1}, {1.0f})});
    write_safetensors(folder_ / "two.safetensors", {make_tensor("b", DType::kF16, {1}, {2.0f})});
  }
  std::string error_of_index(const std::string& text) {
    write_bytes(folder_ / "model.safetensors.index.json", text);
    try {
      return fmt::format("accepted {}", open_safetensors(folder_.path()).tensors.size());
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
      return error.what();
    }
  }
  std::string error_of_map(const std::string& map) {
    return error_of_index(R"({"weight_map":{)" + map + "}}");
  }

  TemporaryFolder folder_;
};

TEST_F(ShardedSet, ReadsShardsAndIgnoresTheTotal) {
  EXPECT_EQ(
      error_of_index(
          R"({"metadata":{"total_size":-1},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})"),
      "accepted 2");
}

TEST_F(ShardedSet, RefusesAnIndexThatDisagrees) {
  EXPECT_REFUSED(error_of_map(R"("a":"two.safetensors","b":"one.safetensors")"), "found it in");
  EXPECT_REFUSED(
      error_of_map(R"("a":"one.safetensors","b":"two.safetensors","c":"one.safetensors")"),
      "in no shard");
  write_safetensors(folder_ / "two.safetensors", {make_tensor("b", DType::kF16, {1}, {2.0f}),
                                                  make_tensor("c", DType::kF16, {1}, {2.0f})});
  EXPECT_REFUSED(error_of_map(R"("a":"one.safetensors","b":"two.safetensors")"),
                 "does not list tensor \"c\"");
  write_safetensors(folder_ / "two.safetensors", {make_tensor("b", DType::kF16, {1}, {2.0f}),
                                                  make_tensor("a", DType::kF16, {1}, {2.0f})});
  EXPECT_REFUSED(error_of_map(R"("a":"one.safetensors","b":"two.safetensors")"), "two shards");
}

TEST_F(ShardedSet, RefusesFilesOutsideTheDirectory) {
  for (const std::string name : {"", "/etc/passwd", "../one.safetensors", "sub/one.safetensors",
                                 "..", "a\\\\b", "a\\u0000b"})
    EXPECT_REFUSED(error_of_map("\"a\":\"" + name + "\""), "its own directory");
  EXPECT_REFUSED(error_of_map(R"("a":"three.safetensors")"), "missing");
  EXPECT_REFUSED(error_of_map(R"("a":3)"), "file name");
  EXPECT_REFUSED(error_of_index("{}"), "\"weight_map\" is missing");
  EXPECT_REFUSED(error_of_index("{"), "not valid JSON");
}

}  // namespace
}  // namespace stagecoach
