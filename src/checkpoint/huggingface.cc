// The Hugging Face directory as a WeightSource.
#include <algorithm>
#include <cctype>
#include <memory>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "checkpoint/family.h"
#include "checkpoint/import.h"
#include "checkpoint/safetensors_set.h"
#include "checkpoint/tensor_map.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxConfigBytes = 16 << 20;
constexpr std::int64_t kMaxTokenizerBytes = 256 << 20;
constexpr std::int64_t kCompareChunk = 1 << 20;

// A path that cannot be looked at counts as there, and so does a link to nowhere (a snapshot of
// Hugging Face's cache that was copied without its blobs): opening it then says what is wrong.
bool present(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  return status.type() != fs::file_type::not_found;
}

// The directory's name in lower case. In Hugging Face's cache, where that is a commit
// (models--OWNER--NAME/snapshots/COMMIT), the model's.
std::string name_of(const fs::path& directory) {
  const fs::path full = fs::canonical(directory);
  std::string name = full.filename().string();
  const std::string repository = full.parent_path().parent_path().filename().string();
  if (full.parent_path().filename() == "snapshots" && repository.starts_with("models--"))
    name = repository.substr(repository.rfind("--") + 2);
  for (char& c : name) {
    const auto byte = static_cast<unsigned char>(c);
    c = std::isalnum(byte) || c == '.' || c == '_' ? static_cast<char>(std::tolower(byte)) : '-';
  }
  return name.empty() ? "model" : name;
}

bool is_layer_role(TensorRole role) {
  return role >= TensorRole::kAttentionNorm && role <= TensorRole::kDownBias;
}

class HuggingFaceSource : public WeightSource {
 public:
  explicit HuggingFaceSource(const fs::path& directory);

  const ModelSpec& spec() const override { return spec_; }
  DType native_type() const override { return map_.widest_matrix_type; }
  std::string identity() const override { return identity_; }
  std::string default_name() const override { return name_; }
  const std::map<std::string, std::string>& tokenizer_files() const override {
    return tokenizer_files_;
  }
  void read_rows(TensorRole role, std::int64_t layer, std::int64_t row_begin, std::int64_t row_end,
                 float* destination) override;

 private:
  using Bytes = std::vector<std::byte>;

  ModelSpec read_config(const fs::path& directory);
  void read_tokenizer_files(const fs::path& directory);
  void describe_files();
  void check_duplicate_head() const;
  std::shared_ptr<const Bytes> raw(const FoundTensor& tensor);

  std::string identity_;  // before spec_, whose initialiser begins it
  const Family* family_ = nullptr;
  ModelSpec spec_;
  SafetensorsSet set_;
  TensorMap map_;
  std::string name_;
  std::map<std::string, std::string> tokenizer_files_;

  // A transposed tensor is read whole, once for all its row ranges and all roles that share it; the
  // next one replaces it. Others need no cache: their rows are read straight from the file.
  std::mutex cache_mutex_;
  const SafetensorsEntry* cached_ = nullptr;
  std::shared_ptr<const Bytes> cache_;
};

HuggingFaceSource::HuggingFaceSource(const fs::path& directory)
    : spec_(read_config(directory)),
      set_(directory),
      map_(map_tensors(spec_, *family_, set_, directory.string())),
      name_(name_of(directory)) {
  check_duplicate_head();
  describe_files();
  read_tokenizer_files(directory);
}

ModelSpec HuggingFaceSource::read_config(const fs::path& directory) {
  const fs::path path = directory / "config.json",
                 generation_path = directory / "generation_config.json";
  std::error_code error;
  if (!fs::is_directory(directory, error))
    throw data_error(fmt::format("{} is not a directory", directory.string()),
                     "pass the folder that holds config.json and model.safetensors");
  if (!present(path))
    throw data_error(fmt::format("{} holds no config.json", directory.string()),
                     "pass the folder that holds config.json and model.safetensors");
  const std::string text = read_text_file(path, kMaxConfigBytes);
  identity_ = fmt::format("huggingface config.json {}", hash_to_hex(xxh3(as_bytes(text))));
  const Json config = parse_json(text, path.string());
  Json generation;
  if (present(generation_path)) {
    const std::string overrides = read_text_file(generation_path, kMaxConfigBytes);
    identity_ += fmt::format("; generation_config.json {}", hash_to_hex(xxh3(as_bytes(overrides))));
    generation = parse_json(overrides, generation_path.string());
  }
  family_ = &find_family(JsonObject(config, path.string()));
  return resolve_config(config, generation.is_null() ? nullptr : &generation, path.string());
}

void HuggingFaceSource::describe_files() {
  for (const auto& shard : set_.shards()) {
    const fs::path& path = shard->file().path();
    identity_ += fmt::format(
        "; {} {} bytes, modified {}, header {}", path.filename().string(), shard->file().size(),
        fs::last_write_time(path).time_since_epoch().count(), hash_to_hex(shard->header_hash()));
  }
}

void HuggingFaceSource::read_tokenizer_files(const fs::path& directory) {
  for (const std::string& name : tokenizer_file_names())
    if (present(directory / name))
      tokenizer_files_[name] = read_text_file(directory / name, kMaxTokenizerBytes);
}

// Two different matrices under "tied" mean that config.json is wrong, and the import would drop one
// of them.
void HuggingFaceSource::check_duplicate_head() const {
  if (map_.duplicate_head == nullptr) return;
  const FoundTensor &head = *map_.duplicate_head,
                    &embedding = map_.bindings.at({TensorRole::kTokenEmbedding, 0}).source;
  const std::string hint =
      "if the model's head is its own matrix, set \"tie_word_embeddings\": false in config.json";
  const char* const kProblem =
      "the head is tied to the token embedding, but the checkpoint holds a different head matrix";
  if (head.entry->dtype != embedding.entry->dtype || head.entry->shape != embedding.entry->shape)
    throw data_error(fmt::format("{} (its type or shape differs)", kProblem), hint);
  Bytes left, right;
  for (std::int64_t done = 0; done < head.entry->bytes; done += kCompareChunk) {
    left.resize(static_cast<std::size_t>(std::min(kCompareChunk, head.entry->bytes - done)));
    right.resize(left.size());
    head.shard->file().read_at(head.entry->offset + done, left);
    embedding.shard->file().read_at(embedding.entry->offset + done, right);
    if (left != right) throw data_error(fmt::format("{} (its values differ)", kProblem), hint);
  }
}

std::shared_ptr<const HuggingFaceSource::Bytes> HuggingFaceSource::raw(const FoundTensor& tensor) {
  // Held while reading: the other threads want the same tensor.
  const std::lock_guard lock(cache_mutex_);
  if (cached_ != tensor.entry) {
    cached_ = nullptr;
    cache_.reset();  // before the next is allocated
    auto bytes = std::make_shared<Bytes>(static_cast<std::size_t>(tensor.entry->bytes));
    tensor.shard->file().read_at(tensor.entry->offset, *bytes);
    cache_ = std::move(bytes);
    cached_ = tensor.entry;
  }
  return cache_;
}

void HuggingFaceSource::read_rows(TensorRole role, std::int64_t layer, std::int64_t row_begin,
                                  std::int64_t row_end, float* destination) {
  const auto found = map_.bindings.find({role, is_layer_role(role) ? layer : 0});
  STAGECOACH_CHECK(found != map_.bindings.end());
  const TensorBinding& binding = found->second;
  // A canonical vector is one row of many columns, here a column of many rows.
  const bool vector = is_vector_role(role);
  const std::int64_t begin = vector ? row_begin * binding.rows : row_begin;
  const std::int64_t end = vector ? row_end * binding.rows : row_end;
  STAGECOACH_CHECK(0 <= begin && begin <= end && end <= binding.rows);
  if (binding.transposed) {
    read_rows_transposed(binding, raw(binding.source)->data(), begin, end, destination);
  } else {
    read_rows_in_order(binding, begin, end, destination);
  }
}

}  // namespace

std::unique_ptr<WeightSource> open_huggingface(const fs::path& directory) {
  return std::make_unique<HuggingFaceSource>(directory);
}

}  // namespace stagecoach
