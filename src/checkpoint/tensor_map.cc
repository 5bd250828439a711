#include "checkpoint/tensor_map.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "base/error.h"

namespace stagecoach {
namespace {

using CatalogKey = std::pair<TensorRole, std::int64_t>;

// A few names and how many there are: a wrong checkpoint lacks thousands.
class NameList {
 public:
  void add(const std::string& name) {
    if (++count_ <= kShown) text_ += (text_.empty() ? "" : ", ") + quote_name(name);
  }
  bool empty() const { return count_ == 0; }
  std::string text() const {
    return count_ > kShown ? fmt::format("{} and {} more", text_, count_ - kShown) : text_;
  }
  std::int64_t count() const { return count_; }

 private:
  static constexpr std::int64_t kShown = 4;
  std::string text_;
  std::int64_t count_ = 0;
};

class Mapper {
 public:
  Mapper(const ModelSpec& spec, const Family& family, const SafetensorsSet& set, std::string where);
  TensorMap map();

 private:
  std::int64_t layers_of(const TensorPattern& pattern) const {
    return pattern.per_layer() ? spec_.num_hidden_layers : 1;
  }
  std::string choose_prefix() const;
  void bind(const TensorPattern& pattern, std::int64_t layer);
  void bind_roles(const TensorPattern& pattern, std::int64_t layer, const std::string& name,
                  FoundTensor found);
  void accept_duplicate_head(const TensorPattern& pattern);
  bool expected(const TensorPattern& pattern) const;
  void check_complete() const;

  const ModelSpec& spec_;
  const Family& family_;
  const SafetensorsSet& set_;
  std::string where_, prefix_;
  std::map<TensorRole, TensorSpec> catalog_;  // shapes are the same in all layers
  std::set<std::string> used_;
  NameList missing_;
  std::set<DType> matrix_types_;
  TensorMap map_;
};

Mapper::Mapper(const ModelSpec& spec, const Family& family, const SafetensorsSet& set,
               std::string where)
    : spec_(spec), family_(family), set_(set), where_(std::move(where)) {
  for (const SlabKind slab : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead})
    for (const TensorSpec& tensor : slab_tensors(spec, slab, DType::kF32))
      catalog_.emplace(tensor.role, tensor);
  prefix_ = choose_prefix();
}

bool Mapper::expected(const TensorPattern& pattern) const {
  const auto in_catalog = [this](TensorRole role) { return catalog_.contains(role); };
  const bool any = std::any_of(pattern.roles.begin(), pattern.roles.end(), in_catalog);
  STAGECOACH_CHECK(any == std::all_of(pattern.roles.begin(), pattern.roles.end(), in_catalog));
  return any;
}

// The one under which most tensors are found, so that a single missing tensor is named as such.
std::string Mapper::choose_prefix() const {
  std::string best = family_.prefixes.front();
  std::int64_t most = 0;
  for (const std::string& prefix : family_.prefixes) {
    std::int64_t found = 0;
    for (const TensorPattern& pattern : family_.tensors)
      found += set_.tensors().contains(expand_pattern(pattern.source, prefix, 0)) ? 1 : 0;
    if (found > most) {
      most = found;
      best = prefix;
    }
  }
  return best;
}

void Mapper::bind(const TensorPattern& pattern, std::int64_t layer) {
  const std::string name = expand_pattern(pattern.source, prefix_, layer);
  const auto found = set_.tensors().find(name);
  if (found == set_.tensors().end()) {
    missing_.add(name);
    return;
  }
  used_.insert(name);
  bind_roles(pattern, layer, name, found->second);
}

void Mapper::bind_roles(const TensorPattern& pattern, std::int64_t layer, const std::string& name,
                        FoundTensor found) {
  const bool vector = is_vector_role(pattern.roles.front());
  const auto rows_of = [&](const TensorSpec& tensor) {
    return vector ? tensor.rows * tensor.cols : tensor.rows;
  };
  const std::int64_t cols = vector ? 1 : catalog_.at(pattern.roles.front()).cols;
  std::int64_t source_rows = 0;
  for (const TensorRole role : pattern.roles) source_rows += rows_of(catalog_.at(role));

  std::vector<std::int64_t> shape{source_rows};
  if (!vector) shape.push_back(cols);
  if (pattern.transposed) std::reverse(shape.begin(), shape.end());
  const std::string file = found.shard->file().path().string();
  if (found.entry->shape != shape)
    throw data_error(fmt::format("{}: tensor {} has shape {}, expected {} from config.json", file,
                                 quote_name(name), shape_text(found.entry->shape),
                                 shape_text(shape)));
  if (!found.entry->type())
    throw data_error(
        fmt::format(
            "{}: tensor {} is {}, which is not supported; weights should be F32, F16 or BF16", file,
            quote_name(name), found.entry->dtype),
        "import a checkpoint that holds the weights in bf16, f16 or f32");
  if (!vector) matrix_types_.insert(*found.entry->type());

  std::int64_t first_row = 0;
  for (const TensorRole role : pattern.roles) {
    TensorBinding binding{.source = found,
                          .rows = rows_of(catalog_.at(role)),
                          .cols = cols,
                          .first_row = first_row,
                          .source_rows = source_rows,
                          .transposed = pattern.transposed};
    if (pattern.interleaved_rotary) {
      binding.head_dim = spec_.head_dim;
      binding.rotary_dim = spec_.rotary_dim;
    }
    first_row += binding.rows;
    map_.bindings.emplace(CatalogKey{role, layer}, binding);
  }
}

// A tied head aliases the embedding; some writers store its matrix a second time.
void Mapper::accept_duplicate_head(const TensorPattern& pattern) {
  if (!spec_.tied_head || pattern.roles != std::vector{TensorRole::kHead}) return;
  const std::string name = expand_pattern(pattern.source, prefix_, 0);
  const auto found = set_.tensors().find(name);
  if (found == set_.tensors().end()) return;
  used_.insert(name);
  map_.duplicate_head = &found->second;
}

void Mapper::check_complete() const {
  std::set<std::string> dropped;
  for (const std::string& pattern : family_.dropped)
    for (std::int64_t layer = 0; layer < spec_.num_hidden_layers; ++layer)
      dropped.insert(expand_pattern(pattern, prefix_, layer));
  NameList extra;
  for (const auto& [name, found] : set_.tensors())
    if (!used_.contains(name) && !dropped.contains(name)) extra.add(name);
  if (missing_.empty() && extra.empty()) return;
  std::string problem = fmt::format("{} does not fit its config.json:", where_);
  if (!missing_.empty())
    problem += fmt::format(" {} tensors are missing ({})", missing_.count(), missing_.text());
  if (!extra.empty())
    problem += fmt::format("{} {} tensors are unexpected ({})", missing_.empty() ? "" : ",",
                           extra.count(), extra.text());
  throw data_error(
      problem,
      "check that config.json and the weights belong together and that all files are there");
}

TensorMap Mapper::map() {
  for (const TensorPattern& pattern : family_.tensors) {
    if (!expected(pattern)) {
      accept_duplicate_head(pattern);
      continue;
    }
    for (std::int64_t layer = 0; layer < layers_of(pattern); ++layer) bind(pattern, layer);
  }
  check_complete();
  for (const auto& [role, tensor] : catalog_) STAGECOACH_CHECK(map_.bindings.contains({role, 0}));
  // Neither half type holds all values of the other: a mixture is only exact in f32.
  map_.widest_matrix_type = matrix_types_.size() == 1 ? *matrix_types_.begin() : DType::kF32;
  return std::move(map_);
}

// Unaligned load: foreign writers align nothing.
template <typename T>
T load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

// Calls body(element) with a function object that turns element i of `raw` into float32, so that
// the type is decided once and not per element.
template <typename Body>
void with_elements(DType type, const std::byte* raw, const Body& body) {
  switch (type) {
    case DType::kF32:
      return body([raw](std::int64_t i) { return load<float>(raw + 4 * i); });
    case DType::kF16:
      return body([raw](std::int64_t i) { return f16_to_f32(load<std::uint16_t>(raw + 2 * i)); });
    case DType::kBF16:
      return body([raw](std::int64_t i) { return bf16_to_f32(load<std::uint16_t>(raw + 2 * i)); });
  }
}

}  // namespace

bool is_vector_role(TensorRole role) {
  const std::string_view name = role_name(role);
  return name.ends_with(".bias") || name.find("_norm.") != std::string_view::npos;
}

std::int64_t TensorBinding::source_row(std::int64_t row) const {
  const std::int64_t in_head = row % head_dim;
  if (in_head >= rotary_dim) return first_row + row;
  // Half-split row i is the even member of pair i, row i + half the odd one.
  const std::int64_t half = rotary_dim / 2;
  const std::int64_t interleaved = in_head < half ? 2 * in_head : 2 * (in_head - half) + 1;
  return first_row + row - in_head + interleaved;
}

TensorMap map_tensors(const ModelSpec& spec, const Family& family, const SafetensorsSet& set,
                      const std::string& where) {
  return Mapper(spec, family, set, where).map();
}

void read_rows_in_order(const TensorBinding& binding, std::int64_t row_begin, std::int64_t row_end,
                        float* destination) {
  // Whole heads where rows are permuted within them: one read covers every row that is asked for.
  const std::int64_t low = row_begin / binding.head_dim * binding.head_dim;
  const std::int64_t high = (row_end + binding.head_dim - 1) / binding.head_dim * binding.head_dim;
  const SafetensorsEntry& entry = *binding.source.entry;
  const DType type = *entry.type();
  const std::int64_t row_bytes = binding.cols * static_cast<std::int64_t>(dtype_size(type));
  std::vector<std::byte> raw(static_cast<std::size_t>((high - low) * row_bytes));
  const std::int64_t first = binding.first_row + low;
  binding.source.shard->file().read_at(entry.offset + first * row_bytes, raw);
  with_elements(type, raw.data(), [&](const auto& element) {
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      const std::int64_t at = (binding.source_row(row) - first) * binding.cols;
      for (std::int64_t k = 0; k < binding.cols; ++k) *destination++ = element(at + k);
    }
  });
}

void read_rows_transposed(const TensorBinding& binding, const std::byte* raw,
                          std::int64_t row_begin, std::int64_t row_end, float* destination) {
  // Square tiles keep both the strided reads and the strided writes in the first-level cache.
  constexpr std::int64_t kTile = 32;
  with_elements(*binding.source.entry->type(), raw, [&](const auto& element) {
    for (std::int64_t r0 = row_begin; r0 < row_end; r0 += kTile) {
      for (std::int64_t k0 = 0; k0 < binding.cols; k0 += kTile) {
        for (std::int64_t r = r0; r < std::min(r0 + kTile, row_end); ++r) {
          float* out = destination + (r - row_begin) * binding.cols;
          const std::int64_t column = binding.source_row(r);
          for (std::int64_t k = k0; k < std::min(k0 + kTile, binding.cols); ++k)
            out[k] = element(k * binding.source_rows + column);
        }
      }
    }
  });
}

}  // namespace stagecoach
