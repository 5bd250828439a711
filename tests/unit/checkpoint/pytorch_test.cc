#include <gtest/gtest.h>

#include <array>
#include <functional>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/import.h"
#include "checkpoint/pytorch/pytorch_file.h"
#include "checkpoint/pytorch/pytorch_set.h"
#include "largest_allocation.h"
#include "store/manifest.h"
#include "support_pytorch.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;
using namespace test;

const fs::path kData = fs::path(TEST_DATA_DIR) / "pytorch";

std::string bytes_of(const fs::path& path) {
  return read_text_file(path, 1 << 20);
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    return error.what();
  }
  return "accepted";
}

std::string error_of(const std::string& bytes) {
  static const TemporaryFolder folder;  // one for thousands of broken files
  folder.write("x.bin", bytes);
  const std::string error = error_of([&] {
    TensorSet set;
    add_pytorch_file(set, folder / "x.bin");
  });
  if (error != "accepted") {
    EXPECT_NE(error.find("x.bin"), std::string::npos) << error;
  }
  return error;
}

std::string error_of(const TensorText& tensor, const std::string& storage) {
  return error_of(torch_archive(tensor, storage));
}

#define EXPECT_REFUSED(text, part) EXPECT_PRED_FORMAT2(testing::IsSubstring, part, text)

// What the checkpoint's store says of itself, with the checksums of all its parts.
Json manifest_of(const fs::path& checkpoint) {
  const TemporaryFolder folder;
  return to_json(import_store(*open_huggingface(checkpoint), folder / "store", {.name = "m"}));
}

TEST(PyTorch, EveryFormOfAModelMakesTheSameStore) {
  for (const char* family : {"gpt2", "gptj-f16", "gptj-bf16"}) {
    const auto expected = manifest_of(kData / family);
    int variants = 0;
    for (const fs::directory_entry& item : fs::directory_iterator(kData / family)) {
      if (item.path().extension() != ".bin") continue;
      const TemporaryFolder folder;
      fs::copy(kData / family / "config.json", folder / "config.json");
      fs::copy(item.path(), folder / "pytorch_model.bin");
      EXPECT_EQ(manifest_of(folder.path()), expected) << item.path();
      ++variants;
    }
    EXPECT_EQ(variants, std::string(family) == "gpt2" ? 8 : 2);
  }
}

TEST(PyTorch, ShardsOfBothKindsUnderAnIndex) {
  const TemporaryFolder folder;
  fs::copy(kData / "gpt2/sharded", folder.path());
  fs::copy(kData / "gpt2/config.json", folder / "config.json");
  EXPECT_EQ(manifest_of(folder.path()), manifest_of(kData / "gpt2"));

  // As for safetensors: nothing may be missing, left over or elsewhere.
  const std::string index = bytes_of(folder / "pytorch_model.bin.index.json");
  const auto refusal = [&](const std::string& from, const std::string& to) {
    std::string changed = index;
    changed.replace(changed.find(from), from.size(), to);
    folder.write("pytorch_model.bin.index.json", changed);
    return error_of([&] { open_pytorch(folder.path()); });
  };
  EXPECT_REFUSED(refusal("transformer.wte.weight", "transformer.wxe.weight"), "in no shard");
  EXPECT_REFUSED(refusal("pytorch_model-00001", "../ytorch_model-00001"), "its own directory");
  EXPECT_REFUSED(refusal("model-00001-of", "model-00002-of"), "found it in");
  folder.write("pytorch_model.bin.index.json", index);
  fs::remove(folder / "pytorch_model-00002-of-00002.bin");
  EXPECT_REFUSED(error_of([&] { open_pytorch(folder.path()); }), "which is missing");
}

TEST(PyTorch, SafetensorsComeFirst) {
  const TemporaryFolder folder;
  for (const char* name : {"config.json", "model.safetensors"})
    fs::copy(kData / "gpt2" / name, folder / name);
  folder.write("pytorch_model.bin", "broken");
  EXPECT_EQ(manifest_of(folder.path()), manifest_of(kData / "gpt2"));
}

TEST(PyTorch, DescribesTensors) {
  for (const char* name : {"two.bin", "two-stream.bin"}) {
    TensorSet set;
    add_pytorch_file(set, kData / name);
    ASSERT_EQ(set.tensors.size(), 2u);
    const StoredTensor& a = set.tensors.at("a");
    EXPECT_EQ(a.shape, (std::vector<std::int64_t>{3}));
    EXPECT_TRUE(a.strides.empty());
    EXPECT_EQ(a.bytes, 12);
    EXPECT_EQ(a.type, "FloatStorage");
    float values[3];
    a.file->read_at(a.offset, std::as_writable_bytes(std::span(values)));
    EXPECT_EQ(values[2], 2.0f);
    const StoredTensor& b = set.tensors.at("b");
    EXPECT_EQ(b.shape, (std::vector<std::int64_t>{2, 2}));
    EXPECT_EQ(b.strides, (std::vector<std::int64_t>{1, 2}));
    EXPECT_EQ(b.type, "LongStorage");
    EXPECT_FALSE(b.format);
  }
}

TEST(PyTorch, ReadsViews) {
  const std::string storage(24, '\0');
  const auto tensor_of = [&](const TensorText& text) {
    const TemporaryFolder folder;
    folder.write("x.bin", torch_archive(text, storage));
    TensorSet set;
    add_pytorch_file(set, folder / "x.bin");
    StoredTensor tensor = set.tensors.at("a");
    tensor.offset -= static_cast<std::int64_t>(torch_archive(text, storage).find(storage));
    return tensor;
  };
  const StoredTensor column =
      tensor_of({.elements = 6, .offset = 1, .shape = {3, 1}, .strides = {2, 77}});
  EXPECT_EQ(column.offset, 4);
  EXPECT_EQ(column.bytes, 20);
  EXPECT_EQ(column.strides, (std::vector<std::int64_t>{2, 77}));
  const StoredTensor rows =
      tensor_of({.elements = 6, .offset = 2, .shape = {1, 2, 2}, .strides = {0, 2, 1}});
  EXPECT_EQ(rows.offset, 8);
  EXPECT_EQ(rows.bytes, 16);
  EXPECT_TRUE(rows.strides.empty());  // strides of dimensions of one say nothing
  const StoredTensor scalar = tensor_of({.elements = 6, .offset = 5, .shape = {}, .strides = {}});
  EXPECT_EQ(scalar.offset, 20);
  EXPECT_EQ(scalar.bytes, 4);
  const StoredTensor empty =
      tensor_of({.elements = 6, .offset = 9, .shape = {INT64_MAX, 0}, .strides = {1, 1}});
  EXPECT_EQ(empty.bytes, 0);
  const StoredTensor repeated =
      tensor_of({.elements = 6, .offset = 0, .shape = {4, 6}, .strides = {0, 1}});
  EXPECT_EQ(repeated.bytes, 24);
}

TEST(PyTorch, RefusesTensorsOutsideTheirStorage) {
  const std::string storage(12, '\0');
  EXPECT_EQ(error_of(TensorText{}, storage), "accepted");
  EXPECT_REFUSED(error_of({.offset = 1}, storage), "reaches element 3 of a storage of 3");
  EXPECT_REFUSED(error_of({.offset = 3, .shape = {}, .strides = {}}, storage), "reaches");
  EXPECT_REFUSED(error_of({.offset = INT64_MAX}, storage), "overflows");
  EXPECT_REFUSED(error_of({.offset = INT64_MAX, .shape = {}, .strides = {}}, storage), "reaches");
  EXPECT_REFUSED(error_of({.offset = -1}, storage), "its offset should be a whole number");
  EXPECT_REFUSED(error_of({.strides = {-1}}, storage), "its strides should be a whole number");
  EXPECT_REFUSED(error_of({.shape = {-3}}, storage), "its shape should be a whole number");
  EXPECT_REFUSED(error_of({.strides = {2}}, storage), "reaches");
  EXPECT_REFUSED(error_of({.strides = {INT64_MAX}}, storage), "overflows");
  EXPECT_REFUSED(error_of({.shape = {2, INT64_MAX}, .strides = {2, 1}}, storage), "overflows");
  EXPECT_REFUSED(error_of({.shape = {3, 1}}, storage), "have 1 strides");
  EXPECT_REFUSED(error_of({.elements = 4}, storage), "should have 16 bytes, found 12");
  EXPECT_REFUSED(error_of({.elements = INT64_MAX}, storage), "without a proper key or size");
  EXPECT_REFUSED(error_of({.key = "1"}, storage), "is not in the file");
  EXPECT_REFUSED(error_of({.key = "../byteorder"}, storage), "is not in the file");
  EXPECT_REFUSED(error_of({.storage = "QInt8Storage"}, storage), "is not supported");
}

// A few bytes that stand for a petabyte, by stride 0 or by many names for one storage.
TEST(PyTorch, BoundsWhatTensorsHoldTogether) {
  const std::string storage(12, '\0');
  EXPECT_REFUSED(error_of({.shape = {1 << 20, 1 << 20, 1 << 10}, .strides = {0, 0, 0}}, storage),
                 "2 times the file");
  EXPECT_REFUSED(error_of({.shape = std::vector<std::int64_t>(40, 1 << 20),
                           .strides = std::vector<std::int64_t>(40, 0)},
                          storage),
                 "");
  const std::string many(4000, '\0');
  std::string program = "}";
  const TensorText whole{.elements = 1000, .shape = {1000}, .strides = {1}};
  for (int i = 0; i < 100; ++i)
    program +=
        pickled_text(std::to_string(i)) + (i == 0 ? whole.pickle() + "q\x01" : "h\x01") + "s";
  EXPECT_REFUSED(error_of(torch_archive(pickled(program), many)), "2 times the file");
}

TEST(PyTorch, RefusesWhatIsNotAStateDict) {
  const auto of = [](const std::string& program) {
    return error_of(torch_archive(pickled(program), std::string(12, '\0')));
  };
  const std::string tensor = TensorText{}.pickle();
  EXPECT_REFUSED(of("cos\nsystem\nU\x04true\x85R"), "wants to call \"os.system\": refused");
  EXPECT_REFUSED(of("N"), "should hold a dict of tensors");
  EXPECT_REFUSED(of("}"), "found nothing");
  EXPECT_REFUSED(of("]" + tensor + "a"), "should hold a dict of tensors");
  EXPECT_REFUSED(of("}" + pickled_text("weights\n") +
                    "}U\x01"
                    "a" +
                    tensor + "ss"),
                 "found \"weights\\n\"");
  EXPECT_EQ(of("}" + pickled_text("module") +
               "}U\x01"
               "a" +
               tensor + "ss"),
            "accepted");
  EXPECT_REFUSED(of("}(" + pickled_text("model") +
                    "}U\x01"
                    "a" +
                    tensor + "s" + pickled_text("state_dict") +
                    "}U\x01"
                    "a" +
                    tensor + "su"),
                 "several dicts of tensors");
  EXPECT_REFUSED(of("}(U\x01"
                    "a" +
                    tensor +
                    "U\x01"
                    "a" +
                    tensor + "u"),
                 "stands twice");
  EXPECT_REFUSED(of("}K\x01" + tensor + "s"), "names should be text");
  EXPECT_EQ(of("}(U\x01"
               "a" +
               tensor +
               "U\x01"
               "bK\x01u"),
            "accepted");  // with a warning
}

TEST(PyTorch, RefusesBrokenTensorCalls) {
  const auto of = [](const std::string& value) {
    return error_of(torch_archive(pickled("}U\x01"
                                          "a" +
                                          value + "s"),
                                  std::string(12, '\0')));
  };
  const std::string tensor = TensorText{}.pickle();
  const std::string v2 = pickled_global("torch._utils", "_rebuild_tensor_v2");
  const std::string parameter = pickled_global("torch._utils", "_rebuild_parameter");
  EXPECT_EQ(of(parameter + tensor + "\x88N\x87R"), "accepted");
  EXPECT_EQ(of(pickled_global("torch.nn.parameter", "Parameter") + tensor + "\x85\x81"),
            "accepted");
  EXPECT_REFUSED(of(parameter + ")R"), "a parameter should hold a tensor");
  EXPECT_REFUSED(of(parameter + "N\x85R"), "a parameter should hold a tensor");
  EXPECT_REFUSED(of(v2 + ")R"), "takes 6 arguments, found 0");
  EXPECT_REFUSED(of(v2 + "(NNNNNNtR"), "made of a storage");
  EXPECT_REFUSED(of(v2 + "(NNNNNN}U\x04"
                         "conjK\x01stR"),
                 "with metadata");
  EXPECT_REFUSED(of(v2 + "(NQNNNNNtR"), "not a storage");
  EXPECT_REFUSED(of(pickled_global("torch._utils", "_rebuild_qtensor") + ")R"), "wants to call");
}

TEST(PyTorch, RefusesOtherContainersByName) {
  EXPECT_REFUSED(error_of(std::string()), "was not written by torch.save");
  EXPECT_REFUSED(error_of(std::string("PK\x03\x04")), "no ZIP directory");
  EXPECT_REFUSED(error_of(std::string(257, '\0') + "ustar" + std::string(300, '\0')),
                 "tar archive of a PyTorch older than");
  EXPECT_REFUSED(error_of(std::string("version https://git-lfs.github.com/spec/v1\n")),
                 "Git LFS pointer");
  EXPECT_REFUSED(error_of(ZipText{.members = {{.name = "a/b/data.pkl"}}}.bytes()),
                 "without FOLDER/data.pkl");
  EXPECT_REFUSED(
      error_of(ZipText{.members = {{.name = "a/data.pkl"}, {.name = "b/data.pkl"}}}.bytes()),
      "two checkpoints");
  EXPECT_REFUSED(
      error_of(ZipText{.members = {{.name = "a/data.pkl"}, {.name = "a/constants.pkl"}}}.bytes()),
      "TorchScript");
  EXPECT_REFUSED(
      error_of(ZipText{.members = {{.name = "a/data.pkl"}, {.name = "a/byteorder", .data = "big"}}}
                   .bytes()),
      "byte order is \"big\"");
}

TEST(PyTorch, RefusesOldStreamsThatContradictThemselves) {
  const std::string good = bytes_of(kData / "two-stream.bin");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string bytes = good;
    const std::size_t at = bytes.find(from);
    EXPECT_NE(at, std::string::npos);
    return error_of(bytes.replace(at, from.size(), to));
  };
  EXPECT_EQ(error_of(good), "accepted");
  EXPECT_REFUSED(with("M\xe9\x03", "M\xea\x03"), "version is not 1001");
  EXPECT_REFUSED(with("little_endianq\x02\x88", "little_endianq\x02\x89"), "little-endian");
  EXPECT_REFUSED(error_of(good + "x"), "1 bytes follow");
  EXPECT_REFUSED(with("LongStorage", "IntStorage\x20"), "not supported");
  EXPECT_REFUSED(with("LongStorage\nq", "IntStorage\nq"), "16 bytes follow");
}

// Whatever a broken file says, it is refused or read, in memory of its own size.
class Broken : public testing::TestWithParam<const char*> {};

TEST_P(Broken, TruncatedFilesAreRefused) {
  const std::string good = bytes_of(kData / GetParam());
  EXPECT_EQ(error_of(good), "accepted");
  for (std::size_t length = 0; length < good.size(); ++length)
    ASSERT_NE(error_of(good.substr(0, length)), "accepted") << length;
}

TEST_P(Broken, FlippedBytesAreReadOrRefusedWithinTheFilesSize) {
  const std::string good = bytes_of(kData / GetParam());
  std::size_t refused = 0;
  reset_largest_allocation();
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (const int flipped : {0x01, 0x80, 0xff}) {
      std::string bytes = good;
      bytes[at] = static_cast<char>(bytes[at] ^ flipped);
      refused += error_of(bytes) == "accepted" ? 0 : 1;
    }
  }
  EXPECT_GT(refused, good.size());
  EXPECT_LT(largest_allocation(), 16 * good.size() + 8192);
}

INSTANTIATE_TEST_SUITE_P(Files, Broken, testing::Values("two.bin", "two-stream.bin"),
                         [](const auto& file) {
                           return std::string(file.param).find("stream") == std::string::npos
                                      ? "Archive"
                                      : "Stream";
                         });

}  // namespace
}  // namespace stagecoach
