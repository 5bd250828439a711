#include "checkpoint/gguf/gguf_config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/foreign_text.h"
#include "checkpoint/import.h"

namespace stagecoach {
namespace {

// Keys under the architecture that some model gives a meaning which this build does not compute,
// with the values that mean "off", for families that do not read the key themselves.
const std::map<std::string, std::vector<Json>> kAccepted = {
    {"attention.causal", {true}},
    {"attention.clamp_kqv", {0}},
    {"attention.max_alibi_bias", {0}},
    {"attention.scale", {}},
    {"attention.shared_kv_layers", {0}},
    {"attention.sliding_window", {0}},
    {"attention.temperature_scale", {0}},
    {"attn_logit_softcapping", {0}},
    {"embedding_scale", {1}},
    {"expert_count", {0}},
    {"expert_used_count", {0}},
    {"final_logit_softcapping", {0}},
    {"leading_dense_block_count", {0}},
    {"logit_scale", {1}},
    {"nextn_predict_layers", {0}},
    {"pooling_type", {0}},
    {"residual_scale", {1}},
    {"rope.dimension_sections", {}},
    {"rope.scaling.attn_factor", {1}},
    {"rope.scaling.yarn_attn_factor", {1}},
    {"swin_norm", {false}},
    {"use_parallel_residual", {false}},
};

// What is read or checked below, and what changes nothing.
const std::set<std::string> kKnown = {
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
};

constexpr const char* kEmbedding = "token_embd.weight";
constexpr const char* kHead = "output.weight";
constexpr const char* kRotaryDivisors = "rope_freqs.weight";

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

const Family& find_gguf_family(const GgufMetadata& metadata) {
  if (metadata.has("general.type") && metadata.string("general.type") != "model")
    throw data_error(fmt::format("{} holds no model but {} (general.type)", metadata.where(),
                                 quote_name(metadata.string("general.type"))));
  const std::string architecture = metadata.string("general.architecture");
  std::set<std::string> known;
  const Family* found = nullptr;
  for (const Family& family : families()) {
    if (!family.gguf) continue;
    const GgufDescription& gguf = *family.gguf;
    known.insert(gguf.architectures.begin(), gguf.architectures.end());
    if (!contains(gguf.architectures, architecture)) continue;
    const std::string condition = architecture + "." + gguf.when;
    const bool claimed =
        !gguf.when.empty() && metadata.has(condition) && metadata.setting(condition) != 0;
    if (claimed || (gguf.when.empty() && found == nullptr)) found = &family;
  }
  if (found != nullptr) return *found;
  throw data_error(
      fmt::format("{}: the architecture {} is not supported; of GGUF files this build imports {}",
                  metadata.where(), quote_name(architecture), fmt::join(known, ", ")));
}

class ConfigWriter {
 public:
  ConfigWriter(const GgufMetadata& metadata, const Family& family)
      : metadata_(metadata),
        family_(family),
        description_(*family.gguf),
        prefix_(metadata.string("general.architecture") + ".") {}

  // The metadata and what the tensors tell, as a config.json.
  Json write(const GgufTokenizer& tokenizer, const TensorSet& set, bool tied) const;
  // Throws for settings that would change results and that nothing here computes.
  void check_meaning() const;
  // What config.json has no key for, or derives.
  void check_agreement(const ModelSpec& spec) const;

 private:
  bool has(const std::string& key) const { return metadata_.has(prefix_ + key); }
  Json setting(const std::string& key) const { return metadata_.setting(prefix_ + key); }
  Json rope_scaling() const;
  double rotary_share() const;
  void check_size(const std::string& key, const char* what, std::int64_t expected) const;

  const GgufMetadata& metadata_;
  const Family& family_;
  const GgufDescription& description_;
  std::string prefix_;
};

// Null without any.
Json ConfigWriter::rope_scaling() const {
  const std::string old = prefix_ + "rope.scale_linear";  // before there were several types
  if (metadata_.has(old)) return {{"rope_type", "linear"}, {"factor", metadata_.number(old)}};
  if (!has("rope.scaling.type")) return {};
  const std::string type = metadata_.string(prefix_ + "rope.scaling.type");
  if (type == "none") return {};
  Json scaling = {{"rope_type", type}};
  if (has("rope.scaling.factor")) scaling["factor"] = setting("rope.scaling.factor");
  return scaling;
}

// config.json has a share of each head's dimensions where the metadata have their number. Half a
// dimension more, since Hugging Face truncates.
double ConfigWriter::rotary_share() const {
  const double head_dim = metadata_.number(prefix_ + "embedding_length") /
                          metadata_.number(prefix_ + "attention.head_count");
  const double rotary = metadata_.number(prefix_ + "rope.dimension_count");
  return rotary == head_dim ? 1 : (rotary + 0.5) / head_dim;
}

Json ConfigWriter::write(const GgufTokenizer& tokenizer, const TensorSet& set, bool tied) const {
  Json config = description_.config;
  for (const auto& [key, name] : description_.keys) config[name] = setting(key);
  for (const auto& [key, name] : description_.optional_keys)
    if (has(key)) config[name] = setting(key);
  for (const auto& [name, tensor] : description_.flags) config[name] = set.tensors.contains(tensor);
  config["tie_word_embeddings"] = tied;
  // llama.cpp counts the rows too: many files do not say.
  config["vocab_size"] = set.tensors.at(kEmbedding).shape.front();
  if (family_.rotary && family_.rotary->partial)
    config[family_.rotary->partial->keys.front()] = rotary_share();
  if (Json scaling = rope_scaling(); !scaling.is_null())
    config["rope_scaling"] = std::move(scaling);
  config["bos_token_id"] = tokenizer.bos < 0 ? Json() : Json(tokenizer.bos);
  config["eos_token_id"] = gguf_end_of_text_ids(tokenizer);
  return config;
}

void ConfigWriter::check_meaning() const {
  std::string unknown;
  for (const auto& [key, place] : metadata_.places()) {
    const bool ours = key.starts_with(prefix_);
    const std::string name = ours ? key.substr(prefix_.size()) : key;
    if (ours) {
      if (description_.keys.contains(name) || description_.optional_keys.contains(name) ||
          kKnown.contains(name))
        continue;
      if (const auto accepted = kAccepted.find(name); accepted != kAccepted.end()) {
        const Json value = setting(name);
        const auto& off = accepted->second;
        if (std::find(off.begin(), off.end(), value) != off.end()) continue;
        throw data_error(
            fmt::format("{}: {} is {}, which would change results and is not supported{}",
                        metadata_.where(), key, value.dump(-1, ' ', true),
                        off.empty() ? std::string() : "; expected " + off.front().dump()));
      }
    } else if (name.starts_with("general.") || name.starts_with("tokenizer.") ||
               name.starts_with("quantize.") || name.starts_with("split.")) {
      continue;
    }
    unknown += (unknown.empty() ? "" : ", ") + quote_name(key);
  }
  if (!unknown.empty()) spdlog::warn("{}: ignoring unknown keys {}", metadata_.where(), unknown);
}

void ConfigWriter::check_size(const std::string& key, const char* what,
                              std::int64_t expected) const {
  if (has(key) && metadata_.integer(prefix_ + key) != expected)
    throw data_error(fmt::format("{}: {}{} is {}, but {} is {}", metadata_.where(), prefix_, key,
                                 metadata_.integer(prefix_ + key), what, expected));
}

void ConfigWriter::check_agreement(const ModelSpec& spec) const {
  check_size("attention.key_length", "a head's size", spec.head_dim);
  check_size("attention.value_length", "a head's size", spec.head_dim);
  check_size("attention.head_count_kv", "the number of key heads", spec.num_key_value_heads);
  check_size("vocab_size", "the number of rows of token_embd.weight", spec.vocab_size);
  if (spec.position == PositionKind::kRotary)
    check_size("rope.dimension_count", "the number of rotary dimensions", spec.rotary_dim);
}

// The converter writes Llama 3's rope scaling as what to divide each frequency by.
void divide_frequencies(const StoredTensor& tensor, const std::string& where, ModelSpec& spec) {
  const auto count = static_cast<std::int64_t>(spec.rotary_inv_freq.size());
  if (tensor.format != BlockFormat::kF32 || tensor.shape != std::vector{count})
    throw data_error(fmt::format("{}: {} is {} {}, expected F32 {}", where, kRotaryDivisors,
                                 tensor.type, shape_text(tensor.shape), shape_text({count})));
  std::vector<float> divisors(spec.rotary_inv_freq.size());
  tensor.file->read_at(tensor.offset, std::as_writable_bytes(std::span(divisors)));
  for (std::size_t i = 0; i < divisors.size(); ++i) {
    if (!(std::isfinite(divisors[i]) && divisors[i] > 0))
      throw data_error(fmt::format("{}: {} holds {}, expected positive numbers", where,
                                   kRotaryDivisors, divisors[i]));
    spec.rotary_inv_freq[i] /= divisors[i];
  }
}

std::int64_t token_id(const GgufMetadata& metadata, const char* key) {
  return metadata.has(key) ? metadata.integer(key) : -1;
}

std::vector<std::int64_t> token_ids(const GgufMetadata& metadata, const char* key) {
  if (!metadata.has(key)) return {};
  return {metadata.integer(key)};
}

std::optional<bool> optional_flag(const GgufMetadata& metadata, const char* key) {
  if (!metadata.has(key)) return std::nullopt;
  return metadata.boolean(key);
}

std::string optional_string(const GgufMetadata& metadata, const char* key) {
  return metadata.has(key) ? metadata.string(key) : std::string();
}

}  // namespace

GgufTokenizer read_gguf_tokenizer(const GgufMetadata& metadata) {
  GgufTokenizer tokenizer;
  tokenizer.bos = token_id(metadata, "tokenizer.ggml.bos_token_id");
  tokenizer.eos = token_id(metadata, "tokenizer.ggml.eos_token_id");
  tokenizer.unk = token_id(metadata, "tokenizer.ggml.unknown_token_id");
  tokenizer.pad = token_id(metadata, "tokenizer.ggml.padding_token_id");
  tokenizer.eot = token_ids(metadata, "tokenizer.ggml.eot_token_id");
  tokenizer.eom = token_ids(metadata, "tokenizer.ggml.eom_token_id");
  tokenizer.model = optional_string(metadata, "tokenizer.ggml.model");
  if (tokenizer.model.empty()) return tokenizer;
  tokenizer.pre = optional_string(metadata, "tokenizer.ggml.pre");
  tokenizer.chat_template = optional_string(metadata, "tokenizer.chat_template");
  tokenizer.add_bos = optional_flag(metadata, "tokenizer.ggml.add_bos_token");
  tokenizer.add_eos = optional_flag(metadata, "tokenizer.ggml.add_eos_token");
  tokenizer.add_space_prefix = optional_flag(metadata, "tokenizer.ggml.add_space_prefix");
  tokenizer.tokens = metadata.strings("tokenizer.ggml.tokens");
  if (metadata.has("tokenizer.ggml.merges"))
    tokenizer.merges = metadata.strings("tokenizer.ggml.merges");
  if (metadata.has("tokenizer.ggml.scores"))
    tokenizer.scores = metadata.numbers("tokenizer.ggml.scores");
  if (metadata.has("tokenizer.ggml.token_type"))
    for (const std::int64_t type : metadata.integers("tokenizer.ggml.token_type"))
      tokenizer.types.push_back(static_cast<std::int32_t>(std::clamp<std::int64_t>(type, -1, 255)));
  return tokenizer;
}

GgufModel resolve_gguf(const GgufMetadata& metadata, const GgufTokenizer& tokenizer,
                       TensorSet& set) {
  const Family& family = find_gguf_family(metadata);
  const ConfigWriter writer(metadata, family);
  writer.check_meaning();
  const auto embedding = set.tensors.find(kEmbedding);
  if (embedding == set.tensors.end())
    throw data_error(fmt::format("{} holds no tensor {}", metadata.where(), kEmbedding),
                     "import a file that holds a whole model");
  // Some converters repeat the embedding as the head. One of another type stays: it is what
  // llama.cpp would multiply with.
  const auto head = set.tensors.find(kHead);
  const bool tied = head == set.tensors.end() || same_content(head->second, embedding->second);
  if (tied && head != set.tensors.end()) set.tensors.erase(head);

  const Json config = writer.write(tokenizer, set, tied);
  GgufModel model{.spec = resolve_config(config, nullptr, metadata.where()),
                  .names = &family.gguf->names};
  writer.check_agreement(model.spec);
  if (const auto divisors = set.tensors.find(kRotaryDivisors); divisors != set.tensors.end()) {
    divide_frequencies(divisors->second, metadata.where(), model.spec);
    set.tensors.erase(divisors);
  }
  return model;
}

}  // namespace stagecoach
