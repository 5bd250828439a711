#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>
#include <thread>

#include "base/error.h"
#include "checkpoint/import.h"
#include "checkpoint/safetensors/safetensors_set.h"
#include "checkpoint/tensor_map.h"
#include "support_safetensors.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

using namespace test;
using enum TensorRole;

const Json kGpt2 = {{"architectures", {"GPT2LMHeadModel"}},
                    {"n_embd", 6},
                    {"n_head", 2},
                    {"n_layer", 2},
                    {"n_positions", 4},
                    {"n_inner", 10},
                    {"vocab_size", 5}};
const Json kGptj = {{"architectures", {"GPTJForCausalLM"}},
                    {"n_embd", 16},
                    {"n_head", 2},
                    {"n_layer", 1},
                    {"n_positions", 4},
                    {"n_inner", 6},
                    {"vocab_size", 5},
                    {"rotary_dim", 6}};
const Json kLlama = {{"architectures", {"LlamaForCausalLM"}},
                     {"hidden_size", 10},
                     {"num_attention_heads", 2},
                     {"num_key_value_heads", 1},
                     {"head_dim", 4},
                     {"num_hidden_layers", 2},
                     {"intermediate_size", 7},
                     {"vocab_size", 5},
                     {"max_position_embeddings", 8}};

std::vector<RawTensor> gpt2_tensors(const std::string& prefix) {
  std::vector<RawTensor> tensors;
  // Every element of the checkpoint has a value of its own.
  const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    const auto first = 1000.0f * static_cast<float>(tensors.size());
    tensors.push_back(counting_tensor(prefix + name, DType::kF32, shape, first));
  };
  add("wte.weight", {5, 6});
  add("wpe.weight", {4, 6});
  for (const std::string layer : {"h.0.", "h.1."}) {
    add(layer + "ln_1.weight", {6});
    add(layer + "ln_1.bias", {6});
    add(layer + "attn.c_attn.weight", {6, 18});
    add(layer + "attn.c_attn.bias", {18});
    add(layer + "attn.c_proj.weight", {6, 6});
    add(layer + "attn.c_proj.bias", {6});
    add(layer + "ln_2.weight", {6});
    add(layer + "ln_2.bias", {6});
    add(layer + "mlp.c_fc.weight", {6, 10});
    add(layer + "mlp.c_fc.bias", {10});
    add(layer + "mlp.c_proj.weight", {10, 6});
    add(layer + "mlp.c_proj.bias", {6});
  }
  add("ln_f.weight", {6});
  add("ln_f.bias", {6});
  return tensors;
}

std::vector<RawTensor> gptj_tensors() {
  std::vector<RawTensor> tensors;
  const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    tensors.push_back(
        counting_tensor(name, DType::kF16, shape, static_cast<float>(tensors.size())));
  };
  add("transformer.wte.weight", {5, 16});
  for (const char* name : {"q", "k", "v", "out"})
    add(std::string("transformer.h.0.attn.") + name + "_proj.weight", {16, 16});
  add("transformer.h.0.ln_1.weight", {16});
  add("transformer.h.0.ln_1.bias", {16});
  add("transformer.h.0.mlp.fc_in.weight", {6, 16});
  add("transformer.h.0.mlp.fc_in.bias", {6});
  add("transformer.h.0.mlp.fc_out.weight", {16, 6});
  add("transformer.h.0.mlp.fc_out.bias", {16});
  add("transformer.ln_f.weight", {16});
  add("transformer.ln_f.bias", {16});
  add("lm_head.weight", {5, 16});
  add("lm_head.bias", {5});
  return tensors;
}

std::vector<RawTensor> llama_tensors(DType type = DType::kBF16) {
  std::vector<RawTensor> tensors;
  const auto add = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    tensors.push_back(counting_tensor(name, type, shape));
  };
  add("model.embed_tokens.weight", {5, 10});
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    add(layer + "input_layernorm.weight", {10});
    add(layer + "self_attn.q_proj.weight", {8, 10});
    add(layer + "self_attn.k_proj.weight", {4, 10});
    add(layer + "self_attn.v_proj.weight", {4, 10});
    add(layer + "self_attn.o_proj.weight", {10, 8});
    add(layer + "post_attention_layernorm.weight", {10});
    add(layer + "mlp.gate_proj.weight", {7, 10});
    add(layer + "mlp.up_proj.weight", {7, 10});
    add(layer + "mlp.down_proj.weight", {10, 7});
  }
  add("model.norm.weight", {10});
  add("lm_head.weight", {5, 10});
  return tensors;
}

RawTensor& named(std::vector<RawTensor>& tensors, const std::string& name) {
  const auto it = std::find_if(tensors.begin(), tensors.end(),
                               [&](const RawTensor& t) { return t.name == name; });
  if (it == tensors.end()) throw std::runtime_error("no tensor " + name);
  return *it;
}

void remove(std::vector<RawTensor>& tensors, const std::string& name) {
  std::erase_if(tensors, [&](const RawTensor& tensor) { return tensor.name == name; });
}

class HuggingFace : public testing::Test {
 protected:
  std::unique_ptr<WeightSource> open(const Json& config, const std::vector<RawTensor>& tensors) {
    write_bytes(folder_ / "config.json", config.dump());
    write_safetensors(folder_ / "model.safetensors", tensors);
    return open_huggingface(folder_.path());
  }

  std::string refusal(const Json& config, const std::vector<RawTensor>& tensors) {
    try {
      open(config, tensors);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
      return std::string(error.what()) + "\n" + error.hint();
    }
    return "accepted";
  }

  TemporaryFolder folder_;
};

#define EXPECT_REFUSED(text, part) EXPECT_PRED_FORMAT2(testing::IsSubstring, part, text)

// All elements of a canonical tensor, read in row ranges of `step`.
std::vector<float> read(WeightSource& source, TensorRole role, std::int64_t layer,
                        std::int64_t rows, std::int64_t cols, std::int64_t step = 3) {
  std::vector<float> values(static_cast<std::size_t>(rows * cols), -1.0f);
  for (std::int64_t row = 0; row < rows; row += step)
    source.read_rows(role, layer, row, std::min(row + step, rows), values.data() + row * cols);
  return values;
}

float element(const RawTensor& tensor, std::int64_t index) {
  float value = 0;
  std::uint16_t half = 0;
  const bool wide = tensor.dtype == "F32";
  std::memcpy(wide ? static_cast<void*>(&value) : &half,
              tensor.bytes.data() + index * (wide ? 4 : 2), wide ? 4 : 2);
  if (wide) return value;
  return tensor.dtype == "F16" ? f16_to_f32(half) : bf16_to_f32(half);
}

TEST_F(HuggingFace, Gpt2sConv1dIsTransposedAndSplit) {
  auto tensors = gpt2_tensors("transformer.");
  const auto source = open(kGpt2, tensors);
  const RawTensor& fused = named(tensors, "transformer.h.1.attn.c_attn.weight");
  const RawTensor& fused_bias = named(tensors, "transformer.h.1.attn.c_attn.bias");
  const std::pair<TensorRole, TensorRole> projections[] = {
      {kQuery, kQueryBias}, {kKey, kKeyBias}, {kValue, kValueBias}};
  std::int64_t column = 0;
  for (const auto& [weight, bias] : projections) {
    const auto values = read(*source, weight, 1, 6, 6), biases = read(*source, bias, 1, 1, 6);
    for (std::int64_t row = 0; row < 6; ++row) {
      EXPECT_EQ(biases[static_cast<std::size_t>(row)], element(fused_bias, column + row));
      for (std::int64_t k = 0; k < 6; ++k)
        EXPECT_EQ(values[static_cast<std::size_t>(row * 6 + k)],
                  element(fused, k * 18 + column + row));
    }
    column += 6;
  }
  const RawTensor& down = named(tensors, "transformer.h.0.mlp.c_proj.weight");
  const auto values = read(*source, kDown, 0, 6, 10);
  for (std::int64_t row = 0; row < 6; ++row)
    for (std::int64_t k = 0; k < 10; ++k)
      EXPECT_EQ(values[static_cast<std::size_t>(row * 10 + k)], element(down, k * 6 + row));
  // Not transposed: the tables.
  const RawTensor& positions = named(tensors, "transformer.wpe.weight");
  const auto table = read(*source, kPositionEmbedding, 0, 4, 6);
  for (std::int64_t i = 0; i < 24; ++i)
    EXPECT_EQ(table[static_cast<std::size_t>(i)], element(positions, i));
}

TEST_F(HuggingFace, TransposedTensorsWiderThanATileComeOutWhole) {
  Json config = kGpt2;
  config["n_inner"] = 100;
  auto tensors = gpt2_tensors("");
  for (const std::string layer : {"h.0.", "h.1."}) {
    named(tensors, layer + "mlp.c_fc.weight") =
        counting_tensor(layer + "mlp.c_fc.weight", DType::kF32, {6, 100});
    named(tensors, layer + "mlp.c_fc.bias") =
        counting_tensor(layer + "mlp.c_fc.bias", DType::kF32, {100});
    named(tensors, layer + "mlp.c_proj.weight") =
        counting_tensor(layer + "mlp.c_proj.weight", DType::kF32, {100, 6});
  }
  const auto source = open(config, tensors);
  const auto up = read(*source, kUp, 0, 100, 6, 41), down = read(*source, kDown, 1, 6, 100, 6);
  for (std::size_t i = 0; i < 600; ++i) {
    EXPECT_EQ(up[i], static_cast<float>(i % 6 * 100 + i / 6));
    EXPECT_EQ(down[i], static_cast<float>(i % 100 * 6 + i / 100));
  }
}

TEST_F(HuggingFace, NamesWorkWithAndWithoutPrefixAndWithMaskBuffers) {
  for (const std::string prefix : {"", "transformer."}) {
    auto tensors = gpt2_tensors(prefix);
    tensors.push_back({prefix + "h.0.attn.bias", "U8", {1, 1, 4, 4}, std::string(16, '\1')});
    tensors.push_back({prefix + "h.1.attn.bias", "BOOL", {1, 1, 4, 4}, std::string(16, '\1')});
    tensors.push_back(make_tensor(prefix + "h.1.attn.masked_bias", DType::kF32, {}, {-1e4f}));
    EXPECT_EQ(read(*open(kGpt2, tensors), kFinalNorm, 0, 1, 6)[0], 26000.0f);
  }
  auto tensors = llama_tensors();
  tensors.push_back(
      {"model.layers.1.self_attn.rotary_emb.inv_freq", "F64", {2}, std::string(16, '\0')});
  EXPECT_NO_THROW(open(kLlama, tensors));
  tensors.back().name =
      "model.layers.2.self_attn.rotary_emb.inv_freq";  // of a layer that is not there
  EXPECT_REFUSED(refusal(kLlama, tensors), "unexpected");
}

// Rows of each 8-row head, the first 6 of them rotary: even members of the pairs, then the odd
// ones.
const std::int64_t kHalfSplit[8] = {0, 2, 4, 1, 3, 5, 6, 7};

TEST_F(HuggingFace, GptjsInterleavedRotaryIsPermutedToHalfSplit) {
  auto tensors = gptj_tensors();
  const auto source = open(kGptj, tensors);
  const std::pair<TensorRole, const char*> projections[] = {
      {kQuery, "q"}, {kKey, "k"}, {kValue, "v"}};
  for (const auto& [role, name] : projections) {
    const RawTensor& stored =
        named(tensors, std::string("transformer.h.0.attn.") + name + "_proj.weight");
    for (const std::int64_t step : {1, 3, 16}) {  // ranges inside, across and over heads
      const auto values = read(*source, role, 0, 16, 16, step);
      for (std::int64_t row = 0; row < 16; ++row) {
        const std::int64_t from = role == kValue ? row : row / 8 * 8 + kHalfSplit[row % 8];
        for (std::int64_t k = 0; k < 16; ++k)
          EXPECT_EQ(values[static_cast<std::size_t>(row * 16 + k)], element(stored, from * 16 + k))
              << name << row;
      }
    }
  }
  EXPECT_EQ(read(*source, kHeadBias, 0, 1, 5)[4], element(named(tensors, "lm_head.bias"), 4));
}

// No family of today has rotary biases that are interleaved; the description language does.
TEST_F(HuggingFace, InterleavedBiasesArePermutedAsTheirRows) {
  Family family = *std::find_if(families().begin(), families().end(),
                                [](const Family& f) { return f.name == "gptj"; });
  family.names.tensors.push_back({.source = "{prefix}h.{layer}.attn.q_proj.bias",
                                  .roles = {kQueryBias},
                                  .interleaved_rotary = true});
  auto tensors = gptj_tensors();
  tensors.push_back(counting_tensor("transformer.h.0.attn.q_proj.bias", DType::kF32, {16}));
  write_safetensors(folder_ / "model.safetensors", tensors);
  ModelSpec spec = resolve_config(kGptj, nullptr, "config.json");
  spec.query_bias = true;
  const TensorSet set = open_safetensors(folder_.path());
  const TensorMap map = map_tensors({spec, family.names, set, "x", "config.json"});
  float values[16];
  read_rows_in_order(map.bindings.at({kQueryBias, 0}), 0, 16, values);
  for (std::int64_t row = 0; row < 16; ++row)
    EXPECT_EQ(values[row], static_cast<float>(row / 8 * 8 + kHalfSplit[row % 8]));
}

TEST_F(HuggingFace, LlamaReadsEveryCatalogTensor) {
  auto tensors = llama_tensors();
  const auto source = open(kLlama, tensors);
  EXPECT_EQ(source->native_type(), DType::kBF16);
  EXPECT_EQ(source->spec().head_dim, 4);
  for (const auto& [role, name] : {std::pair{kQuery, "self_attn.q_proj"},
                                   {kAttentionOutput, "self_attn.o_proj"},
                                   {kGate, "mlp.gate_proj"},
                                   {kDown, "mlp.down_proj"}}) {
    const RawTensor& stored = named(tensors, std::string("model.layers.1.") + name + ".weight");
    const auto values = read(*source, role, 1, stored.shape[0], stored.shape[1]);
    for (std::size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(values[i], element(stored, static_cast<std::int64_t>(i)));
  }
  for (const SlabKind slab : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead})
    for (const TensorSpec& tensor : slab_tensors(source->spec(), slab, DType::kF32))
      EXPECT_EQ(read(*source, tensor.role, 0, tensor.rows, tensor.cols)[1], 1.0f)
          << role_name(tensor.role);
}

TEST_F(HuggingFace, AttentionAndMlpBiasesAreReadWhenTheConfigHasThem) {
  Json config = kLlama;
  config["attention_bias"] = true;
  EXPECT_REFUSED(refusal(config, llama_tensors()),
                 "8 tensors are missing (\"model.layers.0.self_attn.q_proj.bias\"");
  auto tensors = llama_tensors();
  tensors.push_back(counting_tensor("model.layers.0.self_attn.q_proj.bias", DType::kBF16, {8}));
  EXPECT_REFUSED(refusal(kLlama, tensors),
                 "1 tensors are unexpected (\"model.layers.0.self_attn.q_proj.bias\")");
}

TEST_F(HuggingFace, NamesTensorsThatAreMissingExtraOrMisshapen) {
  auto tensors = llama_tensors();
  remove(tensors, "model.layers.1.mlp.up_proj.weight");
  EXPECT_REFUSED(refusal(kLlama, tensors),
                 "1 tensors are missing (\"model.layers.1.mlp.up_proj.weight\")");
  tensors = llama_tensors();
  remove(tensors, "model.embed_tokens.weight");
  EXPECT_REFUSED(refusal(kLlama, tensors), "1 tensors are missing (\"model.embed_tokens.weight\")");
  tensors = llama_tensors();
  tensors.push_back(counting_tensor("model.layers.0.self_attn.q_norm.weight", DType::kBF16, {4}));
  EXPECT_REFUSED(refusal(kLlama, tensors), "q_norm");
  tensors = llama_tensors();
  named(tensors, "model.norm.weight").shape = {2, 5};
  EXPECT_REFUSED(refusal(kLlama, tensors), "\"model.norm.weight\" has shape [2, 5], expected [10]");
  tensors = llama_tensors();
  named(tensors, "model.layers.0.mlp.down_proj.weight").shape = {7, 10};
  EXPECT_REFUSED(refusal(kLlama, tensors), "expected [10, 7]");
  Json deeper = kLlama;
  deeper["num_hidden_layers"] = 3;
  EXPECT_REFUSED(refusal(deeper, llama_tensors()), "9 tensors are missing");
  EXPECT_REFUSED(refusal(deeper, llama_tensors()), "and 5 more");
  Json shallower = kLlama;
  shallower["num_hidden_layers"] = 1;
  EXPECT_REFUSED(refusal(shallower, llama_tensors()), "9 tensors are unexpected");
}

TEST_F(HuggingFace, RefusesWeightTypesByName) {
  auto tensors = llama_tensors();
  RawTensor& tensor = named(tensors, "model.layers.0.self_attn.q_proj.weight");
  tensor.dtype = "F8_E4M3";
  tensor.bytes.resize(80);
  EXPECT_REFUSED(refusal(kLlama, tensors), "is F8_E4M3");
}

TEST_F(HuggingFace, NativeTypeIsTheOneThatLosesNothing) {
  EXPECT_EQ(open(kLlama, llama_tensors(DType::kF16))->native_type(), DType::kF16);
  auto tensors = llama_tensors(DType::kF16);
  named(tensors, "model.norm.weight") = counting_tensor("model.norm.weight", DType::kF32, {10});
  EXPECT_EQ(open(kLlama, tensors)->native_type(), DType::kF16);  // a vector says nothing
  named(tensors, "lm_head.weight") = counting_tensor("lm_head.weight", DType::kBF16, {5, 10});
  EXPECT_EQ(open(kLlama, tensors)->native_type(), DType::kF32);
}

TEST_F(HuggingFace, ATiedHeadMayBeAbsentOrEqualOnly) {
  auto tensors = gpt2_tensors("transformer.");
  tensors.push_back(tensors.front());
  tensors.back().name = "lm_head.weight";
  EXPECT_NO_THROW(open(kGpt2, tensors));
  tensors.back().bytes[17] ^= 1;
  EXPECT_REFUSED(refusal(kGpt2, tensors), "values differ");
  EXPECT_REFUSED(refusal(kGpt2, tensors), "tie_word_embeddings");
  tensors.back() = counting_tensor("lm_head.weight", DType::kF16, {5, 6});
  EXPECT_REFUSED(refusal(kGpt2, tensors), "type or shape differs");
  Json untied = kGpt2;
  untied["tie_word_embeddings"] = false;
  EXPECT_EQ(read(*open(untied, tensors), kHead, 0, 5, 6)[29], 29.0f);
  auto without = llama_tensors();
  remove(without, "lm_head.weight");
  EXPECT_REFUSED(refusal(kLlama, without), "lm_head.weight");
}

TEST_F(HuggingFace, ReadsShardsByTheirIndex) {
  auto tensors = llama_tensors();
  const auto middle = tensors.begin() + static_cast<std::ptrdiff_t>(tensors.size() / 2);
  write_safetensors(folder_ / "a.safetensors", {tensors.begin(), middle});
  write_safetensors(folder_ / "b.safetensors", {middle, tensors.end()});
  Json map = Json::object();
  for (auto it = tensors.begin(); it != tensors.end(); ++it)
    map[it->name] = it < middle ? "a.safetensors" : "b.safetensors";
  write_bytes(folder_ / "model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  write_bytes(folder_ / "config.json", kLlama.dump());
  EXPECT_EQ(read(*open_huggingface(folder_.path()), kHead, 0, 5, 10)[49], 49.0f);
}

TEST_F(HuggingFace, IdentityFollowsTheFiles) {
  const std::string before = open(kLlama, llama_tensors())->identity();
  EXPECT_EQ(open_huggingface(folder_.path())->identity(), before);
  EXPECT_NE(before.find("model.safetensors"), std::string::npos);
  write_bytes(folder_ / "generation_config.json", R"({"eos_token_id": [3, 4]})");
  const auto source = open_huggingface(folder_.path());
  EXPECT_NE(source->identity(), before);
  EXPECT_EQ(source->spec().eos_token_ids, (std::vector<std::int64_t>{3, 4}));
  using std::filesystem::last_write_time;
  last_write_time(folder_ / "model.safetensors",
                  last_write_time(folder_ / "model.safetensors") + std::chrono::hours(1));
  EXPECT_NE(open_huggingface(folder_.path())->identity(), source->identity());
}

TEST_F(HuggingFace, CopiesTokenizerFilesAndNamesItself) {
  const std::string tokenizer = tokenizer_file_names().front();
  write_bytes(folder_ / tokenizer, "content");
  write_bytes(folder_ / "README.md", "no");
  const auto source = open(kLlama, llama_tensors());
  ASSERT_EQ(source->tokenizer_files().count(tokenizer), 1u);
  EXPECT_EQ(source->tokenizer_files().at(tokenizer), "content");
  EXPECT_EQ(source->tokenizer_files().count("README.md"), 0u);

  std::filesystem::create_directories(folder_ / "My Model-7B");
  const auto cached = folder_ / "models--EleutherAI--gpt-j-6B" / "snapshots" / "0123abcd";
  std::filesystem::create_directories(cached);
  for (const auto& directory : {folder_ / "My Model-7B", cached})
    for (const std::string name : {"config.json", "model.safetensors"})
      std::filesystem::create_symlink(folder_ / name, directory / name);
  EXPECT_EQ(open_huggingface(folder_ / "My Model-7B/")->default_name(), "my-model-7b");
  EXPECT_EQ(open_huggingface(cached)->default_name(), "gpt-j-6b");
}

TEST_F(HuggingFace, SaysWhatIsMissingInTheDirectory) {
  const auto refused = [](const std::filesystem::path& path) {
    try {
      open_huggingface(path);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_REFUSED(refused(folder_ / "nowhere"), "is not a directory");
  EXPECT_REFUSED(refused(folder_.path()), "no config.json");
  write_bytes(folder_ / "config.json", kLlama.dump());
  write_bytes(folder_ / "pytorch_model.bin", "x");
  EXPECT_REFUSED(refused(folder_.path()), "was not written by torch.save");
}

TEST_F(HuggingFace, DisjointRangesOfOneTensorCanBeReadAtOnce) {
  const auto source = open(kGpt2, gpt2_tensors(""));
  for (const auto& [role, rows, cols] :
       {std::tuple{kUp, 10, 6}, {kDown, 6, 10}, {kTokenEmbedding, 5, 6}}) {
    const auto expected = read(*source, role, 0, rows, cols);
    std::vector<float> values(expected.size());
    std::vector<std::thread> threads;
    for (std::int64_t row = 0; row < rows; ++row)
      threads.emplace_back([&, row, r = role, c = cols] {
        source->read_rows(r, 0, row, row + 1, values.data() + row * c);
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(values, expected);
  }
}

// finetuneanon's fork of transformers, in which GPT-J first ran, named its tensors as GPT-Neo does.
TEST_F(HuggingFace, GptjUnderTheNamesOfItsFirstFork) {
  std::vector<RawTensor> tensors = gptj_tensors();
  const auto expected = open(kGptj, tensors);
  const std::vector<std::vector<float>> values = {read(*expected, kQuery, 0, 16, 16),
                                                  read(*expected, kUp, 0, 6, 16),
                                                  read(*expected, kDown, 0, 16, 6)};
  const auto respell = [&](const std::string& part, const std::string& old_part) {
    for (RawTensor& tensor : tensors)
      if (const std::size_t at = tensor.name.find(part); at != std::string::npos)
        tensor.name.replace(at, part.size(), old_part);
  };
  respell(".attn.", ".attn.attention.");
  respell(".fc_in.", ".c_fc.");
  respell(".fc_out.", ".c_proj.");
  const auto old = open(kGptj, tensors);
  EXPECT_EQ(read(*old, kQuery, 0, 16, 16), values[0]);
  EXPECT_EQ(read(*old, kUp, 0, 6, 16), values[1]);
  EXPECT_EQ(read(*old, kDown, 0, 16, 6), values[2]);
  // Both spellings of one tensor: which would be read?
  tensors.push_back(counting_tensor("transformer.h.0.mlp.fc_in.bias", DType::kF16, {6}));
  EXPECT_REFUSED(refusal(kGptj, tensors),
                 "1 tensors are unexpected (\"transformer.h.0.mlp.c_fc.bias");
}

TEST_F(HuggingFace, GptNeoIsRefusedByNameAndTheForksGptjToldApart) {
  Json config = {{"architectures", {"GPTNeoForCausalLM"}}, {"model_type", "gpt_neo"}};
  const auto hint = [&] {
    try {
      open(config, {});
    } catch (const Error& error) {
      EXPECT_REFUSED(error.what(), "\"GPTNeoForCausalLM\" is not supported");
      return error.hint();
    }
    return std::string("accepted");
  };
  EXPECT_REFUSED(hint(), "GPT-Neo's local attention");
  config["rotary_dim"] = 64;
  EXPECT_REFUSED(hint(), "replace config.json by that of EleutherAI/gpt-j-6b");
}

TEST_F(HuggingFace, SaysWhatAFolderWithoutWeightsHolds) {
  const auto error_with = [](const std::string& file) {
    const TemporaryFolder folder;
    write_bytes(folder / "config.json", kGptj.dump());
    if (!file.empty()) write_bytes(folder / file, "x");
    try {
      open_huggingface(folder.path());
    } catch (const Error& error) {
      return std::string(error.what()) + "\n" + error.hint();
    }
    return std::string("accepted");
  };
  EXPECT_REFUSED(error_with("consolidated.00.pth"), "rename it to pytorch_model.bin");
  EXPECT_REFUSED(error_with("model.pt"), "found \"model.pt\"");
  EXPECT_REFUSED(error_with("model-q4.gguf"), "stagecoach import");
  EXPECT_REFUSED(error_with("weights.safetensors"), "rename it to model.safetensors");
  EXPECT_REFUSED(error_with(""), "holds no model.safetensors");
}

}  // namespace
}  // namespace stagecoach
