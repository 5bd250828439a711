#include "checkpoint/import.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "unit/store/small_store.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

// Values that say where they come from; exact in every plain weight type.
float value_at(TensorRole role, std::int64_t layer, std::int64_t row, std::int64_t col) {
  return static_cast<float>((static_cast<int>(role) * 5 + layer * 3 + row * 7 + col) % 97 - 48) /
         64.0f;
}

class FakeSource : public WeightSource {
 public:
  explicit FakeSource(ModelSpec spec) : spec_(std::move(spec)) {
    for (const SlabKind kind : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead})
      for (const TensorSpec& tensor : slab_tensors(spec_, kind, DType::kF32))
        cols_[tensor.role] = tensor.cols;
  }
  const ModelSpec& spec() const override { return spec_; }
  DType native_type() const override { return DType::kF16; }
  std::string identity() const override { return "fake " + identity_; }
  std::string default_name() const override { return "fake-model"; }
  const std::map<std::string, std::string>& tokenizer_files() const override {
    return tokenizer_files_;
  }
  void read_rows(TensorRole role, std::int64_t layer, std::int64_t row_begin, std::int64_t row_end,
                 float* destination) override {
    if (before_read_) before_read_(role, layer);
    for (std::int64_t row = row_begin; row < row_end; ++row)
      for (std::int64_t col = 0; col < cols_.at(role); ++col)
        *destination++ = value_at(role, layer, row, col);
    if (poison_ != 0 && role == TensorRole::kDown && layer == 1) destination[-1] = poison_;
  }

  ModelSpec spec_;
  std::map<TensorRole, std::int64_t> cols_;
  std::string identity_ = "one";
  std::map<std::string, std::string> tokenizer_files_{{"tokenizer.json", "{}"}};
  std::function<void(TensorRole, std::int64_t)> before_read_;
  float poison_ = 0;
};

ModelSpec untied_spec() {
  ModelSpec spec = small_spec();
  spec.tied_head = false;
  spec.head_bias = true;
  return spec;
}

// What the source gives, as a tensor of this kind holds it.
std::vector<float> expected_values(const TensorSpec& spec, std::int64_t layer) {
  std::vector<float> values;
  for (std::int64_t row = 0; row < spec.rows; ++row)
    for (std::int64_t col = 0; col < spec.cols; ++col)
      values.push_back(value_at(spec.role, layer, row, col));
  if (!is_quantized(spec.type)) return values;
  std::vector<std::byte> packed(static_cast<std::size_t>(spec.bytes()));
  pack_rows(spec.layout, spec.type, values.data(), spec.rows, spec.cols, packed.data());
  unpack_rows(spec.layout, spec.type, packed.data(), spec.cols, 0, spec.rows, values.data());
  return values;
}

// Every tensor of a slab, read back and compared with what the source gave.
void expect_slab_of(const LayerStore& store, const SlabEntry& slab, std::int64_t source_layer) {
  for (const PartEntry& part : slab.parts) {
    std::vector<std::byte> extent(static_cast<std::size_t>(part.bytes));
    store.read_part(slab, part, extent, true);
    for (const TensorEntry& tensor : part.tensors) {
      const TensorSpec& spec = tensor.spec;
      std::vector<float> values(static_cast<std::size_t>(spec.rows * spec.cols));
      unpack_rows(spec.layout, spec.type, extent.data() + tensor.offset, spec.cols, 0, spec.rows,
                  values.data());
      const std::vector<float> expected = expected_values(spec, source_layer);
      for (std::size_t i = 0; i < expected.size(); ++i)
        ASSERT_EQ(values[i], expected[i])
            << tensor_name(spec.role, source_layer) << " element " << i;
    }
  }
}

TEST(Import, EveryTensorArrives) {
  for (const DType weights : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4}) {
    const TemporaryFolder folder;
    FakeSource source(untied_spec());
    const Manifest manifest = import_store(
        source, folder / "store", {.weights = weights, .threads = 2, .metadata = {{"a", "b"}}});
    const LayerStore store(folder / "store");
    EXPECT_EQ(to_json(store.manifest()), to_json(manifest));
    EXPECT_EQ(manifest.name, "fake-model");
    EXPECT_EQ(manifest.weights, weights);
    EXPECT_EQ(manifest.metadata.at("a"), "b");
    expect_slab_of(store, store.embedding_slab(), 0);
    for (std::int64_t layer = 0; layer < 3; ++layer)
      expect_slab_of(store, store.layer_slab(layer), layer);
    expect_slab_of(store, store.head_slab(), 0);
    EXPECT_TRUE(verify_store(store).empty());
    EXPECT_EQ(file_bytes(folder / "store/tokenizer/tokenizer.json"), "{}");
  }
}

TEST(Import, NativeTypeIsTheDefault) {
  const TemporaryFolder folder;
  FakeSource source(small_spec());
  EXPECT_EQ(import_store(source, folder / "store", {}).weights, DType::kF16);
}

// Wide enough that a tensor takes many chunks, narrow enough for a unit test.
TEST(Import, BytesDoNotDependOnTheNumberOfThreads) {
  ModelSpec spec = small_spec();
  spec.num_hidden_layers = 1;
  spec.vocab_size = 70001;
  const TemporaryFolder folder;
  FakeSource source(spec);
  import_store(source, folder / "one", {.threads = 1});
  import_store(source, folder / "five", {.threads = 5});
  EXPECT_EQ(folder_contents(folder / "one"), folder_contents(folder / "five"));
  const LayerStore store(folder / "one");
  expect_slab_of(store, store.embedding_slab(), 0);
}

TEST(Import, LayerRangeWritesThoseSlabs) {
  const TemporaryFolder folder;
  FakeSource source(untied_spec());
  const auto import_range = [&](const std::string& name, std::int64_t begin, std::int64_t end) {
    return import_store(source, folder / name, {.layer_begin = begin, .layer_end = end});
  };
  const Manifest first = import_range("first", 0, 1);
  EXPECT_GE(first.embedding_slab, 0);
  EXPECT_EQ(first.head_slab, -1);
  EXPECT_EQ(first.layer_slab, (std::vector<int>{1, -1, -1}));
  const Manifest middle = import_range("middle", 1, 2);
  EXPECT_EQ(middle.embedding_slab, -1);
  EXPECT_EQ(middle.head_slab, -1);
  EXPECT_EQ(middle.layer_slab, (std::vector<int>{-1, 0, -1}));
  const Manifest last = import_range("last", 1, 3);
  EXPECT_EQ(last.embedding_slab, -1);
  EXPECT_GE(last.head_slab, 0);
  EXPECT_TRUE(last.has_layers(1, 3));
  // Two PCs that import their own share hold equal slabs.
  EXPECT_EQ(file_bytes(folder / "middle/layer-001.slab"),
            file_bytes(folder / "last/layer-001.slab"));
  const LayerStore store(folder / "middle");
  EXPECT_TRUE(verify_store(store).empty());
  EXPECT_EQ(error_of([&] { store.layer_slab(0); }).kind(), ErrorKind::kData);
  EXPECT_EQ(error_of([&] { store.embedding_slab(); }).kind(), ErrorKind::kData);
  EXPECT_EQ(error_of([&] { store.head_slab(); }).kind(), ErrorKind::kData);
  for (const auto& [begin, end] :
       std::vector<std::pair<int, int>>{{1, 1}, {2, 1}, {-1, 2}, {0, 4}, {3, 4}}) {
    EXPECT_EQ(error_of([&] { import_range("bad", begin, end); }).kind(), ErrorKind::kUsage)
        << begin << ":" << end;
    EXPECT_FALSE(fs::exists(folder / "bad"));
  }
}

TEST(Import, TiedHeadBringsTheEmbedding) {
  const TemporaryFolder folder;
  FakeSource source(small_spec());
  const Manifest manifest = import_store(source, folder / "store", {.layer_begin = 2});
  EXPECT_GE(manifest.embedding_slab, 0);
  EXPECT_GE(manifest.head_slab, 0);
}

TEST(Import, DistinctLayersShareSlabs) {
  const TemporaryFolder folder;
  FakeSource source(untied_spec());
  const Manifest manifest = import_store(source, folder / "store", {.distinct_layers = 2});
  EXPECT_EQ(manifest.layer_slab, (std::vector<int>{1, 2, 1}));
  EXPECT_EQ(manifest.distinct_layers, 2);
  const LayerStore store(folder / "store");
  expect_slab_of(store, store.layer_slab(2), 0);
  EXPECT_FALSE(fs::exists(folder / "store/layer-002.slab"));
  for (const std::int64_t bad : {-1, 4})
    EXPECT_EQ(
        error_of([&] { import_store(source, folder / "bad", {.distinct_layers = bad}); }).kind(),
        ErrorKind::kUsage);
}

TEST(Import, CompleteStoreIsRefusedAndUntouched) {
  const TemporaryFolder folder;
  FakeSource source(small_spec());
  import_store(source, folder / "store", {});
  const auto before = folder_contents(folder / "store");
  const Error error = error_of([&] { import_store(source, folder / "store", {}); });
  EXPECT_EQ(error.exit_code(), 2);
  EXPECT_EQ(folder_contents(folder / "store"), before);
}

TEST(Import, ProgressCountsEveryByteOnce) {
  const TemporaryFolder folder;
  FakeSource source(untied_spec());
  std::int64_t last = -1, total = 0;
  import_store(source, folder / "store", {.progress = [&](std::int64_t done, std::int64_t all) {
                 EXPECT_GT(done, last);
                 last = done;
                 total = all;
               }});
  EXPECT_EQ(last, total);
  const ModelSpec& spec = source.spec();
  EXPECT_EQ(total, slab_weight_bytes(spec, SlabKind::kEmbedding, DType::kF16) +
                       3 * slab_weight_bytes(spec, SlabKind::kLayer, DType::kF16) +
                       slab_weight_bytes(spec, SlabKind::kHead, DType::kF16));
}

// Stopped at every third chunk, which is in every slab, by Ctrl-C and by an error of the disk in
// turn: the next run ends in the same bytes as one that was never stopped, and reads no finished
// slab again.
TEST(Import, ResumesToTheSameBytesFromEverySlab) {
  const TemporaryFolder folder;
  FakeSource source(untied_spec());
  int chunks = 0;
  import_store(source, folder / "whole", {.interrupted = [&] {
                 ++chunks;
                 return false;
               }});
  const auto whole = folder_contents(folder / "whole");
  ASSERT_GT(chunks, 40);
  for (int stop = 0; stop < chunks; stop += 3) {
    const fs::path root = folder / fmt::format("stop-{}", stop);
    int count = 0;
    const bool by_user = stop % 2 == 0;
    const Error error = error_of([&] {
      import_store(source, root, {.interrupted = [&] {
                     if (count++ < stop) return false;
                     if (!by_user) throw resource_error("the disk is full");
                     return true;
                   }});
    });
    EXPECT_EQ(error.kind(), by_user ? ErrorKind::kInterrupted : ErrorKind::kResources);
    EXPECT_FALSE(fs::exists(root / "manifest.json"));
    const auto left =
        fs::exists(root) ? folder_contents(root) : std::map<std::string, std::string>{};
    source.before_read_ = [&](TensorRole role, std::int64_t layer) {
      if (role == TensorRole::kTokenEmbedding) {
        EXPECT_FALSE(left.contains("embedding.slab"));
      }
      if (role == TensorRole::kDown) {
        EXPECT_FALSE(left.contains(slab_file_name(SlabKind::kLayer, layer)));
      }
    };
    import_store(source, root, {});
    source.before_read_ = {};
    ASSERT_EQ(folder_contents(root), whole) << "stopped at chunk " << stop;
    fs::remove_all(root);
  }
}

TEST(Import, OtherSettingsDoNotResume) {
  const TemporaryFolder folder;
  FakeSource source(small_spec());
  int count = 0;
  EXPECT_EQ(error_of([&] {
              import_store(source, folder / "store", {.interrupted = [&] { return ++count > 10; }});
            }).kind(),
            ErrorKind::kInterrupted);
  ASSERT_TRUE(fs::exists(folder / "store/embedding.slab"));
  const auto before = folder_contents(folder / "store");
  const auto refused = [&](const ImportOptions& options) {
    EXPECT_EQ(error_of([&] { import_store(source, folder / "store", options); }).kind(),
              ErrorKind::kUsage);
    EXPECT_EQ(folder_contents(folder / "store"), before);
  };
  refused({.weights = DType::kF32});
  refused({.layer_end = 2});
  refused({.distinct_layers = 1});
  source.identity_ = "two";
  refused({});
}

TEST(Import, ValuesBeyondTheWeightTypeAreRefusedAndLeaveNothing) {
  const TemporaryFolder folder;
  FakeSource source(small_spec());
  source.poison_ = 70000;
  const Error error = error_of([&] { import_store(source, folder / "store", {}); });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  EXPECT_NE(std::string(error.what()).find("layers.1.down_proj.weight"), std::string::npos)
      << error.what();
  EXPECT_NE(error.hint().find("--weights bf16"), std::string::npos);
  EXPECT_FALSE(fs::exists(folder / "store"));
  EXPECT_NO_THROW(import_store(source, folder / "store", {.weights = DType::kBF16}));
}

TEST(Import, QuantisedTypesRefuseWhatIsNotFinite) {
  const TemporaryFolder folder;
  FakeSource source(small_spec());
  for (const DType weights : {DType::kQ8, DType::kQ4})
    for (const float poison : {NAN, INFINITY, 1e9f}) {
      source.poison_ = poison;
      const Error error =
          error_of([&] { import_store(source, folder / "store", {.weights = weights}); });
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      EXPECT_NE(std::string(error.what()).find("not finite or too large for q"), std::string::npos)
          << error.what();
      EXPECT_FALSE(fs::exists(folder / "store"));
    }
}

TEST(Import, BadSourceLeavesNothing) {
  const TemporaryFolder folder;
  FakeSource source(small_spec());
  source.before_read_ = [](TensorRole role, std::int64_t layer) {
    if (role == TensorRole::kValue && layer == 2) throw data_error("the checkpoint is truncated");
  };
  EXPECT_EQ(error_of([&] { import_store(source, folder / "a/store", {.threads = 3}); }).kind(),
            ErrorKind::kData);
  EXPECT_FALSE(fs::exists(folder / "a"));
}

TEST(Import, TooLittleRoomIsSaidBeforeWriting) {
  const TemporaryFolder folder;
  ModelSpec spec = small_spec();
  spec.hidden_size = 1 << 20;
  spec.head_dim = 1 << 14;
  spec.num_attention_heads = spec.num_key_value_heads = 64;
  spec.intermediate_size = 1 << 22;
  spec.num_hidden_layers = 1000;  // 25 PB
  FakeSource source(spec);
  const Error error = error_of([&] { import_store(source, folder / "store", {}); });
  EXPECT_EQ(error.kind(), ErrorKind::kResources) << error.what();
  EXPECT_FALSE(fs::exists(folder / "store"));
}

}  // namespace
}  // namespace stagecoach
