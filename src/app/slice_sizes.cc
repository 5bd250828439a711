#include "app/slice_sizes.h"

#include <algorithm>

#include "stager/end_tables.h"
#include "store/slab_format.h"

namespace stagecoach {
namespace {

std::int64_t part_bytes(const ModelSpec& spec, DType weights, SlabKind kind, PartKind part) {
  const SlabEntry slab = plan_slab("size.slab", kind, 0, slab_tensors(spec, kind, weights));
  const PartEntry* const entry = slab.part(part);
  return entry == nullptr ? 0 : entry->bytes;
}

// Memory of an end of the model with its large tables on disk: what is left, and the buffers that
// the tables pass through.
struct EndSizes {
  std::int64_t in_memory = 0, on_disk = 0;
};

constexpr std::int64_t kPage = 4096;

EndSizes embedding_sizes(const ModelSpec& spec, DType weights) {
  EndSizes sizes;
  std::int64_t row = 0;
  for (const TensorSpec& tensor : slab_tensors(spec, SlabKind::kEmbedding, weights)) {
    sizes.in_memory += tensor.bytes() + 2 * kPage;
    if (is_large_table(tensor.role))
      row =
          std::max(row, layout_bytes(tensor.layout, tensor.type,
                                     tensor.layout == Layout::kRows ? 1 : kPanelRows, tensor.cols));
    else
      sizes.on_disk += tensor.bytes() + 2 * kPage;
  }
  sizes.on_disk += 2 * (std::max(kGatherBytes, row) + 2 * kPage);
  return sizes;
}

EndSizes head_sizes(const ModelSpec& spec, DType weights, std::int64_t& matrix) {
  EndSizes sizes;
  const SlabKind owner = spec.tied_head ? SlabKind::kEmbedding : SlabKind::kHead;
  for (const TensorSpec& tensor : slab_tensors(spec, SlabKind::kHead, weights))
    if (tensor.role != TensorRole::kHead) sizes.on_disk += tensor.bytes() + 2 * kPage;
  sizes.in_memory = sizes.on_disk;
  for (const TensorSpec& tensor : slab_tensors(spec, owner, weights)) {
    if (tensor.role != (spec.tied_head ? TensorRole::kTokenEmbedding : TensorRole::kHead)) continue;
    matrix = tensor.bytes();
    sizes.in_memory += matrix + 2 * kPage;
    const std::int64_t panel = layout_bytes(tensor.layout, tensor.type, kPanelRows, tensor.cols);
    sizes.on_disk += 2 * (std::min(matrix, std::max(kHeadTileBytes, panel)) + 2 * kPage);
  }
  return sizes;
}

}  // namespace

WeightSizes slice_sizes(const ModelSpec& spec, DType weights, const SliceEnds& ends) {
  WeightSizes sizes{.attention = part_bytes(spec, weights, SlabKind::kLayer, PartKind::kAttention),
                    .mlp = part_bytes(spec, weights, SlabKind::kLayer, PartKind::kMlp)};
  if (ends.embedding) {
    const EndSizes embedding = embedding_sizes(spec, weights);
    sizes.embedding_in_memory = embedding.in_memory;
    sizes.embedding_on_disk = std::min(embedding.in_memory, embedding.on_disk);
    sizes.row_buffer = kGatherBytes;
  }
  if (ends.head) {
    const EndSizes head = head_sizes(spec, weights, sizes.head_matrix);
    sizes.head_in_memory = head.in_memory;
    sizes.head_on_disk = std::min(head.in_memory, head.on_disk);
    if (ends.embedding && spec.tied_head) sizes.shared = sizes.head_matrix;
  }
  return sizes;
}

}  // namespace stagecoach
