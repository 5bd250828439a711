// The two ends of a model, embedding and head, in memory or on disk: rows of the embedding are
// gathered when they are not worth memory, the head's matrix streams in tiles.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "engine/layer_source.h"
#include "stager/part_stream.h"
#include "stager/staging_plan.h"
#include "stager/store_reader.h"

namespace stagecoach {

struct EndOptions {
  Residence embedding = Residence::kAbsent, head = Residence::kAbsent;
  VerifyMode verify = VerifyMode::kFirst;
  std::chrono::milliseconds stall{60'000};
  std::function<std::unique_ptr<ReadQueue>()> make_queue;
  std::int64_t tile_bytes = kHeadTileBytes, gather_bytes = kGatherBytes;
  // Of what the head's matrix passes to a device from: tiles, or where the host holds it all of it.
  PinMemory pin = {};
};

class EndTables {
 public:
  // Loads what is to be in memory. What stays on disk is checked here (embedding: by reading it
  // once) or when it is first used (head).
  EndTables(StoreReader& reader, const EndOptions& options, Timeline& timeline);

  LayerLease lease(PartKind part) const;
  void gather(TensorRole table, std::span<const std::int32_t> ids, const LayerSource::UseRows& use);
  void head_matrix(const LayerSource::UseTile& use, const std::function<bool()>& interrupted);

  std::int64_t bytes() const { return bytes_; }  // of memory

 private:
  // A tensor of the store, by where it stands.
  struct Place {
    const SlabEntry* slab = nullptr;
    const PartEntry* part = nullptr;
    const TensorEntry* tensor = nullptr;
    TensorView view(const std::byte* data) const;
    std::int64_t offset() const { return part->offset + tensor->offset; }
  };
  // The tensors of an end that are in memory.
  struct End {
    bool present = false;
    std::vector<AlignedBuffer> memory;
    PartTensors tensors{};
  };
  // A table whose rows are read when they are asked for. Rows that stand together in the file (a
  // panel's) are a block.
  struct DiskTable {
    Place place;
    std::int64_t block_rows = 1;
    std::int64_t full_block_bytes = 0;
    std::vector<std::uint64_t> hashes;  // of the blocks, with VerifyMode::kAlways
    std::int64_t blocks() const;
    std::int64_t block_bytes(std::int64_t block) const;  // the last may be shorter
  };
  // The head's matrix on disk.
  struct DiskHead {
    Place place;
    std::int64_t tile_rows = 0;
    std::unique_ptr<PartStream> tiles;
    std::uint64_t next = 0;  // number of the next tile
    bool checked = false;
  };

  // Reads for a table are the disk's time, too.
  ScopedSpan timed_read(std::int64_t bytes) {
    return ScopedSpan(timeline_, {.kind = SpanKind::kRead, .bytes = bytes});
  }
  bool verifies() const { return options_.verify != VerifyMode::kOff; }
  void load(End& end, const SlabEntry& slab, Residence residence);
  const std::byte* load_tensor(End& end, const Place& place);
  void open_table(const Place& place);
  void open_head_matrix();
  void pin_head_matrix();
  void open_disk_head(const Place& place);
  void read_blocks(const DiskTable& table, const std::map<std::int64_t, std::int64_t>& local,
                   std::byte* destination);
  void use_rows(const DiskTable& table, std::span<const std::int32_t> ids,
                const LayerSource::UseRows& use);
  [[noreturn]] void throw_damaged(const Place& place) const;

  StoreReader& reader_;
  Timeline& timeline_;
  const EndOptions options_;
  End embedding_, head_;
  TensorView head_matrix_;           // in memory
  std::shared_ptr<void> head_lock_;  // of the memory that it lies in
  std::vector<DiskTable> tables_;
  std::optional<DiskHead> disk_head_;
  std::int64_t bytes_ = 0;
};

// Tensors of the ends that may stay on disk: tables of rows, and the head's matrix.
bool is_large_table(TensorRole role);

}  // namespace stagecoach
