#include "checkpoint/mapped_source.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "base/error.h"
#include "checkpoint/tensor_map.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kChunkBytes = 1 << 20;

// Gives the tensors their present names. One that then stands twice keeps its old name and is
// refused as unexpected.
void rename_old_parts(TensorSet& set, const TensorNames& names) {
  for (const auto& [old_part, part] : names.old_parts) {
    std::vector<std::pair<std::string, std::string>> renamed;
    for (const auto& [name, tensor] : set.tensors) {
      const std::size_t at = name.find(old_part);
      if (at == std::string::npos) continue;
      std::string present = name;
      present.replace(at, old_part.size(), part);
      if (!set.tensors.contains(present)) renamed.emplace_back(name, std::move(present));
    }
    for (auto& [name, present] : renamed) {
      auto node = set.tensors.extract(name);
      node.key() = std::move(present);
      set.tensors.insert(std::move(node));
    }
  }
}

class MappedSource : public WeightSource {
 public:
  explicit MappedSource(CheckpointParts parts)
      : parts_(std::move(parts)),
        map_(map_tensors({.spec = parts_.spec,
                          .names = *parts_.names,
                          .set = parts_.set,
                          .where = parts_.where,
                          .described_by = parts_.described_by})) {
    check_duplicate_head();
  }

  const ModelSpec& spec() const override { return parts_.spec; }
  DType native_type() const override { return map_.native_weights; }
  std::string identity() const override { return parts_.identity + parts_.set.identity; }
  std::string default_name() const override { return parts_.default_name; }
  const std::map<std::string, std::string>& tokenizer_files() const override {
    return parts_.tokenizer_files;
  }
  void read_rows(TensorRole role, std::int64_t layer, std::int64_t row_begin, std::int64_t row_end,
                 float* destination) override;

 private:
  using Elements = std::vector<float>;

  void check_duplicate_head() const;
  std::shared_ptr<const Elements> elements(const StoredTensor& tensor);

  CheckpointParts parts_;
  TensorMap map_;

  // A scattered tensor is read whole, once for all its row ranges and all roles that share it; the
  // next one replaces it. Others need no cache: their rows are read straight from the file.
  std::mutex cache_mutex_;
  const StoredTensor* cached_ = nullptr;
  std::shared_ptr<const Elements> cache_;
};

// Two different matrices under "tied" mean that the description is wrong, and the import would drop
// one of them.
void MappedSource::check_duplicate_head() const {
  if (map_.duplicate_head == nullptr) return;
  const StoredTensor& head = *map_.duplicate_head;
  const StoredTensor& embedding = *map_.bindings.at({TensorRole::kTokenEmbedding, 0}).source;
  if (same_content(head, embedding)) return;
  const bool same_kind = head.type == embedding.type && head.shape == embedding.shape;
  throw data_error(
      fmt::format("the head is tied to the token embedding, but the checkpoint holds a different "
                  "head matrix (its {})",
                  same_kind ? "values differ" : "type or shape differs"),
      "if the model's head is its own matrix, set \"tie_word_embeddings\": false in config.json");
}

std::shared_ptr<const MappedSource::Elements> MappedSource::elements(const StoredTensor& tensor) {
  // Held while reading: the other threads want the same tensor.
  const std::lock_guard lock(cache_mutex_);
  if (cached_ == &tensor) return cache_;
  cached_ = nullptr;
  cache_.reset();  // before the next is allocated
  const std::int64_t size = block_shape(*tensor.format).bytes;
  auto values = std::make_shared<Elements>(static_cast<std::size_t>(tensor.bytes / size));
  std::vector<std::byte> raw;
  for (std::int64_t done = 0; done < tensor.bytes; done += kChunkBytes) {
    raw.resize(static_cast<std::size_t>(std::min(kChunkBytes, tensor.bytes - done)));
    tensor.file->read_at(tensor.offset + done, raw);
    decode_blocks(*tensor.format, raw.data(), static_cast<std::int64_t>(raw.size()) / size,
                  values->data() + done / size);
  }
  cache_ = std::move(values);
  cached_ = &tensor;
  return cache_;
}

void MappedSource::read_rows(TensorRole role, std::int64_t layer, std::int64_t row_begin,
                             std::int64_t row_end, float* destination) {
  const auto found = map_.bindings.find({role, is_layer_role(role) ? layer : 0});
  STAGECOACH_CHECK(found != map_.bindings.end());
  const TensorBinding& binding = found->second;
  // A canonical vector is one row of many columns, here a column of many rows.
  const bool vector = is_vector_role(role);
  const std::int64_t begin = vector ? row_begin * binding.rows : row_begin;
  const std::int64_t end = vector ? row_end * binding.rows : row_end;
  STAGECOACH_CHECK(0 <= begin && begin <= end && end <= binding.rows);
  if (binding.scattered) {
    read_scattered_rows(binding, elements(*binding.source)->data(), begin, end, destination);
  } else {
    read_rows_in_order(binding, begin, end, destination);
  }
}

}  // namespace

std::unique_ptr<WeightSource> map_checkpoint(CheckpointParts parts) {
  rename_old_parts(parts.set, *parts.names);
  return std::make_unique<MappedSource>(std::move(parts));
}

}  // namespace stagecoach
