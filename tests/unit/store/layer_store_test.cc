#include "store/layer_store.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/hash.h"
#include "unit/store/small_store.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

std::vector<std::byte> read(const LayerStore& store, const SlabEntry& slab, PartKind kind,
                            bool verify = true) {
  const PartEntry& part = *slab.part(kind);
  std::vector<std::byte> extent(static_cast<std::size_t>(part.bytes));
  store.read_part(slab, part, extent, verify);
  return extent;
}

void flip_byte(const fs::path& path, std::int64_t offset) {
  std::string bytes = file_bytes(path);
  bytes[static_cast<std::size_t>(offset)] =
      static_cast<char>(bytes[static_cast<std::size_t>(offset)] ^ 0x40);
  set_file_bytes(path, bytes);
}

class LayerStoreTest : public ::testing::Test {
 protected:
  LayerStoreTest() : manifest_(write_small_store(root_)), slab_(manifest_.slabs[1]) {}

  TemporaryFolder folder_;
  fs::path root_ = folder_ / "store";
  Manifest manifest_;
  SlabEntry slab_;  // layer 0
  fs::path file_ = root_ / "layer-000.slab";
};

TEST_F(LayerStoreTest, ReadsBackWhatWasWritten) {
  const LayerStore store(root_);
  const std::vector<std::byte> extent = read(store, store.layer_slab(2), PartKind::kMlp);
  const PartTensors tensors =
      part_tensors(*store.layer_slab(2).part(PartKind::kMlp), extent.data());
  const TensorView& down = tensors[TensorRole::kDown];
  EXPECT_EQ(down.rows, 20);
  EXPECT_EQ(down.cols, 50);
  EXPECT_EQ(down.type, DType::kF16);
  EXPECT_EQ(down.layout, Layout::kPanels16);
  EXPECT_FALSE(tensors[TensorRole::kQuery]);
  EXPECT_FALSE(tensors[TensorRole::kGate]);
  for (const TensorEntry& tensor : slab_.part(PartKind::kMlp)->tensors) {
    std::vector<std::byte> expected;
    write_pattern(tensor.spec,
                  [&](auto bytes) { expected.insert(expected.end(), bytes.begin(), bytes.end()); });
    const TensorView& view = tensors[tensor.spec.role];
    ASSERT_EQ(view.bytes(), static_cast<std::int64_t>(expected.size()));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), view.data));
  }
}

TEST_F(LayerStoreTest, WholeStoreVerifies) {
  const LayerStore store(root_);
  std::int64_t last = 0, total = 0;
  const auto progress = [&](std::int64_t done, std::int64_t all) {
    EXPECT_GE(done, last);
    last = done;
    total = all;
  };
  EXPECT_EQ(verify_store(store, {.progress = progress}), std::vector<std::string>{});
  EXPECT_EQ(last, total);
  EXPECT_EQ(error_of([&] { verify_store(store, {.interrupted = [] { return true; }}); }).kind(),
            ErrorKind::kInterrupted);
}

TEST_F(LayerStoreTest, FlippedByteNamesFileAndPartAndTensor) {
  const PartEntry& part = *slab_.part(PartKind::kAttention);
  const TensorEntry& query = part.tensors[2];
  ASSERT_EQ(query.spec.role, TensorRole::kQuery);
  flip_byte(file_, part.offset + query.offset + 5);
  const LayerStore store(root_);
  const Error error = error_of([&] { read(store, slab_, PartKind::kAttention); });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  const std::string text = error.what();
  EXPECT_NE(text.find("layer-000.slab: the attention part is damaged: expected checksum"),
            std::string::npos)
      << text;
  EXPECT_NE(error.hint().find("stagecoach import CHECKPOINT STORE"), std::string::npos);
  EXPECT_NO_THROW(read(store, slab_, PartKind::kAttention, false));
  EXPECT_NO_THROW(read(store, slab_, PartKind::kMlp));
  const std::vector<std::string> problems = verify_store(store);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_NE(problems[0].find("layer-000.slab: q_proj.weight is damaged"), std::string::npos)
      << problems[0];
}

TEST_F(LayerStoreTest, FlippedPaddingIsFoundToo) {
  const PartEntry& part = *slab_.part(PartKind::kMlp);
  flip_byte(file_, part.offset + part.bytes - 1);
  const LayerStore store(root_);
  EXPECT_EQ(error_of([&] { read(store, slab_, PartKind::kMlp); }).kind(), ErrorKind::kData);
  const std::vector<std::string> problems = verify_store(store);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_NE(problems[0].find("between its tensors"), std::string::npos) << problems[0];
}

TEST_F(LayerStoreTest, EveryHeaderByteIsChecked) {
  for (const std::int64_t offset : {0, 7, 8, 11, 12, 16, 23, 24, 31, 32, 39, 40, 100, 4095}) {
    flip_byte(file_, offset);
    const LayerStore store(root_);
    EXPECT_EQ(error_of([&] { store.open_slab(slab_); }).kind(), ErrorKind::kData) << offset;
    EXPECT_EQ(verify_store(store).size(), 1u);
    flip_byte(file_, offset);
  }
}

TEST_F(LayerStoreTest, NewerSlabSaysSo) {
  std::string bytes = file_bytes(file_);
  bytes[8] = kStoreVersion + 1;
  set_file_bytes(file_, bytes);
  const LayerStore store(root_);
  const std::string text = error_of([&] { store.open_slab(slab_); }).what();
  EXPECT_NE(text.find("newer"), std::string::npos) << text;
}

TEST_F(LayerStoreTest, SwappedSlabsAreNoticedByTheirIds) {
  fs::copy_file(root_ / "layer-001.slab", file_, fs::copy_options::overwrite_existing);
  const LayerStore store(root_);
  const std::string text = error_of([&] { store.open_slab(slab_); }).what();
  EXPECT_NE(text.find("another slab"), std::string::npos) << text;
}

TEST_F(LayerStoreTest, WrongLengthsAreNamed) {
  const std::string bytes = file_bytes(file_);
  for (const std::string& wrong :
       {bytes.substr(0, bytes.size() - 1), bytes + "x", bytes.substr(0, 100), std::string()}) {
    set_file_bytes(file_, wrong);
    const LayerStore store(root_);
    const Error error = error_of([&] { read(store, slab_, PartKind::kMlp); });
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    EXPECT_NE(std::string(error.what())
                  .find(fmt::format("expected {} bytes, found {}", bytes.size(), wrong.size())),
              std::string::npos)
        << error.what();
    EXPECT_EQ(verify_store(store).size(), 1u);
  }
}

TEST_F(LayerStoreTest, MissingSlabIsNamedAndTheOthersStillWork) {
  fs::remove(file_);
  const LayerStore store(root_);
  const Error error = error_of([&] { read(store, slab_, PartKind::kMlp); });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  EXPECT_NE(std::string(error.what()).find("layer-000.slab is missing"), std::string::npos);
  EXPECT_NE(error.hint(), "");
  EXPECT_NO_THROW(read(store, store.layer_slab(1), PartKind::kMlp));
  EXPECT_EQ(verify_store(store).size(), 1u);
}

TEST_F(LayerStoreTest, SlabsOpenOnceFromManyThreads) {
  const LayerStore store(root_);
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&] {
      for (std::int64_t layer = 0; layer < 3; ++layer) {
        const SlabEntry& slab = store.layer_slab(layer);
        if (xxh3(read(store, slab, PartKind::kMlp)) == slab.part(PartKind::kMlp)->checksum) ++good;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 24);
}

TEST_F(LayerStoreTest, StoresAreFoundUpToTwoLevelsDown) {
  const fs::path root = folder_ / "models";
  fs::create_directories(root / "gpt");
  fs::copy(root_, root / "b");
  fs::copy(root_, root / "gpt/1");
  fs::copy(root_, root / "gpt/2");
  fs::create_directories(root / "too/deep/by");
  fs::copy(root_, root / "too/deep/by/one");
  EXPECT_EQ(find_stores(root), (std::vector<fs::path>{root / "b", root / "gpt/1", root / "gpt/2"}));
  EXPECT_EQ(find_stores(root_), std::vector<fs::path>{root_});
  EXPECT_TRUE(find_stores(folder_ / "nothing").empty());
}

}  // namespace
}  // namespace stagecoach
