#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "base/hash.h"
#include "checkpoint/counter_normal.h"
#include "checkpoint/embedded_configs.h"
#include "checkpoint/import.h"
#include "unit/store/small_store.h"

namespace stagecoach {
namespace {

std::vector<float> normals(const NormalStream& stream, std::uint64_t begin, std::size_t count,
                           float scale = 1) {
  std::vector<float> values(count);
  fill_normal(stream, begin, scale, values);
  return values;
}

// Known answers published with the authors' Random123 library.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// The stream is part of what `create --seed` promises: these bits may never change.
TEST(Normal, BitsAreFixedForever) {
  const std::vector<float> values = normals({.seed = 42, .tensor = 7, .layer = 3}, 0, 100000);
  EXPECT_EQ(hash_to_hex(xxh3(std::as_bytes(std::span(values)))), "60d5bc7164ef2912");
}

TEST(Normal, FollowsTheFormula) {
  const NormalStream stream{.seed = 0x123456789abcdef0, .tensor = 99, .layer = 12};
  const std::vector<float> values = normals(stream, 0, 4000);
  for (std::uint32_t block = 0; block < 1000; ++block) {
    const PhiloxBlock words = philox4x32({block, 0, 99, 12}, {0x9abcdef0, 0x12345678});
    for (std::size_t pair = 0; pair < 2; ++pair) {
      const double u = ((words[2 * pair] >> 8) + 1) * 0x1p-24;
      const double radius = std::sqrt(-2 * std::log(u));
      const double angle = words[2 * pair + 1] * 0x1p-32 * 2 * M_PI - M_PI / 4;
      EXPECT_NEAR(values[4 * block + 2 * pair], radius * std::cos(angle), 2e-6);
      EXPECT_NEAR(values[4 * block + 2 * pair + 1], radius * std::sin(angle), 2e-6);
    }
  }
}

TEST(Normal, AnyCutGivesTheSameBits) {
  const NormalStream stream{.seed = 5, .tensor = 1, .layer = 0};
  const std::vector<float> whole = normals(stream, 0, 5000);
  for (const std::size_t begin : {0, 1, 2, 3, 4, 511, 512, 513, 1030, 4999})
    for (const std::size_t count : {1, 2, 3, 5, 512, 1000, 3001}) {
      if (begin + count > whole.size()) continue;
      const std::vector<float> part = normals(stream, begin, count);
      EXPECT_EQ(std::memcmp(part.data(), whole.data() + begin, count * sizeof(float)), 0)
          << begin << "+" << count;
    }
  // Beyond 2³² blocks the counter's second word takes over.
  const std::uint64_t far = (std::uint64_t{1} << 34) - 6;
  EXPECT_EQ(normals(stream, far, 12)[6], normals(stream, far + 6, 1)[0]);
  EXPECT_NE(normals(stream, far + 6, 1)[0], whole[0]);
}

TEST(Normal, MomentsAreThoseOfANormal) {
  const std::size_t count = 1 << 20;
  const std::vector<float> values = normals({.seed = 1, .tensor = 2, .layer = 3}, 0, count, 0.5f);
  double sum = 0, squares = 0, fourth = 0;
  std::size_t within_one = 0;
  for (const float value : values) {
    const double z = value / 0.5;
    ASSERT_TRUE(std::isfinite(z));
    sum += z;
    squares += z * z;
    fourth += z * z * z * z;
    within_one += std::abs(z) < 1;
  }
  // Five standard errors each: 1, √2, √96 and √(p(1−p)), over √count = 1024.
  EXPECT_NEAR(sum / count, 0, 5 * 1.0 / 1024);
  EXPECT_NEAR(squares / count, 1, 5 * 1.42 / 1024);
  EXPECT_NEAR(fourth / count, 3, 5 * 9.8 / 1024);
  EXPECT_NEAR(static_cast<double>(within_one) / count, 0.682689, 5 * 0.466 / 1024);
}

TEST(Normal, SeedTensorAndLayerAllMatter) {
  std::set<std::vector<float>> streams;
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 32})
    for (const std::uint32_t tensor : {0u, 1u})
      for (const std::uint32_t layer : {0u, 1u})
        streams.insert(normals({seed, tensor, layer}, 0, 8));
  EXPECT_EQ(streams.size(), 12u);
}

std::vector<float> tensor_of(WeightSource& source, const TensorSpec& tensor, std::int64_t layer) {
  std::vector<float> values(static_cast<std::size_t>(tensor.rows * tensor.cols));
  source.read_rows(tensor.role, layer, 0, tensor.rows, values.data());
  return values;
}

TEST(RandomSource, InitialisesAsGpt2) {
  const auto source = open_random("tiny-gpt2", 1);
  EXPECT_EQ(source->native_type(), DType::kF32);
  EXPECT_EQ(source->default_name(), "tiny-gpt2");
  const double layers = static_cast<double>(source->spec().num_hidden_layers);
  for (const SlabKind kind : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead}) {
    for (const TensorSpec& tensor : slab_tensors(source->spec(), kind, DType::kF32)) {
      const std::vector<float> values = tensor_of(*source, tensor, 0);
      const std::string name(role_name(tensor.role));
      if (name.ends_with(".bias") || name.ends_with("norm.weight")) {
        for (const float value : values)
          ASSERT_EQ(value, name.ends_with(".bias") ? 0.0f : 1.0f) << name;
        continue;
      }
      const bool residual =
          tensor.role == TensorRole::kAttentionOutput || tensor.role == TensorRole::kDown;
      const double deviation = residual ? 0.02 / std::sqrt(2 * layers) : 0.02;
      double squares = 0;
      for (const float value : values) squares += static_cast<double>(value) * value;
      const double count = static_cast<double>(values.size());
      EXPECT_NEAR(std::sqrt(squares / count) / deviation, 1, 5 / std::sqrt(2 * count)) << name;
    }
  }
}

TEST(RandomSource, RowsCanBeMadeAlone) {
  const auto source = open_random("tiny-llama", 3);
  for (const TensorSpec& tensor : slab_tensors(source->spec(), SlabKind::kLayer, DType::kF32)) {
    const std::vector<float> whole = tensor_of(*source, tensor, 2);
    for (std::int64_t row = 0; row < tensor.rows; row += 5) {
      std::vector<float> one(static_cast<std::size_t>(tensor.cols));
      source->read_rows(tensor.role, 2, row, row + 1, one.data());
      EXPECT_TRUE(std::equal(one.begin(), one.end(), whole.begin() + row * tensor.cols));
    }
  }
}

TEST(RandomSource, StoresAreReproducible) {
  const TemporaryFolder folder;
  const auto create = [&](const std::string& name, std::uint64_t seed, int threads) {
    const auto source = open_random("tiny-gptj", seed);
    import_store(*source, folder / name, {.weights = DType::kBF16, .threads = threads});
    return folder_contents(folder / name);
  };
  const auto first = create("first", 7, 1);
  EXPECT_EQ(create("again", 7, 4), first);
  const auto other = create("other", 8, 1);
  EXPECT_NE(other.at("layer-000.slab"), first.at("layer-000.slab"));
  EXPECT_NE(first.at("layer-000.slab"), first.at("layer-001.slab"));
  EXPECT_TRUE(first.contains("tokenizer/tokenizer.json"));
}

TEST(RandomSource, IdentityNamesModelAndSeed) {
  EXPECT_EQ(open_random("tiny-gpt2", 1)->identity(), open_random("tiny-gpt2", 1)->identity());
  EXPECT_NE(open_random("tiny-gpt2", 1)->identity(), open_random("tiny-gpt2", 2)->identity());
  EXPECT_NE(open_random("tiny-gpt2", 1)->identity(), open_random("tiny-llama", 1)->identity());
}

TEST(RandomSource, UnknownPresetListsTheKnownOnes) {
  const Error error = error_of([] { open_random("gpt5", 0); });
  EXPECT_EQ(error.kind(), ErrorKind::kUsage);
  EXPECT_NE(error.hint().find("gpt3-175b"), std::string::npos);
}

TEST(RandomSource, TakesAConfigFile) {
  const TemporaryFolder folder;
  const Json config = Json::parse(embedded_presets())["tiny-gpt2"];
  std::filesystem::create_directory(folder / "mine");
  set_file_bytes(folder / "mine/config.json", config.dump());
  const auto source = open_random((folder / "mine/config.json").string(), 1);
  EXPECT_EQ(source->default_name(), "mine");
  EXPECT_EQ(source->spec(), open_random("tiny-gpt2", 1)->spec());
  EXPECT_EQ(error_of([&] { open_random((folder / "none.json").string(), 1); }).kind(),
            ErrorKind::kData);
}

// In millions, as the model cards have them; for GPT-3, whose paper rounds, V·D + P·D + L·(12·D² +
// 13·D) + 2·D.
TEST(Presets, HaveTheirPublishedSizes) {
  // As transformers builds each config (millions of parameters, a tied head once).
  const std::map<std::string, double> published = {
      {"gpt2", 124.4},
      {"gpt2-medium", 354.8},
      {"gpt2-large", 774.0},
      {"gpt2-xl", 1557.6},
      {"gpt3-125m", 125.2},
      {"gpt3-350m", 355.9},
      {"gpt3-760m", 760.3},
      {"gpt3-1.3b", 1315.7},
      {"gpt3-2.7b", 2651.6},
      {"gpt3-6.7b", 6658.4},
      {"gpt3-13b", 12853.4},
      {"gpt3-175b", 174604.3},
      {"gpt-j-6b", 6050.9},
      {"llama-2-7b", 6738.4},
      {"llama-2-13b", 13015.9},
      {"llama-2-70b", 68976.6},
      {"llama-3-8b", 8030.3},
      {"llama-3.1-8b", 8030.3},
      {"llama-3.1-70b", 70553.7},
      {"llama-3.1-405b", 405853.4},
      {"llama-3.2-1b", 1235.8},
      {"pythia-14m", 14.1},
      {"pythia-70m", 70.4},
      {"pythia-160m", 162.3},
      {"pythia-410m", 405.3},
      {"pythia-1b", 1011.8},
      {"pythia-1.4b", 1414.6},
      {"pythia-2.8b", 2775.2},
      {"pythia-6.9b", 6857.3},
      {"pythia-12b", 11846.1},
      {"gpt-neox-20b", 20554.6},
      {"opt-125m", 125.2},
      {"opt-350m", 331.2},
      {"opt-1.3b", 1315.8},
      {"opt-2.7b", 2651.6},
      {"opt-6.7b", 6658.5},
      {"opt-13b", 12853.5},
      {"opt-30b", 29974.5},
      {"opt-66b", 65719.7},
      {"opt-175b", 174604.5},
      {"bloom-560m", 559.2},
      {"bloom-1b1", 1065.3},
      {"bloom-1b7", 1722.4},
      {"bloom-3b", 3002.6},
      {"bloom-7b1", 7069.0},
      {"bloom-176b", 176247.3},
      {"smollm2-135m", 134.5},
      {"smollm2-360m", 361.8},
      {"smollm2-1.7b", 1711.4},
      {"mistral-7b-v0.1", 7241.7},
      {"mistral-7b-v0.3", 7248.0},
      {"qwen2.5-0.5b", 494.0},
      {"qwen2.5-1.5b", 1543.7},
      {"qwen2.5-3b", 3085.9},
      {"qwen2.5-7b", 7615.6},
      {"qwen2.5-14b", 14770.0},
      {"qwen2.5-32b", 32763.9},
      {"qwen2.5-72b", 72706.2},
      {"qwen3-0.6b", 596.0},
      {"qwen3-1.7b", 1720.6},
      {"qwen3-4b", 4022.5},
      {"qwen3-8b", 8190.7},
      {"qwen3-14b", 14768.3},
      {"qwen3-32b", 32762.1},
  };
  std::set<std::string> names;
  std::int64_t previous = 0;
  for (const auto& [name, spec] : presets()) {
    EXPECT_TRUE(names.insert(name).second);
    const std::int64_t count = parameter_count(spec);
    EXPECT_GE(count, previous) << "presets are sorted by size";
    previous = count;
    if (!published.contains(name)) {
      EXPECT_TRUE(name.starts_with("tiny-")) << name;
      continue;
    }
    EXPECT_NEAR(static_cast<double>(count) * 1e-6, published.at(name), 0.06) << name;
  }
  EXPECT_EQ(names.size(), published.size() + 10);
}

TEST(EmbeddedConfigs, AreTheFiles) {
  EXPECT_EQ(embedded_presets(),
            file_bytes(std::filesystem::path(TEST_SOURCE_DIR) / "configs/presets.json"));
  EXPECT_FALSE(embedded_models().empty());
  for (const auto& [name, content] : embedded_models())
    EXPECT_EQ(content, file_bytes(std::filesystem::path(TEST_SOURCE_DIR) /
                                  fmt::format("configs/models/{}.json", name)));
}

}  // namespace
}  // namespace stagecoach
