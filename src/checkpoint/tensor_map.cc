#include "checkpoint/tensor_map.h"

#include <algorithm>
#include <set>
#include <string>

#include "base/error.h"
#include "checkpoint/foreign_text.h"

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
  explicit Mapper(const MappingInputs& inputs);
  TensorMap map();

 private:
  std::int64_t layers_of(const TensorPattern& pattern) const {
    return pattern.per_layer() ? spec_.num_hidden_layers : 1;
  }
  std::string choose_prefix() const;
  std::string present_name(const TensorPattern& pattern, const std::string& prefix,
                           std::int64_t layer) const;
  void bind(const TensorPattern& pattern, std::int64_t layer);
  void bind_roles(const TensorPattern& pattern, std::int64_t layer, const std::string& name,
                  const StoredTensor& stored);
  void check_stored(const TensorPattern& pattern, const std::string& name,
                    const StoredTensor& stored, const std::vector<std::int64_t>& shape) const;
  void accept_duplicate_head(const TensorPattern& pattern);
  bool expected(const TensorPattern& pattern) const;
  void check_complete() const;
  DType native_weights() const;

  const MappingInputs& inputs_;
  const ModelSpec& spec_;
  const TensorNames& names_;
  const std::map<std::string, StoredTensor>& stored_;
  std::string prefix_;
  std::map<TensorRole, TensorSpec> catalog_;  // shapes are the same in all layers
  std::set<std::string> used_;
  NameList missing_;
  std::set<BlockFormat> matrix_formats_;
  TensorMap map_;
};

Mapper::Mapper(const MappingInputs& inputs)
    : inputs_(inputs), spec_(inputs.spec), names_(inputs.names), stored_(inputs.set.tensors) {
  for (const SlabKind slab : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead})
    for (const TensorSpec& tensor : slab_tensors(spec_, slab, DType::kF32))
      catalog_.emplace(tensor.role, tensor);
  prefix_ = choose_prefix();
}

bool Mapper::expected(const TensorPattern& pattern) const {
  const auto in_catalog = [this](TensorRole role) { return catalog_.contains(role); };
  const bool any = std::any_of(pattern.roles.begin(), pattern.roles.end(), in_catalog);
  STAGECOACH_CHECK(any == std::all_of(pattern.roles.begin(), pattern.roles.end(), in_catalog));
  return any;
}

// The spelling that the checkpoint uses; where it has none, the first.
std::string Mapper::present_name(const TensorPattern& pattern, const std::string& prefix,
                                 std::int64_t layer) const {
  const std::string first = expand_pattern(pattern.source, prefix, layer);
  if (stored_.contains(first)) return first;
  for (const std::string& spelling : pattern.spellings)
    if (const std::string other = expand_pattern(spelling, prefix, layer); stored_.contains(other))
      return other;
  return first;
}

// The one under which most tensors are found, so that a single missing tensor is named as such.
std::string Mapper::choose_prefix() const {
  std::string best = names_.prefixes.front();
  std::int64_t most = 0;
  for (const std::string& prefix : names_.prefixes) {
    std::int64_t found = 0;
    for (const TensorPattern& pattern : names_.tensors)
      found += stored_.contains(present_name(pattern, prefix, 0)) ? 1 : 0;
    if (found > most) {
      most = found;
      best = prefix;
    }
  }
  return best;
}

void Mapper::bind(const TensorPattern& pattern, std::int64_t layer) {
  const std::string name = present_name(pattern, prefix_, layer);
  const auto found = stored_.find(name);
  if (found == stored_.end()) {
    missing_.add(name);
    return;
  }
  used_.insert(name);
  bind_roles(pattern, layer, name, found->second);
}

void Mapper::check_stored(const TensorPattern& pattern, const std::string& name,
                          const StoredTensor& stored,
                          const std::vector<std::int64_t>& shape) const {
  const std::string file = stored.file->path().string();
  if (stored.shape != shape)
    throw data_error(fmt::format("{}: tensor {} has shape {}, expected {} from {}", file,
                                 quote_name(name), shape_text(stored.shape), shape_text(shape),
                                 inputs_.described_by));
  if (!stored.format)
    throw data_error(
        fmt::format(
            "{}: tensor {} is {}, which is not supported; weights should be F32, F16 or BF16", file,
            quote_name(name), stored.type),
        "import a checkpoint that holds the weights in bf16, f16 or f32");
  const bool rows_of_blocks = shape.size() == 2 && !pattern.transposed && stored.strides.empty();
  if (block_shape(*stored.format).elements > 1 && !rows_of_blocks)
    throw data_error(
        fmt::format("{}: tensor {} is quantised ({}), expected F32, F16 or BF16 of a vector", file,
                    quote_name(name), stored.type));
}

void Mapper::bind_roles(const TensorPattern& pattern, std::int64_t layer, const std::string& name,
                        const StoredTensor& stored) {
  const bool vector = is_vector_role(pattern.roles.front());
  const auto rows_of = [&](const TensorSpec& tensor) {
    return vector ? tensor.rows * tensor.cols : tensor.rows;
  };
  const std::int64_t cols = vector ? 1 : catalog_.at(pattern.roles.front()).cols;
  std::int64_t source_rows = pattern.skipped_rows;
  for (const TensorRole role : pattern.roles) source_rows += rows_of(catalog_.at(role));

  std::vector<std::int64_t> shape{source_rows};
  if (!vector) shape.push_back(cols);
  if (pattern.transposed) std::reverse(shape.begin(), shape.end());
  check_stored(pattern, name, stored, shape);
  if (!vector) matrix_formats_.insert(*stored.format);

  std::vector<std::int64_t> strides = stored.strides;
  if (strides.empty() && pattern.transposed) strides = {source_rows, 1};
  if (pattern.transposed) std::reverse(strides.begin(), strides.end());

  const auto roles = static_cast<std::int64_t>(pattern.roles.size());
  std::int64_t first_row = pattern.skipped_rows;
  for (const TensorRole role : pattern.roles) {
    TensorBinding binding{.source = &stored,
                          .rows = rows_of(catalog_.at(role)),
                          .cols = cols,
                          .first_row = first_row};
    binding.group_rows = pattern.fused_per_head ? spec_.head_dim : binding.rows;
    binding.group_stride = binding.group_rows * (pattern.fused_per_head ? roles : 1);
    if (pattern.interleaved_rotary) {
      binding.head_dim = spec_.head_dim;
      binding.rotary_dim = spec_.rotary_dim;
    }
    if (!strides.empty()) {
      binding.scattered = true;
      binding.row_stride = strides.front();
      binding.col_stride = vector ? 0 : strides.back();
    }
    first_row += binding.group_rows;
    map_.bindings.emplace(CatalogKey{role, layer}, binding);
  }
}

// A tied head aliases the embedding; some writers store its matrix a second time.
void Mapper::accept_duplicate_head(const TensorPattern& pattern) {
  if (!spec_.tied_head || pattern.roles != std::vector{TensorRole::kHead}) return;
  const std::string name = present_name(pattern, prefix_, 0);
  const auto found = stored_.find(name);
  if (found == stored_.end()) return;
  used_.insert(name);
  map_.duplicate_head = &found->second;
}

void Mapper::check_complete() const {
  std::set<std::string> dropped;
  for (const std::string& pattern : names_.dropped)
    for (std::int64_t layer = 0; layer < spec_.num_hidden_layers; ++layer)
      dropped.insert(expand_pattern(pattern, prefix_, layer));
  NameList extra;
  for (const auto& [name, stored] : stored_)
    if (!used_.contains(name) && !dropped.contains(name)) extra.add(name);
  if (missing_.empty() && extra.empty()) return;
  std::string problem = fmt::format("{} does not fit its {}:", inputs_.where, inputs_.described_by);
  if (!missing_.empty())
    problem += fmt::format(" {} tensors are missing ({})", missing_.count(), missing_.text());
  if (!extra.empty())
    problem += fmt::format("{} {} tensors are unexpected ({})", missing_.empty() ? "" : ",",
                           extra.count(), extra.text());
  throw data_error(problem, fmt::format("check that {} and the weights belong together and that "
                                        "all files are there",
                                        inputs_.described_by));
}

// Neither half type holds all values of the other: a mixture is only exact in f32. What was
// quantised has no exact type.
DType Mapper::native_weights() const {
  std::set<DType> types;
  for (const BlockFormat format : matrix_formats_) {
    if (block_shape(format).elements > 1) return DType::kF16;
    types.insert(stagecoach::native_weights(format));
  }
  return types.size() == 1 ? *types.begin() : DType::kF32;
}

TensorMap Mapper::map() {
  for (const TensorPattern& pattern : names_.tensors) {
    if (!expected(pattern)) {
      accept_duplicate_head(pattern);
      continue;
    }
    for (std::int64_t layer = 0; layer < layers_of(pattern); ++layer) bind(pattern, layer);
  }
  check_complete();
  for (const auto& [role, tensor] : catalog_) STAGECOACH_CHECK(map_.bindings.contains({role, 0}));
  map_.native_weights = native_weights();
  return std::move(map_);
}

}  // namespace

bool is_vector_role(TensorRole role) {
  const std::string_view name = role_name(role);
  return name.ends_with(".bias") || name.find("_norm.") != std::string_view::npos;
}

std::int64_t TensorBinding::source_row(std::int64_t row) const {
  const std::int64_t in_group = row % group_rows;
  const std::int64_t in_order = first_row + row / group_rows * group_stride + in_group;
  const std::int64_t in_head = in_group % head_dim;
  if (in_head >= rotary_dim) return in_order;
  // Half-split row i is the even member of pair i, row i + half the odd one.
  const std::int64_t half = rotary_dim / 2;
  const std::int64_t interleaved = in_head < half ? 2 * in_head : 2 * (in_head - half) + 1;
  return in_order - in_head + interleaved;
}

TensorMap map_tensors(const MappingInputs& inputs) {
  return Mapper(inputs).map();
}

void read_rows_in_order(const TensorBinding& binding, std::int64_t row_begin, std::int64_t row_end,
                        float* destination) {
  const StoredTensor& source = *binding.source;
  const BlockShape block = block_shape(*source.format);
  const std::int64_t row_bytes = binding.cols / block.elements * block.bytes;
  std::vector<std::byte> raw;
  std::vector<float> rows;  // as they stand in the file
  for (std::int64_t begin = row_begin; begin < row_end;) {
    // One group at a time, and whole heads where rows are permuted within them: one read then
    // covers every row that is asked for.
    const std::int64_t group = begin / binding.group_rows * binding.group_rows;
    const std::int64_t end = std::min(row_end, group + binding.group_rows);
    const std::int64_t head = binding.head_dim;
    const std::int64_t low = begin - (begin - group) % head;
    const std::int64_t high =
        std::min(group + (end - group + head - 1) / head * head, binding.rows);
    const std::int64_t first =
        binding.first_row + group / binding.group_rows * binding.group_stride + (low - group);
    raw.resize(static_cast<std::size_t>((high - low) * row_bytes));
    source.file->read_at(source.offset + first * row_bytes, raw);
    const bool permuted = binding.rotary_dim > 0;
    if (permuted) rows.resize(static_cast<std::size_t>((high - low) * binding.cols));
    float* const decoded = permuted ? rows.data() : destination;
    decode_blocks(*source.format, raw.data(), (high - low) * binding.cols, decoded);
    for (std::int64_t row = begin; permuted && row < end; ++row)
      std::copy_n(decoded + (binding.source_row(row) - first) * binding.cols, binding.cols,
                  destination + (row - begin) * binding.cols);
    destination += (end - begin) * binding.cols;
    begin = end;
  }
}

void read_scattered_rows(const TensorBinding& binding, const float* elements,
                         std::int64_t row_begin, std::int64_t row_end, float* destination) {
  // Square tiles keep both the strided reads and the strided writes in the first-level cache.
  constexpr std::int64_t kTile = 32;
  for (std::int64_t r0 = row_begin; r0 < row_end; r0 += kTile) {
    for (std::int64_t k0 = 0; k0 < binding.cols; k0 += kTile) {
      for (std::int64_t r = r0; r < std::min(r0 + kTile, row_end); ++r) {
        float* out = destination + (r - row_begin) * binding.cols;
        const float* row = elements + binding.source_row(r) * binding.row_stride;
        for (std::int64_t k = k0; k < std::min(k0 + kTile, binding.cols); ++k)
          out[k] = row[k * binding.col_stride];
      }
    }
  }
}

}  // namespace stagecoach
