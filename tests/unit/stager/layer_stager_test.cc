#include "stager/layer_stager.h"

#include <gtest/gtest.h>

#include <cstring>

#include "../store/small_store.h"

namespace stagecoach {
namespace {

class LayerStagerTest : public testing::TestWithParam<bool> {  // whether the head is tied
 protected:
  LayerStagerTest() {
    spec_ = small_spec();
    spec_.vocab_size = 16 * 5 + 3;
    spec_.num_hidden_layers = 4;
    spec_.tied_head = GetParam();
    write_small_store(folder_.path() / "store", spec_);
    store_.emplace(folder_.path() / "store");
    resident_.emplace(*store_, all_in_memory({.layers = {{0, 4}}, .embedding = true, .head = true}),
                      StagerOptions{}, timeline_);
  }

  static StagingPlan plan(std::vector<bool> pinned, int attention, int mlp) {
    StagingPlan plan;
    for (std::size_t i = 0; i < pinned.size(); ++i)
      plan.layers.push_back({static_cast<std::int64_t>(i), pinned[i]});
    plan.attention_slots = attention;
    plan.mlp_slots = mlp;
    plan.embedding = plan.head = Residence::kDisk;
    return plan;
  }

  void expect_layer(LayerSource& source, std::int64_t layer, NextUse next) {
    for (const PartKind part : {PartKind::kAttention, PartKind::kMlp}) {
      const LayerLease lease = source.lease(layer, part, next);
      const LayerLease expected = resident_->lease(layer, part, NextUse::kNextPass);
      for (int role = 0; role < kTensorRoles; ++role) {
        const TensorView& view = expected[static_cast<TensorRole>(role)];
        const TensorView& found = lease[static_cast<TensorRole>(role)];
        ASSERT_EQ(static_cast<bool>(view), static_cast<bool>(found));
        if (!view) continue;
        EXPECT_EQ(std::memcmp(view.data, found.data, static_cast<std::size_t>(view.bytes())), 0)
            << "layer " << layer << ", role " << role;
      }
    }
  }

  std::vector<float> gathered(LayerSource& source, TensorRole role,
                              const std::vector<std::int32_t>& ids) {
    std::vector<float> rows;
    source.gather(
        role, ids,
        [&](std::size_t first, const TensorView& table, std::span<const std::int32_t> local) {
          EXPECT_EQ(first * static_cast<std::size_t>(table.cols), rows.size());
          for (const std::int32_t id : local) {
            EXPECT_LT(id, table.rows);
            rows.resize(rows.size() + static_cast<std::size_t>(table.cols));
            unpack_rows(table.layout, table.type, table.data, table.cols, id, 1,
                        rows.data() + rows.size() - table.cols);
          }
        });
    return rows;
  }

  std::vector<float> head_rows(LayerSource& source, int* tiles = nullptr) {
    std::vector<float> rows;
    source.head_matrix([&](std::int64_t first, const TensorView& tile) {
      EXPECT_EQ(first * tile.cols, static_cast<std::int64_t>(rows.size()));
      rows.resize(rows.size() + static_cast<std::size_t>(tile.rows * tile.cols));
      unpack_rows(tile.layout, tile.type, tile.data, tile.cols, 0, tile.rows,
                  rows.data() + first * tile.cols);
      if (tiles != nullptr) ++*tiles;
    });
    return rows;
  }

  static bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  }

  ModelSpec spec_;
  TemporaryFolder folder_;
  std::optional<LayerStore> store_;
  Timeline timeline_;
  std::optional<LayerStager> resident_;
};

TEST_P(LayerStagerTest, StreamedLayersAreTheStoresOwnInEveryPass) {
  for (const auto& pinned : std::vector<std::vector<bool>>{
           {false, false, false, false}, {true, false, true, false}, {false, true, true, true}}) {
    LayerStager stager(*store_, plan(pinned, 1, 1), {}, timeline_);
    for (int pass = 0; pass < 3; ++pass)
      for (std::int64_t layer = 0; layer < 4; ++layer) {
        for (int micro_batch = 0; micro_batch < 3; ++micro_batch)
          expect_layer(stager, layer, NextUse::kThisPass);
        expect_layer(stager, layer, NextUse::kNextPass);
      }
  }
}

TEST_P(LayerStagerTest, APassMayBeginInTheMiddle) {
  StagerOptions options;
  options.first_layer = 2;
  LayerStager stager(*store_, plan({false, true, false, false}, 2, 2), options, timeline_);
  for (const std::int64_t layer : {2, 3, 0, 1, 2}) expect_layer(stager, layer, NextUse::kNextPass);
}

TEST_P(LayerStagerTest, AnotherOrderIsABugThatIsNoticed) {
  LayerStager stager(*store_, plan({false, false, false, false}, 1, 1), {}, timeline_);
  EXPECT_EQ(error_of([&] { stager.lease(1, PartKind::kAttention, NextUse::kNextPass); }).kind(),
            ErrorKind::kInternal);
}

TEST_P(LayerStagerTest, EndsOnDiskAreTheStoresOwn) {
  for (const VerifyMode verify : {VerifyMode::kFirst, VerifyMode::kAlways, VerifyMode::kOff}) {
    StagerOptions options;
    options.verify = verify;
    options.tile_bytes = 1;      // a panel a tile
    options.gather_bytes = 900;  // two blocks at once
    LayerStager stager(*store_, plan({true, true, true, true}, 0, 0), options, timeline_);
    const std::vector<std::int32_t> ids{0, 82, 17, 17, 16, 31, 80, 5, 0};
    EXPECT_TRUE(same_bits(gathered(stager, TensorRole::kTokenEmbedding, ids),
                          gathered(*resident_, TensorRole::kTokenEmbedding, ids)));
    const std::vector<std::int32_t> positions{8, 0, 3};
    EXPECT_TRUE(same_bits(gathered(stager, TensorRole::kPositionEmbedding, positions),
                          gathered(*resident_, TensorRole::kPositionEmbedding, positions)));
    for (int pass = 0; pass < 2; ++pass) {
      int tiles = 0;
      EXPECT_TRUE(same_bits(head_rows(stager, &tiles), head_rows(*resident_)));
      EXPECT_EQ(tiles, 6);
    }
  }
}

// A head's matrix that the host holds passes to a device for every batch.
TEST_P(LayerStagerTest, TheMemoryOfAHeadIsPinnedAsLongAsItLives) {
  std::vector<std::span<std::byte>> pinned;
  StagerOptions options;
  options.pin = [&](std::span<std::byte> memory) {
    pinned.push_back(memory);
    return std::shared_ptr<void>(memory.data(), [&, memory](void*) {
      memory.front() = memory.back();  // is there still
      pinned.clear();
    });
  };
  for (const Residence embedding : {Residence::kAbsent, Residence::kMemory, Residence::kDisk}) {
    StagingPlan ends;
    ends.embedding = embedding;
    ends.head = Residence::kMemory;
    {
      LayerStager stager(*store_, ends, options, timeline_);
      ASSERT_EQ(pinned.size(), 1u);
      stager.head_matrix([&](std::int64_t, const TensorView& matrix) {
        EXPECT_GE(matrix.data, pinned[0].data());
        EXPECT_LE(matrix.data + matrix.bytes(), pinned[0].data() + pinned[0].size());
      });
    }
    EXPECT_TRUE(pinned.empty());
  }
}

TEST_P(LayerStagerTest, DamagedEndsAreNamed) {
  const std::string file = GetParam() ? "embedding.slab" : "head.slab";
  const SlabEntry& slab = GetParam() ? store_->embedding_slab() : store_->head_slab();
  std::string bytes = file_bytes(store_->root() / file);
  std::int64_t at = -1;
  for (const TensorEntry& tensor : slab.parts.front().tensors)
    if (is_large_table(tensor.spec.role) && tensor.spec.role != TensorRole::kPositionEmbedding)
      at = slab.parts.front().offset + tensor.offset + 1000;
  ASSERT_GE(at, 0);
  bytes[static_cast<std::size_t>(at)] ^= 4;
  set_file_bytes(store_->root() / file, bytes);
  const LayerStore damaged(store_->root());
  const Error error = error_of([&] {
    LayerStager stager(damaged, plan({true, true, true, true}, 0, 0), {}, timeline_);
    head_rows(stager);
  });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  EXPECT_NE(std::string(error.what()).find(file), std::string::npos) << error.what();
}

TEST_P(LayerStagerTest, LayersThatShareASlabShareMemoryOnlyWithoutABudget) {
  StagingPlan shared = all_in_memory({.layers = {{0, 4}}});
  LayerStager together(*store_, shared, {}, timeline_);
  shared.share_slabs = false;
  LayerStager apart(*store_, shared, {}, timeline_);
  EXPECT_EQ(together.bytes(), apart.bytes()) << "here every layer has its own";
}

INSTANTIATE_TEST_SUITE_P(TiedAndUntied, LayerStagerTest, testing::Bool(),
                         [](const auto& test) { return test.param ? "tied" : "untied"; });

}  // namespace
}  // namespace stagecoach
