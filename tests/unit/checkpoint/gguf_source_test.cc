// GGUF checkpoints as sources of weights: against the safetensors that they were made from, and
// against what must not be imported.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/import.h"
#include "model/tensor_catalog.h"
#include "support_gguf.h"

namespace stagecoach {
namespace {

using test::GgufTensor;
using test::GgufWriter;
using test::write_bytes;
using enum TensorRole;

namespace fs = std::filesystem;

fs::path fixture(const std::string& name) {
  return fs::path(TEST_DATA_DIR) / "gguf/llama" / name;
}

std::vector<float> read(WeightSource& source, const TensorSpec& tensor, std::int64_t layer) {
  std::vector<float> values(static_cast<std::size_t>(tensor.rows * tensor.cols));
  source.read_rows(tensor.role, layer, 0, tensor.rows, values.data());
  return values;
}

template <typename Check>
void for_each_tensor(const ModelSpec& spec, const Check& check) {
  for (const SlabKind slab : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead})
    for (const TensorSpec& tensor : slab_tensors(spec, slab, DType::kF32))
      for (std::int64_t layer = 0; layer < (slab == SlabKind::kLayer ? spec.num_hidden_layers : 1);
           ++layer)
        check(tensor, layer);
}

void expect_same_weights(WeightSource& a, WeightSource& b) {
  for_each_tensor(a.spec(), [&](const TensorSpec& tensor, std::int64_t layer) {
    const std::vector<float> left = read(a, tensor, layer), right = read(b, tensor, layer);
    ASSERT_EQ(std::memcmp(left.data(), right.data(), left.size() * sizeof(float)), 0)
        << tensor_name(tensor.role, layer);
  });
}

TEST(GgufSource, EqualsTheSafetensorsThatItWasMadeFrom) {
  const auto hub = open_huggingface(fixture("")), gguf = open_gguf(fixture("f16.gguf"));
  EXPECT_EQ(to_json(gguf->spec()), to_json(hub->spec()));
  EXPECT_EQ(gguf->native_type(), DType::kF16);
  EXPECT_EQ(gguf->default_name(), "small-llama");
  expect_same_weights(*gguf, *hub);
}

// Half a step of the quantiser, which is the largest of 32 neighbours divided by 127 or 8.
TEST(GgufSource, QuantisedFilesAreNearTheirOriginal) {
  const auto hub = open_huggingface(fixture(""));
  for (const auto& [name, steps] : {std::pair{"q8_0.gguf", 127.0}, {"q4_0.gguf", 8.0}}) {
    const auto gguf = open_gguf(fixture(name));
    EXPECT_EQ(gguf->native_type(), DType::kF16);
    for_each_tensor(hub->spec(), [&](const TensorSpec& tensor, std::int64_t layer) {
      const std::vector<float> exact = read(*hub, tensor, layer);
      const std::vector<float> near = read(*gguf, tensor, layer);
      for (std::size_t i = 0; i < exact.size(); ++i) {
        double largest = 0;
        for (std::size_t k = i / 32 * 32; k < i / 32 * 32 + 32; ++k)
          largest = std::max<double>(largest, std::abs(exact[k]));
        // The largest of either sign in Q4_0 reaches a full step: 16 values, 8 on each side.
        ASSERT_NEAR(near[i], exact[i], tensor.is_vector() ? 0 : 1.02 * largest / steps)
            << name << " " << tensor_name(tensor.role, layer) << " " << i;
      }
    });
  }
}

TEST(GgufSource, ASplitSetEqualsTheWhole) {
  const auto whole = open_gguf(fixture("q8_0.gguf"));
  for (const char* name : {"split-00001-of-00003.gguf", "split-00003-of-00003.gguf"}) {
    const auto split = open_gguf(fixture(name));
    EXPECT_EQ(split->spec(), whole->spec());
    expect_same_weights(*split, *whole);
  }
}

TEST(GgufSource, RangesOfRowsAreWhatTheWholeTensorHolds) {
  const auto source = open_gguf(fixture("q8_0.gguf"));
  std::vector<float> whole(32 * 32), part(32 * 32);
  source->read_rows(kQuery, 1, 0, 32, whole.data());
  for (std::int64_t begin = 0; begin < 32; begin += 5) {
    const std::int64_t end = std::min<std::int64_t>(begin + 5, 32);
    source->read_rows(kQuery, 1, begin, end, part.data());
    EXPECT_TRUE(
        std::equal(part.begin(), part.begin() + (end - begin) * 32, whole.begin() + begin * 32));
  }
}

TEST(GgufSource, ADirectoryWithNothingElseNamesTheCommand) {
  const TemporaryFolder folder;
  fs::copy_file(fixture("q8_0.gguf"), folder / "m.gguf");
  try {
    open_checkpoint(folder.path());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.hint(),
              fmt::format("stagecoach import {} STORE", (folder / "m.gguf").string()));
  }
  EXPECT_EQ(open_checkpoint(folder / "m.gguf")->spec().num_hidden_layers, 2);
}

// One layer, hidden size 8, two heads of 4; every element tells where it came from.
class SmallGguf : public testing::Test {
 protected:
  SmallGguf() {
    writer_.add("general.architecture", "llama");
    for (const auto& [key, value] :
         std::map<std::string, std::uint32_t>{{"block_count", 1},
                                              {"context_length", 16},
                                              {"embedding_length", 8},
                                              {"feed_forward_length", 6},
                                              {"attention.head_count", 2}})
      writer_.add("llama." + key, value);
    writer_.add("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    add("token_embd.weight", {8, 10});
    for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output"})
      add(fmt::format("blk.0.{}.weight", name), {8, 8});
    for (const char* name : {"ffn_gate", "ffn_up"})
      add(fmt::format("blk.0.{}.weight", name), {8, 6});
    add("blk.0.ffn_down.weight", {6, 8});
    for (const char* name :
         {"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"})
      add(name, {8});
  }

  void add(const std::string& name, std::vector<std::uint64_t> dimensions, float first = 0) {
    std::uint64_t count = 1;
    for (const std::uint64_t dimension : dimensions) count *= dimension;
    GgufTensor tensor{name, std::move(dimensions), 0, {}, -1};
    for (std::uint64_t i = 0; i < count; ++i)
      tensor.bytes += test::raw(first + static_cast<float>(i));
    writer_.tensors.push_back(tensor);
  }
  void add_values(const std::string& name, const std::vector<float>& values) {
    add(name, {values.size()});
    std::memcpy(writer_.tensors.back().bytes.data(), values.data(), values.size() * sizeof(float));
  }
  std::unique_ptr<WeightSource> open() {
    write_bytes(folder_ / "My Model.gguf", writer_.bytes());
    return open_gguf(folder_ / "My Model.gguf");
  }
  std::string refusal() {
    try {
      open();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
      return error.what();
    }
    return "accepted";
  }

  TemporaryFolder folder_;
  GgufWriter writer_;
};

TEST_F(SmallGguf, InterleavedRowsBecomeHalfSplit) {
  writer_.add("llama.attention.head_count_kv", 1u);
  std::erase_if(writer_.tensors, [](const GgufTensor& tensor) {
    return tensor.name.find("attn_k") != std::string::npos ||
           tensor.name.find("attn_v") != std::string::npos;
  });
  add("blk.0.attn_k.weight", {8, 4});
  add("blk.0.attn_v.weight", {8, 4});
  const auto source = open();
  float query[64], key[32], value[32];
  source->read_rows(kQuery, 0, 0, 8, query);
  source->read_rows(kKey, 0, 0, 4, key);
  source->read_rows(kValue, 0, 0, 4, value);
  const int order[] = {0, 2, 1, 3};  // rows of a head: even members of pairs, then the odd ones
  for (int row = 0; row < 8; ++row)
    EXPECT_EQ(query[row * 8], 8 * (row / 4 * 4 + order[row % 4])) << row;
  for (int row = 0; row < 4; ++row) {
    EXPECT_EQ(key[row * 8], 8 * order[row]) << row;
    EXPECT_EQ(value[row * 8], 8 * row) << row;
  }
}

TEST_F(SmallGguf, HasItsSettingsFromTheMetadata) {
  writer_.add("llama.rope.freq_base", 500.0f);
  writer_.add("tokenizer.ggml.bos_token_id", 3u).add("tokenizer.ggml.eos_token_id", 4u);
  writer_.add("tokenizer.ggml.eot_token_id", 5u);
  const auto source = open();
  const ModelSpec& spec = source->spec();
  EXPECT_EQ(spec.architecture, "LlamaForCausalLM");
  EXPECT_EQ(spec.vocab_size, 10);
  EXPECT_EQ(spec.head_dim, 4);
  EXPECT_EQ(spec.num_key_value_heads, 2);
  EXPECT_EQ(spec.norm_epsilon, 1e-5f);
  EXPECT_NEAR(spec.rotary_inv_freq[1], 1 / std::sqrt(500.0f), 1e-6);
  EXPECT_TRUE(spec.tied_head);
  EXPECT_EQ(spec.bos_token_id, 3);
  EXPECT_EQ(spec.eos_token_ids, (std::vector<std::int64_t>{4, 5}));
  EXPECT_EQ(source->default_name(), "my-model");
  EXPECT_EQ(source->native_type(), DType::kF32);
  EXPECT_TRUE(source->tokenizer_files().empty());
}

TEST_F(SmallGguf, WithoutIdsOfTokensThereAreNone) {
  EXPECT_EQ(open()->spec().bos_token_id, -1);
  EXPECT_TRUE(open()->spec().eos_token_ids.empty());
}

TEST_F(SmallGguf, AHeadThatRepeatsTheEmbeddingIsTied) {
  add("output.weight", {8, 10});
  EXPECT_TRUE(open()->spec().tied_head);
  writer_.tensors.back().bytes[0] = 1;
  EXPECT_FALSE(open()->spec().tied_head);
}

TEST_F(SmallGguf, RotaryDivisorsGoIntoTheFrequencies) {
  const std::vector<float> plain = open()->spec().rotary_inv_freq;
  add_values("rope_freqs.weight", {1, 8});
  const std::vector<float> scaled = open()->spec().rotary_inv_freq;
  EXPECT_EQ(scaled, (std::vector<float>{plain[0], plain[1] / 8}));
  writer_.tensors.pop_back();
  add_values("rope_freqs.weight", {1, 0});
  EXPECT_NE(refusal().find("expected positive numbers"), std::string::npos);
  writer_.tensors.pop_back();
  add_values("rope_freqs.weight", {1, 2, 3});
  EXPECT_NE(refusal().find("expected F32 [2]"), std::string::npos);
}

TEST_F(SmallGguf, ReadsLinearRopeScaling) {
  const std::vector<float> plain = open()->spec().rotary_inv_freq;
  writer_.add("llama.rope.scaling.type", "linear").add("llama.rope.scaling.factor", 4.0f);
  EXPECT_EQ(open()->spec().rotary_inv_freq[1], plain[1] / 4);
  writer_.pairs.resize(writer_.pairs.size() - 2);
  writer_.add("llama.rope.scaling.type", "yarn").add("llama.rope.scaling.factor", 4.0f);
  EXPECT_NE(refusal().find("\"yarn\" is not supported"), std::string::npos) << refusal();
  writer_.pairs.resize(writer_.pairs.size() - 2);
  writer_.add("llama.rope.scaling.type", "none");
  EXPECT_EQ(open()->spec().rotary_inv_freq, plain);
}

TEST_F(SmallGguf, RefusesWhatItWouldMisread) {
  const auto refused_with = [&](const std::string& key, auto value, const std::string& part) {
    writer_.add(key, value);
    const std::string message = refusal();
    EXPECT_NE(message.find(part), std::string::npos) << message;
    writer_.pairs.pop_back();
  };
  refused_with("llama.expert_count", 8u, "llama.expert_count is 8");
  refused_with("llama.final_logit_softcapping", 30.0f, "would change results");
  refused_with("llama.attention.scale", 0.1f, "would change results");
  refused_with("llama.attention.key_length", 6u, "shape");
  refused_with("llama.attention.value_length", 5u, "value_length is 5, but a head's size is 4");
  refused_with("llama.rope.dimension_count", 2u, "rope.dimension_count is 2");
  refused_with("llama.vocab_size", 11u, "vocab_size is 11");
  refused_with("general.type", std::string_view("adapter"), "\"adapter\"");
  EXPECT_EQ(refusal(), "accepted");
}

TEST_F(SmallGguf, NamesWhatIsMissing) {
  const GgufWriter whole = writer_;
  writer_.pairs.erase(writer_.pairs.begin() + 2);
  EXPECT_NE(refusal().find("\"llama.block_count\" is missing"), std::string::npos) << refusal();
  writer_ = whole;
  writer_.tensors.erase(writer_.tensors.begin());
  EXPECT_NE(refusal().find("no tensor token_embd.weight"), std::string::npos);
  writer_ = whole;
  writer_.tensors.pop_back();
  EXPECT_NE(refusal().find("\"output_norm.weight\""), std::string::npos);
  writer_ = whole;
  add("blk.0.attn_sinks.weight", {2});
  EXPECT_NE(refusal().find("unexpected (\"blk.0.attn_sinks.weight\")"), std::string::npos);
}

TEST_F(SmallGguf, RefusesOtherArchitecturesByName) {
  writer_.pairs[0].clear();
  writer_.add("general.architecture", "mamba");
  writer_.pairs.erase(writer_.pairs.begin());
  const std::string message = refusal();
  EXPECT_NE(message.find("\"mamba\" is not supported"), std::string::npos) << message;
  EXPECT_NE(message.find("bloom, gpt2, gptneox, llama, qwen2, qwen3"), std::string::npos)
      << message;
}

}  // namespace
}  // namespace stagecoach
