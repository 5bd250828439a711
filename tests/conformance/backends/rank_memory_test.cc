// What a rank keeps in a device's memory, or sends through it.
#include "conformance/backends/backend_test.h"
#include "engine/kv_cache.h"
#include "stager/device_stager.h"
#include "unit/store/small_store.h"

namespace stagecoach {
namespace {

class RankMemory : public BackendTest {};
STAGECOACH_EVERY_BACKEND(RankMemory);

TEST_P(RankMemory, PagesOfKeysAndValuesAreZeroedAndTheirOwn) {
  constexpr std::int64_t kPages = 300;
  ModelSpec spec;
  spec.num_attention_heads = spec.num_key_value_heads = 4;
  spec.head_dim = 128;
  KvCache cache(spec, KvType::kF16, backend());
  cache.add_layers(0, 1);
  const std::int64_t page_bytes = cache.page_bytes();
  Bytes page(static_cast<std::size_t>(page_bytes)), zeros(page.size());
  for (std::int64_t number = 0; number < kPages; number += 23) {
    cache.get_page(0, 7, number, page);
    ASSERT_EQ(page, zeros) << number;
    page.assign(page.size(), static_cast<std::byte>(number));
    cache.set_page(0, 7, number, page);
    backend().synchronize();
  }
  for (std::int64_t number = 0; number < kPages; number += 23) {
    cache.get_page(0, 7, number, page);
    ASSERT_EQ(page, Bytes(page.size(), static_cast<std::byte>(number))) << number;
  }
  constexpr std::int64_t kGranule = 2 << 20;
  const std::int64_t pages = (kPages - 1) / 23 * 23 + 1;
  EXPECT_GE(cache.bytes(), pages * page_bytes);
  if (is_gpu()) {
    const std::int64_t planned = KvCache::device_bytes(pages, page_bytes);
    EXPECT_LE(cache.bytes(), planned);
    EXPECT_EQ(planned % kGranule, 0);
    EXPECT_GE(cache.bytes(), 2 * kGranule) << "few allocations";
  } else {
    EXPECT_EQ(cache.bytes(), pages * page_bytes) << "no more than is needed";
  }
}

TEST_P(RankMemory, ADevicesPagesAreCountedInWholeSlabs) {
  constexpr std::int64_t kMiB = 1 << 20;
  EXPECT_EQ(KvCache::device_bytes(0, kMiB), 0);
  EXPECT_EQ(KvCache::device_bytes(1, kMiB), 16 * kMiB);
  EXPECT_EQ(KvCache::device_bytes(16, kMiB), 16 * kMiB);
  EXPECT_EQ(KvCache::device_bytes(17, kMiB), 32 * kMiB);
  EXPECT_EQ(KvCache::device_bytes(5, 3 * kMiB), 16 * kMiB);   // 15, rounded up
  EXPECT_EQ(KvCache::device_bytes(2, 17 * kMiB), 36 * kMiB);  // a page each
}

// A tile is read into again while the other, or itself, may still be on its way.
TEST_P(RankMemory, LayersThatStayAreWhatTheStoreHas) {
  if (!is_gpu()) GTEST_SKIP() << "the host uses layers where they were read";
  const ModelSpec spec = small_spec();
  const TemporaryFolder folder;
  write_small_store(folder.path() / "store", spec);
  const LayerStore store(folder.path() / "store");
  Timeline timeline;
  StagingPlan plan = all_in_memory({.layers = {{0, spec.num_hidden_layers}}});
  LayerStager in_memory(store, plan, {}, timeline);
  for (StagedLayer& layer : plan.layers) layer.on_device = true;
  StagerOptions options;
  options.tile_bytes = 512;
  options.pin = [&](std::span<std::byte> memory) { return backend().pin(memory); };
  LayerStager host(store, plan, options, timeline);
  DeviceStager device(host, store, plan, options, backend(), timeline);
  for (std::int64_t layer = 0; layer < spec.num_hidden_layers; ++layer)
    for (const PartKind part : {PartKind::kAttention, PartKind::kMlp}) {
      const LayerLease expected = in_memory.lease(layer, part, NextUse::kNextPass),
                       found = device.lease(layer, part, NextUse::kNextPass);
      for (int role = 0; role < kTensorRoles; ++role) {
        const TensorView& tensor = expected[static_cast<TensorRole>(role)];
        if (!tensor) continue;
        Bytes bytes(static_cast<std::size_t>(tensor.bytes()));
        backend().download(bytes, found[static_cast<TensorRole>(role)].data);
        ASSERT_EQ(std::memcmp(bytes.data(), tensor.data, bytes.size()), 0)
            << "layer " << layer << ", " << role_name(static_cast<TensorRole>(role));
      }
    }
}

// The head's matrix in tiles of one panel, from disk and from the host's memory: ops may still read
// one while the next is copied, and nobody waits but them.
TEST_P(RankMemory, TilesOfTheHeadAreNotOverwrittenWhileOpsReadThem) {
  if (!is_gpu()) GTEST_SKIP() << "the host uses tiles where they are";
  ModelSpec spec = small_spec();
  spec.vocab_size = 16 * 9 + 3;
  spec.num_hidden_layers = 1;
  const TemporaryFolder folder;
  write_small_store(folder.path() / "store", spec);
  const LayerStore store(folder.path() / "store");
  Timeline timeline;
  const std::int64_t rows = 8, in = spec.embedding_size, vocab = spec.vocab_size;
  const Buffer x = on_device(random(static_cast<std::size_t>(rows * in)));
  const auto logits = [&](LayerSource& source) {
    const Buffer y = backend().allocate(rows * vocab * 4);
    source.head_matrix([&](std::int64_t first, const TensorView& tile) {
      backend().matmul({.x = {.data = x.data(), .stride = in * 4, .type = InputType::kF32},
                        .weight = tile.data,
                        .weight_type = tile.type,
                        .bias = nullptr,
                        .y = y.f32() + first,
                        .y_stride = vocab,
                        .rows = rows,
                        .in = in,
                        .out = tile.rows,
                        .accumulate = false});
    });
    return bytes_of(y);  // weights of a small store are any bits: NaN equals itself
  };
  const auto with = [&](Residence head, bool on_device, std::int64_t tile_bytes) {
    StagingPlan plan;
    plan.layers = {{.layer = 0, .on_device = true}};
    plan.embedding = Residence::kAbsent;
    plan.head = head;
    plan.device.head = on_device;
    StagerOptions options;
    options.tile_bytes = tile_bytes;
    options.pin = [&](std::span<std::byte> memory) { return backend().pin(memory); };
    LayerStager host(store, plan, options, timeline);
    DeviceStager device(host, store, plan, options, backend(), timeline);
    std::vector<Bytes> sweeps;
    for (int sweep = 0; sweep < 3; ++sweep) sweeps.push_back(logits(device));
    return sweeps;
  };
  const Bytes expected = with(Residence::kMemory, true, 1 << 20).front();
  for (const Residence head : {Residence::kMemory, Residence::kDisk})
    for (const Bytes& found : with(head, false, 1)) ASSERT_TRUE(found == expected);
}

}  // namespace
}  // namespace stagecoach
