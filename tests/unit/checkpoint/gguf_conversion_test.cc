// Every golden checkpoint, written as llama.cpp's converter writes its family, and read back: the
// same axes and the same weights as from safetensors, bit for bit. What the converter does to rows
// is written down here once more, in the other direction than configs/models/*.json has it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "checkpoint/import.h"
#include "model/tensor_catalog.h"
#include "support_gguf.h"

namespace stagecoach {
namespace {

using test::GgufTensor;
using test::GgufWriter;
using enum TensorRole;

namespace fs = std::filesystem;

// How the converter stores a family.
struct Convention {
  std::string architecture;
  bool fused = false;        // q, k and v in one tensor
  bool interleaved = false;  // rotary rows permuted to neighbouring pairs
  bool rms = false;
};

// By config.json's model_type.
const std::map<std::string, Convention> kConventions = {
    {"llama", {.architecture = "llama", .interleaved = true, .rms = true}},
    {"mistral", {.architecture = "llama", .interleaved = true, .rms = true}},
    {"gpt2", {.architecture = "gpt2", .fused = true}},
    {"gpt_neox", {.architecture = "gptneox", .fused = true}},
    {"bloom", {.architecture = "bloom", .fused = true}},
    {"qwen2", {.architecture = "qwen2", .rms = true}},
    {"qwen3", {.architecture = "qwen3", .rms = true}},
};

const std::map<TensorRole, std::string> kNames = {
    {kTokenEmbedding, "token_embd.weight"},
    {kPositionEmbedding, "position_embd.weight"},
    {kEmbeddingNorm, "token_embd_norm.weight"},
    {kEmbeddingNormBias, "token_embd_norm.bias"},
    {kAttentionNorm, "attn_norm.weight"},
    {kAttentionNormBias, "attn_norm.bias"},
    {kQuery, "attn_q.weight"},
    {kQueryBias, "attn_q.bias"},
    {kKey, "attn_k.weight"},
    {kKeyBias, "attn_k.bias"},
    {kValue, "attn_v.weight"},
    {kValueBias, "attn_v.bias"},
    {kQueryNorm, "attn_q_norm.weight"},
    {kKeyNorm, "attn_k_norm.weight"},
    {kAttentionOutput, "attn_output.weight"},
    {kAttentionOutputBias, "attn_output.bias"},
    {kMlpNorm, "ffn_norm.weight"},
    {kMlpNormBias, "ffn_norm.bias"},
    {kGate, "ffn_gate.weight"},
    {kGateBias, "ffn_gate.bias"},
    {kUp, "ffn_up.weight"},
    {kUpBias, "ffn_up.bias"},
    {kDown, "ffn_down.weight"},
    {kDownBias, "ffn_down.bias"},
    {kFinalNorm, "output_norm.weight"},
    {kFinalNormBias, "output_norm.bias"},
    {kHead, "output.weight"},
};

struct Matrix {
  std::int64_t rows, cols;
  std::vector<float> values;
};

Matrix read(WeightSource& source, const TensorSpec& tensor, std::int64_t layer) {
  Matrix matrix{tensor.rows, tensor.cols, {}};
  matrix.values.resize(static_cast<std::size_t>(tensor.rows * tensor.cols));
  source.read_rows(tensor.role, layer, 0, tensor.rows, matrix.values.data());
  return matrix;
}

// Rows (heads, 2, n) become (heads, n, 2). A vector's elements count as rows.
Matrix interleave(const Matrix& matrix, std::int64_t heads, bool vector) {
  const std::int64_t rows = vector ? matrix.cols : matrix.rows, width = vector ? 1 : matrix.cols;
  const std::int64_t half = rows / heads / 2;
  Matrix result = matrix;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t head = row / (2 * half), member = row / half % 2, pair = row % half;
    std::copy_n(matrix.values.data() + row * width, width,
                result.values.data() + (head * 2 * half + 2 * pair + member) * width);
  }
  return result;
}

class Converter {
 public:
  Converter(WeightSource& source, const Convention& convention, const Json& config)
      : source_(source), spec_(source.spec()), convention_(convention), config_(config) {}

  std::string convert() {
    add_metadata();
    add_slab(SlabKind::kEmbedding, 0);
    for (std::int64_t layer = 0; layer < spec_.num_hidden_layers; ++layer)
      add_slab(SlabKind::kLayer, layer);
    add_slab(SlabKind::kHead, 0);
    return writer_.bytes();
  }

 private:
  void add_size(const std::string& key, std::int64_t value) {
    writer_.add(convention_.architecture + "." + key, static_cast<std::uint32_t>(value));
  }
  void add_metadata();
  void add_rope();
  void add_slab(SlabKind slab, std::int64_t layer);
  void add_tensor(const std::string& name, const Matrix& matrix, bool vector);

  WeightSource& source_;
  const ModelSpec& spec_;
  const Convention& convention_;
  const Json& config_;
  GgufWriter writer_;
  Matrix fused_[2];  // of weights and biases, while a layer's q, k and v go by
};

void Converter::add_metadata() {
  writer_.add("general.architecture", convention_.architecture);
  add_size("block_count", spec_.num_hidden_layers);
  add_size("context_length", spec_.max_position_embeddings);
  add_size("embedding_length", spec_.hidden_size);
  add_size("feed_forward_length", spec_.intermediate_size);
  add_size("attention.head_count", spec_.num_attention_heads);
  if (convention_.rms) add_size("attention.head_count_kv", spec_.num_key_value_heads);
  if (config_.contains("head_dim")) {
    add_size("attention.key_length", spec_.head_dim);
    add_size("attention.value_length", spec_.head_dim);
  }
  writer_.add(convention_.architecture + (convention_.rms ? ".attention.layer_norm_rms_epsilon"
                                                          : ".attention.layer_norm_epsilon"),
              spec_.norm_epsilon);
  if (spec_.sliding_window > 0) add_size("attention.sliding_window", spec_.sliding_window);
  if (config_.contains("use_parallel_residual"))
    writer_.add(convention_.architecture + ".use_parallel_residual", GgufType::kBool,
                static_cast<std::uint8_t>(config_["use_parallel_residual"].get<bool>()));
  if (spec_.position == PositionKind::kRotary) add_rope();
  if (spec_.bos_token_id >= 0)
    writer_.add("tokenizer.ggml.bos_token_id", static_cast<std::uint32_t>(spec_.bos_token_id));
  const char* const ends[] = {"eos", "eot"};
  for (std::size_t i = 0; i < spec_.eos_token_ids.size(); ++i)
    writer_.add(fmt::format("tokenizer.ggml.{}_token_id", ends[i]),
                static_cast<std::uint32_t>(spec_.eos_token_ids[i]));
}

void Converter::add_rope() {
  add_size("rope.dimension_count", spec_.rotary_dim);
  Json rope = config_.value("rope_parameters", config_.value("rope_scaling", Json()));
  if (!rope.is_object()) rope = Json::object();
  const double theta = rope.value("rope_theta", config_.value("rope_theta", 10000.0));
  const std::string type = rope.value("rope_type", rope.value("type", "default"));
  const std::string prefix = convention_.architecture + ".rope.";
  writer_.add(prefix + "freq_base", static_cast<float>(theta));
  if (type == "linear") {
    writer_.add(prefix + "scaling.type", "linear");
    writer_.add(prefix + "scaling.factor", rope.at("factor").get<float>());
  } else if (type == "llama3") {
    Matrix divisors{1, spec_.rotary_dim / 2, {}};
    for (std::int64_t i = 0; i < divisors.cols; ++i) {
      const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(spec_.rotary_dim);
      divisors.values.push_back(static_cast<float>(
          std::pow(theta, -exponent) / spec_.rotary_inv_freq[static_cast<std::size_t>(i)]));
    }
    add_tensor("rope_freqs.weight", divisors, true);
  }
}

void Converter::add_tensor(const std::string& name, const Matrix& matrix, bool vector) {
  GgufTensor tensor{name, {static_cast<std::uint64_t>(matrix.cols)}, 0, {}, -1};
  if (!vector) tensor.dimensions.push_back(static_cast<std::uint64_t>(matrix.rows));
  tensor.bytes.assign(reinterpret_cast<const char*>(matrix.values.data()),
                      matrix.values.size() * sizeof(float));
  writer_.tensors.push_back(std::move(tensor));
}

void Converter::add_slab(SlabKind slab, std::int64_t layer) {
  for (const TensorSpec& tensor : slab_tensors(spec_, slab, DType::kF32)) {
    const TensorRole role = tensor.role;
    Matrix matrix = read(source_, tensor, layer);
    std::string name = kNames.at(role);
    if (slab == SlabKind::kLayer) name = fmt::format("blk.{}.{}", layer, name);
    const bool vector = name.ends_with(".bias") || name.find("_norm.") != std::string::npos;
    const bool query = role == kQuery || role == kQueryBias, key = role == kKey || role == kKeyBias;
    if (convention_.interleaved && (query || key))
      matrix =
          interleave(matrix, query ? spec_.num_attention_heads : spec_.num_key_value_heads, vector);
    if (convention_.fused && role >= kQuery && role <= kValueBias) {
      Matrix& fused = fused_[vector ? 1 : 0];
      if (query) fused = {vector ? 1 : 0, vector ? 0 : matrix.cols, {}};
      (vector ? fused.cols : fused.rows) += vector ? matrix.cols : matrix.rows;
      fused.values.insert(fused.values.end(), matrix.values.begin(), matrix.values.end());
      if (role != kValue && role != kValueBias) continue;
      name.replace(name.find("attn_v"), 6, "attn_qkv");
      matrix = fused;
    }
    add_tensor(name, matrix, vector);
  }
}

Json config_of(const fs::path& directory) {
  return read_json_file(directory / "config.json", 1 << 20);
}

// Those of families that llama.cpp converts. Mistral is Llama there; converters that keep its
// window write it as other architectures have it.
std::vector<std::string> fixtures() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(fs::path(TEST_DATA_DIR) / "golden"))
    if (entry.is_directory() && kConventions.contains(config_of(entry.path())["model_type"]))
      names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

class GgufConversion : public testing::TestWithParam<std::string> {};

TEST_P(GgufConversion, ReadsBackWhatSafetensorsHold) {
  const fs::path directory = fs::path(TEST_DATA_DIR) / "golden" / GetParam();
  const auto original = open_huggingface(directory);
  const Json config = config_of(directory);
  const TemporaryFolder folder;
  test::write_bytes(folder / "m.gguf",
                    Converter(*original, kConventions.at(config["model_type"]), config).convert());
  const auto converted = open_gguf(folder / "m.gguf");

  ModelSpec expected = original->spec();
  const ModelSpec& actual = converted->spec();
  // Divisors are rounded once more than Hugging Face's own formula.
  ASSERT_EQ(actual.rotary_inv_freq.size(), expected.rotary_inv_freq.size());
  for (std::size_t i = 0; i < actual.rotary_inv_freq.size(); ++i)
    EXPECT_NEAR(actual.rotary_inv_freq[i], expected.rotary_inv_freq[i],
                2e-7 * expected.rotary_inv_freq[i]);
  expected.rotary_inv_freq = actual.rotary_inv_freq;
  // GGUF does not say which GELU: each family's usual one is taken.
  if (GetParam() == "gpt2-untied-f16") expected.activation = ActivationKind::kGeluTanh;
  if (GetParam() == "gptneox-sequential-bf16") expected.activation = ActivationKind::kGeluErf;
  EXPECT_EQ(to_json(actual), to_json(expected));

  for (const SlabKind slab : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead})
    for (const TensorSpec& tensor : slab_tensors(expected, slab, DType::kF32))
      for (std::int64_t layer = 0;
           layer < (slab == SlabKind::kLayer ? expected.num_hidden_layers : 1); ++layer) {
        const Matrix left = read(*converted, tensor, layer), right = read(*original, tensor, layer);
        ASSERT_EQ(std::memcmp(left.values.data(), right.values.data(),
                              left.values.size() * sizeof(float)),
                  0)
            << tensor_name(tensor.role, layer);
      }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GgufConversion, testing::ValuesIn(fixtures()),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace stagecoach
