// Reads the parts of a pass from disk, over and over, into a bounded ring of slots, as far ahead as
// the slots allow. Knows files and bytes, no layers: a disk in tests is a fake ReadQueue.
//
//   part      0    1    2    3    4  …  of an endless sequence that repeats the list of parts
//             └─ released ─┘    │
//                        being used   └─ ready, or being read into the slots that are free ─┘
//
// Slots come in kinds (attention parts, MLP parts), each kind a ring of its own, because slots of
// one size would waste half of an attention part's. A part goes into its kind's next slot as soon
// as the part that was there has been released.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/hash.h"
#include "stager/read_queue.h"
#include "timeline/timeline.h"

namespace stagecoach {

struct StreamedPart {
  int descriptor = -1;
  bool direct = true;
  std::int64_t offset = 0, bytes = 0;  // multiples of kDirectAlignment
  int kind = 0;                        // of slot
  std::uint64_t checksum = 0;
  std::int32_t layer = -1;  // for spans
  std::string name;         // "layer-003.slab: the mlp part", for errors
  std::string hint;         // how to repair it
  int content = 0;          // parts of equal content (layers that share a slab) have equal numbers
};

enum class CheckParts : std::uint8_t { kAlways, kFirstTime, kNever };

// Page-locks host memory while the result lives (Backend::pin).
using PinMemory = std::function<std::shared_ptr<void>(std::span<std::byte>)>;

struct PartStreamOptions {
  std::vector<int> slots;  // of each kind, at least one of every kind that a part has
  CheckParts check = CheckParts::kFirstTime;
  std::uint64_t first = 0;  // number of the first part to read: a resumed pass begins there
  std::uint64_t end = ~std::uint64_t{0};    // of the last one, and one: nothing is read beyond
  std::chrono::milliseconds stall{60'000};  // a disk that gives nothing for so long has failed
  std::int64_t chunk_bytes = std::int64_t{1} << 20;  // of one read
  PinMemory pin = {};                                // of slots
};

class PartStream {
 public:
  // Begins to read at once, in a thread of its own.
  PartStream(std::vector<StreamedPart> parts, const PartStreamOptions& options,
             std::unique_ptr<ReadQueue> queue, Timeline& timeline);
  ~PartStream();
  PartStream(const PartStream&) = delete;
  PartStream& operator=(const PartStream&) = delete;

  // The bytes of part `number` (it is parts[number % parts.size()]), when they have been read and
  // checked. Throws data_error for a wrong byte or a truncated file, resource_error for a read
  // error or a disk that stalls; the same error from then on. `interrupted` is polled.
  const std::byte* wait(std::uint64_t number, const std::function<bool()>& interrupted = {});
  // Parts are released in order; the memory is then the stream's again.
  void release(std::uint64_t number);

  const StreamedPart& part(std::uint64_t number) const { return parts_[number % parts_.size()]; }
  std::int64_t slot_bytes() const;  // memory of all slots

 private:
  // A part on its way from disk.
  struct Reading {
    std::uint64_t number = 0;
    std::byte* data = nullptr;
    std::int64_t asked = 0;               // bytes given to the queue, from the first on
    std::int64_t arrived = 0;             // bytes that are here, in all
    std::vector<bool> chunk_arrived;      // by chunk
    std::int64_t hashed = 0;              // bytes, from the first on
    std::unique_ptr<StreamingHash> hash;  // null: not checked
    std::int64_t begin_ns = 0;
  };

  void run();
  void read_on();
  bool may_begin(std::uint64_t number) const;
  void begin_part();
  bool submit_some();
  void take(const ReadCompletion& completion);
  void hash_arrived(Reading& reading);
  void finish_front();
  std::byte* slot_of(std::uint64_t number);
  std::uint64_t ordinal(std::uint64_t number) const;  // among all parts of its kind so far

  const std::vector<StreamedPart> parts_;
  const PartStreamOptions options_;
  std::unique_ptr<ReadQueue> queue_;
  Timeline& timeline_;
  std::vector<std::vector<std::uint64_t>> of_kind_;  // kind → indices into parts_
  std::vector<std::uint64_t> index_in_kind_;         // by part
  std::vector<std::vector<AlignedBuffer>> slots_;    // by kind
  std::vector<std::shared_ptr<void>> locks_;         // of slots
  std::vector<bool> checked_;                        // by content

  // The reading thread's.
  std::deque<Reading> readings_;  // in order
  std::uint64_t next_ = 0;        // to begin
  int under_way_ = 0;             // reads
  Deadline last_sign_;            // of life: when the disk last gave something, or was asked

  mutable std::mutex mutex_;
  std::condition_variable ready_changed_, released_changed_;
  std::uint64_t ready_ = 0, released_ = 0;  // all parts before
  std::exception_ptr error_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace stagecoach
