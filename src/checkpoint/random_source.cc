#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "checkpoint/counter_normal.h"
#include "checkpoint/embedded_configs.h"
#include "checkpoint/import.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxConfigBytes = std::int64_t{1} << 20;

// How GPT-2 initialises a tensor. Residual projections shrink with depth, so that the hidden
// state's variance does not grow with the number of layers that add to it (Radford et al. 2019,
// section 2.3).
enum class Initialisation : std::uint8_t { kNormal, kResidual, kOnes, kZeros };

Initialisation initialisation_of(TensorRole role) {
  using enum TensorRole;
  switch (role) {
    case kTokenEmbedding:
    case kEmbeddingProjection:
    case kHeadProjection:
    case kPositionEmbedding:
    case kQuery:
    case kKey:
    case kValue:
    case kGate:
    case kUp:
    case kHead:
      return Initialisation::kNormal;
    case kAttentionOutput:
    case kDown:
      return Initialisation::kResidual;
    case kEmbeddingNorm:
    case kQueryNorm:
    case kKeyNorm:
    case kAttentionNorm:
    case kMlpNorm:
    case kFinalNorm:
      return Initialisation::kOnes;
    case kEmbeddingNormBias:
    case kAttentionNormBias:
    case kQueryBias:
    case kKeyBias:
    case kValueBias:
    case kAttentionOutputBias:
    case kMlpNormBias:
    case kGateBias:
    case kUpBias:
    case kDownBias:
    case kFinalNormBias:
    case kHeadBias:
      return Initialisation::kZeros;
  }
  throw Error(ErrorKind::kInternal,
              fmt::format("no initialisation for role {}", static_cast<int>(role)));
}

std::int64_t columns_of(const ModelSpec& spec, TensorRole role) {
  for (const SlabKind kind : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead})
    for (const TensorSpec& tensor : slab_tensors(spec, kind, DType::kF32))
      if (tensor.role == role) return tensor.cols;
  throw Error(ErrorKind::kInternal, fmt::format("the model has no {}", role_name(role)));
}

class RandomSource : public WeightSource {
 public:
  RandomSource(ModelSpec spec, std::string name, std::uint64_t seed)
      : spec_(std::move(spec)), name_(std::move(name)), seed_(seed) {
    // A vocabulary that cannot spell every byte works with ids alone.
    if (spec_.vocab_size >= 256) tokenizer_files_.emplace("tokenizer.json", byte_tokenizer_json());
  }

  const ModelSpec& spec() const override { return spec_; }
  DType native_type() const override { return DType::kF32; }
  std::string identity() const override {
    return fmt::format("random {} (spec {}, seed {})", name_,
                       hash_to_hex(xxh3(as_bytes(to_json(spec_).dump()))), seed_);
  }
  std::string default_name() const override { return name_; }
  const std::map<std::string, std::string>& tokenizer_files() const override {
    return tokenizer_files_;
  }

  void read_rows(TensorRole role, std::int64_t layer, std::int64_t row_begin, std::int64_t row_end,
                 float* destination) override {
    const std::int64_t cols = columns_of(spec_, role);
    const std::span<float> out(destination, static_cast<std::size_t>((row_end - row_begin) * cols));
    const Initialisation initialisation = initialisation_of(role);
    if (initialisation == Initialisation::kOnes || initialisation == Initialisation::kZeros) {
      std::fill(out.begin(), out.end(), initialisation == Initialisation::kOnes ? 1.0f : 0.0f);
      return;
    }
    float deviation = 0.02f;
    if (initialisation == Initialisation::kResidual)
      deviation /= std::sqrt(2.0f * static_cast<float>(spec_.num_hidden_layers));
    // The role's name, not its number: a role that joins the enumeration leaves old models as they
    // are.
    const auto tensor = static_cast<std::uint32_t>(xxh3(as_bytes(role_name(role))));
    fill_normal({.seed = seed_, .tensor = tensor, .layer = static_cast<std::uint32_t>(layer)},
                static_cast<std::uint64_t>(row_begin * cols), deviation, out);
  }

 private:
  ModelSpec spec_;
  std::string name_;
  std::uint64_t seed_;
  std::map<std::string, std::string> tokenizer_files_;
};

const Json& preset_configs() {
  static const Json configs = parse_json(embedded_presets(), "configs/presets.json");
  return configs;
}

std::string preset_names() {
  std::string names;
  for (const auto& [name, spec] : presets()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

bool looks_like_path(const std::string& text) {
  return text.find('/') != std::string::npos || text.ends_with(".json");
}

// models/mine/config.json is the model "mine"; mine.json too.
std::string name_of_config(const fs::path& path) {
  const fs::path absolute = fs::absolute(path).lexically_normal();
  const std::string stem = absolute.stem().string();
  const std::string folder = absolute.parent_path().filename().string();
  return stem == "config" && !folder.empty() ? folder : stem;
}

}  // namespace

std::unique_ptr<WeightSource> open_random(const std::string& preset, std::uint64_t seed) {
  const Json& configs = preset_configs();
  if (const auto found = configs.find(preset); found != configs.end())
    return std::make_unique<RandomSource>(resolve_config(*found, nullptr, "preset " + preset),
                                          preset, seed);
  if (!looks_like_path(preset))
    throw usage_error(
        fmt::format("unknown preset \"{}\"", preset),
        fmt::format("choose one of {}, or give the path of a config.json", preset_names()));
  const Json config = read_json_file(preset, kMaxConfigBytes);
  return std::make_unique<RandomSource>(resolve_config(config, nullptr, preset),
                                        name_of_config(preset), seed);
}

std::vector<std::pair<std::string, ModelSpec>> presets() {
  std::vector<std::pair<std::string, ModelSpec>> all;
  for (const auto& [name, config] : preset_configs().items())
    all.emplace_back(name, resolve_config(config, nullptr, "preset " + name));
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
    return parameter_count(a.second) < parameter_count(b.second);
  });
  return all;
}

}  // namespace stagecoach
