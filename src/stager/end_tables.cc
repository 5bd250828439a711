#include "stager/end_tables.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/hash.h"

namespace stagecoach {
bool is_large_table(TensorRole role) {
  return role == TensorRole::kTokenEmbedding || role == TensorRole::kPositionEmbedding ||
         role == TensorRole::kHead;
}

TensorView EndTables::Place::view(const std::byte* data) const {
  const TensorSpec& spec = tensor->spec;
  return {
      .data = data, .type = spec.type, .layout = spec.layout, .rows = spec.rows, .cols = spec.cols};
}

std::int64_t EndTables::DiskTable::blocks() const {
  return (place.tensor->spec.rows + block_rows - 1) / block_rows;
}

std::int64_t EndTables::DiskTable::block_bytes(std::int64_t block) const {
  return std::min(full_block_bytes, place.tensor->spec.bytes() - block * full_block_bytes);
}

EndTables::EndTables(StoreReader& reader, const EndOptions& options, Timeline& timeline)
    : reader_(reader), timeline_(timeline), options_(options) {
  const LayerStore& store = reader.store();
  if (options.embedding != Residence::kAbsent)
    load(embedding_, store.embedding_slab(), options.embedding);
  if (options.head == Residence::kAbsent) return;
  load(head_, store.head_slab(), options.head);
  open_head_matrix();
  if (head_matrix_ && options_.pin) pin_head_matrix();
}

void EndTables::load(End& end, const SlabEntry& slab, Residence residence) {
  end.present = true;
  for (const PartEntry& part : slab.parts)
    for (const TensorEntry& tensor : part.tensors) {
      const Place place{&slab, &part, &tensor};
      const TensorRole role = tensor.spec.role;
      if (role == TensorRole::kHead) continue;  // open_head_matrix sees to it
      if (residence == Residence::kDisk && is_large_table(role)) {
        open_table(place);
      } else {
        end.tensors.views[static_cast<int>(role)] = place.view(load_tensor(end, place));
      }
    }
}

const std::byte* EndTables::load_tensor(End& end, const Place& place) {
  const ScopedSpan timed = timed_read(place.tensor->spec.bytes());
  StoreReader::Tensor loaded =
      reader_.read_tensor(*place.slab, *place.part, *place.tensor, verifies());
  bytes_ += static_cast<std::int64_t>(loaded.memory.size());
  end.memory.push_back(std::move(loaded.memory));
  return loaded.data;
}

void EndTables::throw_damaged(const Place& place) const {
  throw data_error(fmt::format("{}: {} is damaged: its checksum differs from the manifest's",
                               part_label(reader_.store(), *place.slab, *place.part),
                               role_name(place.tensor->spec.role)),
                   reader_.store().repair_hint(*place.slab));
}

void EndTables::open_table(const Place& place) {
  const TensorSpec& spec = place.tensor->spec;
  DiskTable table;
  table.place = place;
  table.block_rows = spec.layout == Layout::kRows ? 1 : kPanelRows;
  table.full_block_bytes = layout_bytes(spec.layout, spec.type, table.block_rows, spec.cols);
  if (verifies()) {
    // Rows are read one by one later, and only the whole has a checksum: read it through once.
    const ScopedSpan timed = timed_read(spec.bytes());
    StreamingHash whole;
    const std::int64_t step =
        std::max<std::int64_t>(1, options_.gather_bytes / table.full_block_bytes) *
        table.full_block_bytes;
    reader_.scan(*place.slab, *place.part, place.offset(), spec.bytes(), step,
                 [&](std::span<const std::byte> bytes) {
                   whole.update(bytes);
                   if (options_.verify != VerifyMode::kAlways) return;
                   for (std::size_t at = 0; at < bytes.size();
                        at += static_cast<std::size_t>(table.full_block_bytes))
                     table.hashes.push_back(xxh3(bytes.subspan(
                         at, std::min(static_cast<std::size_t>(table.full_block_bytes),
                                      bytes.size() - at))));
                 });
    if (whole.digest() != place.tensor->checksum) throw_damaged(place);
  }
  tables_.push_back(std::move(table));
}

void EndTables::open_head_matrix() {
  const Manifest& manifest = reader_.store().manifest();
  const bool tied = manifest.spec.tied_head;
  if (tied && options_.head == Residence::kMemory && options_.embedding == Residence::kMemory) {
    head_matrix_ = embedding_.tensors[TensorRole::kTokenEmbedding];
    return;
  }
  const SlabEntry& slab = tied ? reader_.store().embedding_slab() : reader_.store().head_slab();
  for (const PartEntry& part : slab.parts)
    for (const TensorEntry& tensor : part.tensors) {
      const Place place{&slab, &part, &tensor};
      if (tensor.spec.role != (tied ? TensorRole::kTokenEmbedding : TensorRole::kHead)) continue;
      if (options_.head == Residence::kDisk) return open_disk_head(place);
      head_matrix_ = place.view(load_tensor(head_, place));
    }
  STAGECOACH_CHECK(head_matrix_);
}

// Its own memory, or the embedding's.
void EndTables::pin_head_matrix() {
  for (End* const end : {&embedding_, &head_})
    for (AlignedBuffer& memory : end->memory)
      if (head_matrix_.data >= memory.data() && head_matrix_.data < memory.data() + memory.size())
        head_lock_ = options_.pin(memory.span());
}

void EndTables::open_disk_head(const Place& place) {
  const TensorSpec& spec = place.tensor->spec;
  const std::int64_t panel_bytes = layout_bytes(spec.layout, spec.type, kPanelRows, spec.cols);
  DiskHead head;
  head.place = place;
  head.tile_rows = std::max<std::int64_t>(1, options_.tile_bytes / panel_bytes) * kPanelRows;
  const DirectFile file = reader_.files().open(*place.slab);
  std::vector<StreamedPart> tiles;
  for (std::int64_t row = 0; row < spec.rows; row += head.tile_rows) {
    const std::int64_t rows = std::min(head.tile_rows, spec.rows - row);
    const std::int64_t begin = place.offset() + row / kPanelRows * panel_bytes;
    const std::int64_t end = begin + layout_bytes(spec.layout, spec.type, rows, spec.cols);
    tiles.push_back({.descriptor = file.descriptor,
                     .direct = file.direct,
                     .offset = align_down(begin),
                     .bytes = align_up(end) - align_down(begin),
                     .name = part_label(reader_.store(), *place.slab, *place.part),
                     .hint = reader_.store().repair_hint(*place.slab)});
  }
  // The whole matrix has one checksum, which head_matrix() compares as the tiles pass.
  head.tiles = std::make_unique<PartStream>(
      std::move(tiles),
      PartStreamOptions{
          .slots = {2}, .check = CheckParts::kNever, .stall = options_.stall, .pin = options_.pin},
      options_.make_queue(), timeline_);
  bytes_ += head.tiles->slot_bytes();
  disk_head_ = std::move(head);
}

LayerLease EndTables::lease(PartKind part) const {
  const End& end = part == PartKind::kEmbedding ? embedding_ : head_;
  STAGECOACH_CHECK(end.present);
  return {end.tensors, nullptr};
}

void EndTables::gather(TensorRole role, std::span<const std::int32_t> ids,
                       const LayerSource::UseRows& use) {
  if (const TensorView& table = embedding_.tensors[role]) return use(0, table, ids);
  for (const DiskTable& table : tables_)
    if (table.place.tensor->spec.role == role) return use_rows(table, ids, use);
  STAGECOACH_CHECK(false);
}

// As many ids at a time as kGatherBytes hold; a block that several of them lie in is read once.
void EndTables::use_rows(const DiskTable& table, std::span<const std::int32_t> ids,
                         const LayerSource::UseRows& use) {
  const std::int64_t most =
      std::max<std::int64_t>(1, options_.gather_bytes / table.full_block_bytes);
  AlignedBuffer blocks(most * table.full_block_bytes);
  TensorView view = table.place.view(blocks.data());
  for (std::size_t first = 0; first < ids.size();) {
    std::map<std::int64_t, std::int64_t> local;  // block → its place in `blocks`
    std::vector<std::int32_t> rows;
    for (std::size_t i = first; i < ids.size(); ++i) {
      const std::int64_t block = ids[i] / table.block_rows;
      if (!local.contains(block) && static_cast<std::int64_t>(local.size()) == most) break;
      const std::int64_t place =
          local.emplace(block, static_cast<std::int64_t>(local.size())).first->second;
      rows.push_back(
          static_cast<std::int32_t>(place * table.block_rows + ids[i] % table.block_rows));
    }
    read_blocks(table, local, blocks.data());
    view.rows = static_cast<std::int64_t>(local.size()) * table.block_rows;
    use(first, view, rows);
    first += rows.size();
  }
}

// `local`: block → its place in `destination`.
void EndTables::read_blocks(const DiskTable& table,
                            const std::map<std::int64_t, std::int64_t>& local,
                            std::byte* destination) {
  const ScopedSpan timed =
      timed_read(static_cast<std::int64_t>(local.size()) * table.full_block_bytes);
  std::vector<StoreReader::Extent> extents;
  std::vector<std::pair<std::int64_t, std::int64_t>> blocks(local.begin(), local.end());
  for (const auto& [block, place] : blocks)
    extents.push_back(
        {table.place.offset() + block * table.full_block_bytes, table.block_bytes(block)});
  reader_.read_extents(
      *table.place.slab, *table.place.part, extents,
      [&](std::size_t i, std::span<const std::byte> bytes) {
        const auto& [block, place] = blocks[i];
        if (!table.hashes.empty() && xxh3(bytes) != table.hashes[static_cast<std::size_t>(block)])
          throw_damaged(table.place);
        std::memcpy(destination + place * table.full_block_bytes, bytes.data(), bytes.size());
      });
}

void EndTables::head_matrix(const LayerSource::UseTile& use,
                            const std::function<bool()>& interrupted) {
  if (head_matrix_) return use(0, head_matrix_);
  STAGECOACH_CHECK(disk_head_.has_value());
  DiskHead& head = *disk_head_;
  const TensorSpec& spec = head.place.tensor->spec;
  const bool check = options_.verify == VerifyMode::kAlways || (verifies() && !head.checked);
  StreamingHash hash;
  std::int64_t offset = head.place.offset();
  for (std::int64_t row = 0; row < spec.rows; row += head.tile_rows) {
    TensorView tile =
        head.place.view(head.tiles->wait(head.next, interrupted) + (offset - align_down(offset)));
    tile.rows = std::min(head.tile_rows, spec.rows - row);
    if (check) hash.update({tile.data, static_cast<std::size_t>(tile.bytes())});
    use(row, tile);
    offset += tile.bytes();
    head.tiles->release(head.next++);
  }
  if (check && hash.digest() != head.place.tensor->checksum) throw_damaged(head.place);
  head.checked = true;
}

}  // namespace stagecoach
