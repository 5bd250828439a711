#include "checkpoint/import.h"

#include <algorithm>
#include <deque>
#include <future>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "base/dtype_names.h"
#include "base/error.h"
#include "store/slab_format.h"
#include "store/store_writer.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kChunkBytes = std::int64_t{4} << 20;  // float32, per thread

// Rows of a tensor on their way from source to store.
struct Chunk {
  std::unique_ptr<std::byte[]> bytes;
  std::int64_t size = 0;
  std::int64_t overflows = 0;  // values that the weight type cannot hold
};

struct ChunkRange {
  std::int64_t layer, row_begin, row_end;
};

Chunk make_chunk(WeightSource& source, const TensorSpec& tensor, const ChunkRange& range) {
  const std::int64_t rows = range.row_end - range.row_begin;
  // Not zeroed: both buffers are filled to the last byte.
  const auto values =
      std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(rows * tensor.cols));
  source.read_rows(tensor.role, range.layer, range.row_begin, range.row_end, values.get());
  Chunk chunk;
  chunk.size = layout_bytes(tensor.layout, tensor.type, rows, tensor.cols);
  chunk.bytes = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(chunk.size));
  chunk.overflows =
      pack_rows(tensor.layout, tensor.type, values.get(), rows, tensor.cols, chunk.bytes.get());
  return chunk;
}

// Whole panels, so that packed chunks can be written one after the other.
std::int64_t rows_per_chunk(std::int64_t cols) {
  const std::int64_t rows = kChunkBytes / (cols * static_cast<std::int64_t>(sizeof(float)));
  return std::max(rows / kPanelRows, std::int64_t{1}) * kPanelRows;
}

class Importer {
 public:
  Importer(WeightSource& source, const ImportOptions& options);
  Manifest run(const std::filesystem::path& store);

 private:
  struct PlannedSlab {
    SlabEntry layout;  // checksums zero until it is written
    std::int64_t source_layer;
    std::vector<TensorSpec> tensors;
    bool finished = false;
  };

  void plan_slabs();
  int add_slab(SlabKind kind, std::int64_t layer);
  std::string identity() const;
  void reuse_finished(const StoreWriter& writer);
  void write_slabs(StoreWriter& writer);
  void write_tensor(const TensorSpec& tensor, std::int64_t layer, const StoreWriter::Sink& sink);
  void write_chunk(const TensorSpec& tensor, std::int64_t layer, const Chunk& chunk,
                   const StoreWriter::Sink& sink);
  void report_progress() const;

  WeightSource& source_;
  const ImportOptions& options_;
  std::int64_t layer_begin_ = 0, layer_end_ = 0;
  Manifest manifest_;  // slabs stay empty until they are written
  std::vector<PlannedSlab> planned_;
  std::int64_t done_ = 0, total_ = 0;  // bytes of tensors
};

Importer::Importer(WeightSource& source, const ImportOptions& options)
    : source_(source), options_(options) {
  STAGECOACH_CHECK(options.threads >= 1);
  const std::int64_t layers = source.spec().num_hidden_layers;
  layer_begin_ = options.layer_begin;
  layer_end_ = options.layer_end == -1 ? layers : options.layer_end;
  if (layer_begin_ < 0 || layer_begin_ >= layer_end_ || layer_end_ > layers)
    throw usage_error(fmt::format("layers {}:{} do not exist: the model has layers 0:{}",
                                  layer_begin_, layer_end_, layers),
                      "--layers A:B is half-open, with 0 <= A < B");
  if (options.distinct_layers < 0 || options.distinct_layers > layers)
    throw usage_error(fmt::format("{} distinct layers: expected 1 to {}, the model's layers",
                                  options.distinct_layers, layers));
  manifest_.name = options.name.empty() ? source.default_name() : options.name;
  manifest_.version = options.version;
  manifest_.metadata = options.metadata;
  manifest_.spec = source.spec();
  manifest_.weights = options.weights.value_or(source.native_type());
  manifest_.distinct_layers = options.distinct_layers == 0 ? layers : options.distinct_layers;
  plan_slabs();
}

int Importer::add_slab(SlabKind kind, std::int64_t layer) {
  std::string file = slab_file_name(kind, layer);
  const std::uint64_t id = slab_id(manifest_.spec, manifest_.weights, file);
  auto tensors = slab_tensors(manifest_.spec, kind, manifest_.weights);
  SlabEntry layout = plan_slab(std::move(file), kind, id, tensors);
  for (const TensorSpec& tensor : tensors)
    if (__builtin_add_overflow(total_, tensor.bytes(), &total_))
      throw data_error(fmt::format("{}: the model is larger than any disk", manifest_.name));
  planned_.push_back(
      {.layout = std::move(layout), .source_layer = layer, .tensors = std::move(tensors)});
  return static_cast<int>(planned_.size()) - 1;
}

void Importer::plan_slabs() {
  const ModelSpec& spec = manifest_.spec;
  const bool with_head = layer_end_ == spec.num_hidden_layers;
  // A tied head multiplies with the token embedding, so whoever has the head needs both.
  if (layer_begin_ == 0 || (with_head && spec.tied_head))
    manifest_.embedding_slab = add_slab(SlabKind::kEmbedding, 0);
  manifest_.layer_slab.assign(static_cast<std::size_t>(spec.num_hidden_layers), -1);
  std::map<std::int64_t, int> slab_of;
  for (std::int64_t layer = layer_begin_; layer < layer_end_; ++layer) {
    const std::int64_t distinct = layer % manifest_.distinct_layers;
    if (!slab_of.contains(distinct)) slab_of[distinct] = add_slab(SlabKind::kLayer, distinct);
    manifest_.layer_slab[static_cast<std::size_t>(layer)] = slab_of[distinct];
  }
  if (with_head) manifest_.head_slab = add_slab(SlabKind::kHead, 0);
}

std::string Importer::identity() const {
  return fmt::format("{} as {}, layers {}:{}, {} distinct", source_.identity(),
                     dtype_name(manifest_.weights), layer_begin_, layer_end_,
                     manifest_.distinct_layers);
}

Manifest Importer::run(const std::filesystem::path& store) {
  StoreWriter writer(store, identity());
  try {
    reuse_finished(writer);
    write_slabs(writer);
    if (options_.tokenizer)
      for (const auto& [name, content] : source_.tokenizer_files())
        writer.add_file(std::filesystem::path("tokenizer") / name, content);
    for (PlannedSlab& slab : planned_) manifest_.slabs.push_back(std::move(slab.layout));
    writer.commit(manifest_);
  } catch (const Error& error) {
    // A bad source has to change before it can be imported, and then has another identity: nothing
    // that was written could be used again.
    if (error.kind() == ErrorKind::kData) writer.discard();
    throw;
  }
  return std::move(manifest_);
}

void Importer::reuse_finished(const StoreWriter& writer) {
  std::int64_t missing = 0;
  for (PlannedSlab& slab : planned_) {
    const std::optional<SlabEntry> entry = writer.finished(slab.layout.file);
    slab.finished =
        entry && entry->id == slab.layout.id && layout_difference(slab.layout, *entry).empty();
    if (slab.finished) {
      slab.layout = *entry;
      for (const TensorSpec& tensor : slab.tensors) done_ += tensor.bytes();
    } else {
      missing += slab.layout.bytes;
    }
  }
  writer.require_space(missing);
}

void Importer::write_slabs(StoreWriter& writer) {
  report_progress();
  for (PlannedSlab& slab : planned_) {
    if (slab.finished) continue;
    const SlabEntry& layout = slab.layout;
    slab.layout = writer.write_slab(layout.file, layout.kind, layout.id, slab.tensors,
                                    [&](const TensorSpec& tensor, const StoreWriter::Sink& sink) {
                                      write_tensor(tensor, slab.source_layer, sink);
                                    });
  }
}

// A window of chunks is under way: while this thread writes the oldest, the others are read and
// packed. Futures of std::async wait when destroyed, so no task outlives an exception here.
void Importer::write_tensor(const TensorSpec& tensor, std::int64_t layer,
                            const StoreWriter::Sink& sink) {
  const std::int64_t step = rows_per_chunk(tensor.cols);
  std::deque<std::future<Chunk>> under_way;
  for (std::int64_t row = 0; row < tensor.rows || !under_way.empty();) {
    if (row < tensor.rows && static_cast<int>(under_way.size()) < options_.threads) {
      const ChunkRange range{layer, row, std::min(row + step, tensor.rows)};
      under_way.push_back(std::async(std::launch::async, [this, &tensor, range] {
        return make_chunk(source_, tensor, range);
      }));
      row = range.row_end;
      continue;
    }
    const Chunk chunk = under_way.front().get();
    under_way.pop_front();
    write_chunk(tensor, layer, chunk, sink);
  }
}

void Importer::write_chunk(const TensorSpec& tensor, std::int64_t layer, const Chunk& chunk,
                           const StoreWriter::Sink& sink) {
  if (options_.interrupted && options_.interrupted())
    throw Error(ErrorKind::kInterrupted, "interrupted while importing",
                "run the same command again: it continues where it stopped");
  if (chunk.overflows > 0)
    throw data_error(
        fmt::format("{}: {} values are {} for {}", tensor_name(tensor.role, layer), chunk.overflows,
                    is_quantized(tensor.type) ? "not finite or too large" : "too large",
                    dtype_name(tensor.type)),
        fmt::format("import with --weights {}", tensor.type == DType::kBF16 ? "f32" : "bf16"));
  sink({chunk.bytes.get(), static_cast<std::size_t>(chunk.size)});
  done_ += chunk.size;
  report_progress();
}

void Importer::report_progress() const {
  if (options_.progress) options_.progress(done_, total_);
}

}  // namespace

Manifest import_store(WeightSource& source, const std::filesystem::path& store,
                      const ImportOptions& options) {
  return Importer(source, options).run(store);
}

}  // namespace stagecoach
