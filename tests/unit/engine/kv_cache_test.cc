#include "engine/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <set>

#include "backend/cpu/cpu_backend.h"

namespace stagecoach {
namespace {

class KvCacheTest : public testing::TestWithParam<KvType> {
 protected:
  KvCacheTest() {
    spec_.num_attention_heads = 4;
    spec_.num_key_value_heads = 2;
    spec_.head_dim = 8;
    cache_.emplace(spec_, GetParam(), *backend_);
    cache_->add_layers(3, 5);
    cache_->add_layers(9, 10);  // a second window
  }

  static TokenRun run(SequenceId id, std::int64_t position, std::int64_t count) {
    return {.sequence = id,
            .position = position,
            .ids = std::vector<TokenId>(static_cast<std::size_t>(count), 1),
            .targets = {},
            .sample = false};
  }
  void reserve(std::vector<TokenRun> runs) {
    cache_->reserve(3, 5, runs);
    cache_->reserve(9, 10, runs);
  }
  // Page pointers of one sequence in one layer, keys then values.
  std::vector<std::byte*> pages(std::int64_t layer, SequenceId id, std::int64_t count) const {
    const std::vector<TokenRun> runs{run(id, 0, 1)};
    const KvSpan span = cache_->view(layer, runs).at(0);
    std::vector<std::byte*> all(span.key_pages, span.key_pages + count);
    all.insert(all.end(), span.value_pages, span.value_pages + count);
    return all;
  }
  std::int64_t bytes_of_pages(std::int64_t pages) const { return pages * 3 * 2 * half_page(); }

  // Keys alone, or values alone: two heads of 8 dimensions, of q8 each in one group.
  std::int64_t half_page() const {
    return 2 * kKvPageTokens *
           (GetParam() == KvType::kF32   ? 4 * 8
            : GetParam() == KvType::kF16 ? 2 * 8
                                         : 2 + 8);
  }

  std::unique_ptr<Backend> backend_ = make_cpu_backend({.threads = 1, .isa = {}});
  ModelSpec spec_;
  std::optional<KvCache> cache_;
};

TEST_P(KvCacheTest, ReservesWholePagesForEveryLayer) {
  EXPECT_EQ(cache_->bytes(), 0);
  reserve({run(0, 0, 1)});
  EXPECT_EQ(cache_->bytes(), bytes_of_pages(1));
  reserve({run(0, 1, kKvPageTokens - 1)});
  EXPECT_EQ(cache_->bytes(), bytes_of_pages(1));
  reserve({run(0, kKvPageTokens, 1)});
  EXPECT_EQ(cache_->bytes(), bytes_of_pages(2));
  reserve({run(0, 2 * kKvPageTokens, 3 * kKvPageTokens + 1)});
  EXPECT_EQ(cache_->bytes(), bytes_of_pages(6));
}

TEST_P(KvCacheTest, NoTwoPagesOverlap) {
  reserve({run(0, 0, 3 * kKvPageTokens), run(1, 0, 2 * kKvPageTokens)});
  std::vector<std::byte*> all;
  for (std::int64_t layer : {3, 4, 9})
    for (const auto& [id, count] : {std::pair<SequenceId, std::int64_t>{0, 3}, {1, 2}})
      for (std::byte* page : pages(layer, id, count)) all.push_back(page);
  EXPECT_EQ(all.size(), 30U);
  std::sort(all.begin(), all.end());
  for (std::size_t i = 1; i < all.size(); ++i) EXPECT_GE(all[i] - all[i - 1], half_page());
  for (std::byte* page : all) {
    page[0] = std::byte{1};  // both ends are ours (address sanitizer)
    page[half_page() - 1] = std::byte{1};
  }
}

TEST_P(KvCacheTest, PagesStayWhereTheyAreWhileASequenceGrows) {
  reserve({run(0, 0, kKvPageTokens)});
  const auto before = pages(4, 0, 1);
  before[0][5] = std::byte{42};
  for (std::int64_t p = 1; p < 40; ++p) reserve({run(0, p * kKvPageTokens, 1), run(1, p, 1)});
  const auto after = pages(4, 0, 1);
  EXPECT_EQ(after, before);
  EXPECT_EQ(after[0][5], std::byte{42});
}

TEST_P(KvCacheTest, ViewTellsRowsAndPositionsOfEachRun) {
  const std::vector<TokenRun> runs{run(7, 0, 5), run(3, 60, 10), run(5, 2, 1)};
  cache_->reserve(9, 10, runs);
  const auto spans = cache_->view(9, runs);
  ASSERT_EQ(spans.size(), 3U);
  const std::int64_t rows[] = {0, 5, 15};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(spans[i].row, rows[i]);
    EXPECT_EQ(spans[i].rows, runs[i].count());
    EXPECT_EQ(spans[i].position, runs[i].position);
  }
  EXPECT_NE(spans[1].key_pages[0], spans[1].key_pages[1]);
  EXPECT_THROW(cache_->view(5, runs), std::exception) << "not a layer of this rank";
}

TEST_P(KvCacheTest, DroppedAndTruncatedPagesServeAgain) {
  reserve({run(0, 0, 4 * kKvPageTokens)});
  const auto all = pages(3, 0, 4);
  cache_->truncate(0, kKvPageTokens + 1);
  EXPECT_EQ(pages(3, 0, 2)[0], all[0]);
  EXPECT_EQ(pages(3, 0, 2)[1], all[1]);
  reserve({run(1, 0, 2 * kKvPageTokens)});
  EXPECT_EQ(cache_->bytes(), bytes_of_pages(4));
  const auto given = pages(3, 1, 2);
  EXPECT_NE(given[0], given[1]);
  cache_->drop(0);
  cache_->drop(1);
  cache_->drop(99);
  cache_->truncate(99, 0);
  reserve({run(2, 0, 4 * kKvPageTokens)});
  EXPECT_EQ(cache_->bytes(), bytes_of_pages(4));
  reserve({run(2, 4 * kKvPageTokens, 1)});
  EXPECT_EQ(cache_->bytes(), bytes_of_pages(5));
}

TEST_P(KvCacheTest, OneLayersPagesServeTheNext) {
  cache_->reserve(3, 4, std::vector{run(0, 0, 2 * kKvPageTokens), run(1, 0, 1)});
  EXPECT_EQ(cache_->bytes(), 3 * KvCache::page_bytes(spec_, GetParam()));
  cache_->drop_layer(3);
  cache_->reserve(4, 5, std::vector{run(0, 0, 2 * kKvPageTokens), run(1, 0, 1)});
  EXPECT_EQ(cache_->bytes(), 3 * KvCache::page_bytes(spec_, GetParam()));
}

TEST_P(KvCacheTest, APageIsKeysThenValues) {
  const auto bytes = static_cast<std::size_t>(KvCache::page_bytes(spec_, GetParam()));
  EXPECT_EQ(cache_->page_bytes(), static_cast<std::int64_t>(bytes));
  std::vector<std::byte> page(bytes, std::byte{1}), back(bytes);
  std::fill(page.begin() + static_cast<std::ptrdiff_t>(bytes / 2), page.end(), std::byte{2});
  cache_->set_page(9, 4, 1, page);
  EXPECT_EQ(*pages(9, 4, 2)[1], std::byte{1});
  EXPECT_EQ(*pages(9, 4, 2)[3], std::byte{2});
  cache_->get_page(9, 4, 1, back);
  EXPECT_EQ(back, page);
}

INSTANTIATE_TEST_SUITE_P(Types, KvCacheTest,
                         testing::Values(KvType::kF32, KvType::kF16, KvType::kQ8));

}  // namespace
}  // namespace stagecoach
