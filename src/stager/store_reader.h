// Reads extents of a store at once, past the page cache and several blocks at a time: what is held
// in memory for a job, and rows of tables that are not. Streaming is PartStream's.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/aligned_buffer.h"
#include "stager/direct_file.h"
#include "stager/read_queue.h"
#include "store/layer_store.h"

namespace stagecoach {

// "layer-003.slab: the mlp part", as errors name it.
std::string part_label(const LayerStore& store, const SlabEntry& slab, const PartEntry& part);

class StoreReader {
 public:
  // `stall`: a disk that gives nothing for so long has failed. `interrupted` is polled.
  StoreReader(const LayerStore& store, std::unique_ptr<ReadQueue> queue,
              std::chrono::milliseconds stall, std::function<bool()> interrupted = {});

  const LayerStore& store() const { return store_; }
  DirectFiles& files() { return files_; }
  const char* queue_name() const { return queue_->name(); }

  // A part's whole extent. Throws data_error naming file, part and repair when it is damaged.
  AlignedBuffer read_part(const SlabEntry& slab, const PartEntry& part, bool verify);

  // One tensor of a part, alone.
  struct Tensor {
    AlignedBuffer memory;
    const std::byte* data = nullptr;  // in it, as aligned as it is in the part
  };
  Tensor read_tensor(const SlabEntry& slab, const PartEntry& part, const TensorEntry& tensor,
                     bool verify);

  // Bytes [offset, offset + size) of a slab, whatever their alignment; `visit` sees them in order,
  // at most `block` bytes at a time.
  using Visit = std::function<void(std::span<const std::byte>)>;
  void scan(const SlabEntry& slab, const PartEntry& part, std::int64_t offset, std::int64_t size,
            std::int64_t block, const Visit& visit);
  // … each block in memory that `next` gives: page-aligned, scan_memory(block) bytes.
  using NextMemory = std::function<std::byte*()>;
  static std::int64_t scan_memory(std::int64_t block);
  void scan(const SlabEntry& slab, const PartEntry& part, std::int64_t offset, std::int64_t size,
            std::int64_t block, const NextMemory& next, const Visit& visit);

  // Many extents of a slab at once, of any alignment: visit(i, bytes of extents[i]), in order.
  struct Extent {
    std::int64_t offset = 0, bytes = 0;
  };
  void read_extents(const SlabEntry& slab, const PartEntry& part, std::span<const Extent> extents,
                    const std::function<void(std::size_t, std::span<const std::byte>)>& visit);

 private:
  struct Target {
    const SlabEntry& slab;
    const PartEntry& part;
  };
  // One request: offset, length and address are multiples of kDirectAlignment.
  struct Piece {
    std::int64_t offset = 0;
    std::span<std::byte> destination;
  };
  void read(const Target& target, std::int64_t offset, std::span<std::byte> destination);
  void read(const Target& target, std::span<const Piece> pieces);
  ReadCompletion next_completion(const Target& target);
  void check(const Target& target, const ReadCompletion& completion, const Piece& piece) const;
  void give_up(std::size_t under_way);

  const LayerStore& store_;
  DirectFiles files_;
  std::unique_ptr<ReadQueue> queue_;
  std::chrono::milliseconds stall_;
  std::function<bool()> interrupted_;
};

}  // namespace stagecoach
