// The values of a long pass, kept on disk so that a run that was interrupted goes on at the last
// window that was finished. Everything is written by the rank that has it, into a folder of its own
// host or one that ranks share: names say how many layers were done, not who did them.
//
//   DIR/checkpoint.json     whose values these are: model, work, KV and activation type, …
//   DIR/layers-007.hidden   (rows of the pass, hidden_size) after the first 7 layers, from the rank
//                           that received it
//   DIR/layer-007.kv        keys and values of layer 7, where later passes read them (generate)
//   DIR/tokens.json         what has been drawn (generate, rank 0)
//   DIR/launch              the launch that has worked there last, if it was one
//
// A .hidden or .kv file, little-endian, exists whole or not at all (written as .part, synced,
// renamed):
//
//   0   "SCHECKPT"   8   u32 version, u32 kind (0 hidden, 1 kv)   16  u64 identity   24  u64 pass
//   32  i64 number (layers done, or the layer)   40  i64 bytes of the payload   48  u64 its XXH3
//   56  u64 zero   64  payload
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/file_lock.h"
#include "base/hash.h"
#include "engine/kv_cache.h"
#include "pipeline/micro_batch.h"

namespace stagecoach {

// What must be equal for a checkpoint to be another run's continuation, by the name that a refusal
// uses: "model", "text", "plan" …
using CheckpointIdentity = std::vector<std::pair<std::string, std::string>>;
// Names that begin so say what a plan is, for messages: "plan" alone is compared.
inline constexpr std::string_view kPlanDetail = "plan: ";

// What a launch asks of a checkpoint besides.
struct CheckpointCare {
  // Its name. What the folder has of another plan or other instruction sets is thrown away, after a
  // loss, if a run of the same launch has worked there before; else it is refused like all that
  // differs. Empty: of no launch.
  std::string launch = {};
  // Of hidden states only the newest that this rank has kept, and one before it in case that is
  // damaged: where nothing but a hidden state is gone on from (score).
  bool newest = false;
};

class PassCheckpoint {
 public:
  // Makes the folder, or takes one of the same identity. Throws data_error naming what differs,
  // resource_error when it cannot be written. `pass`: hash of what the first pass computes; files
  // of another pass of the same work (generate, some tokens ago) are passed over, then replaced.
  // `holder` ("rank-0") is one of those that share the folder: a second one of that name is another
  // job's, and a usage_error.
  PassCheckpoint(std::filesystem::path folder, const CheckpointIdentity& identity,
                 std::uint64_t pass, std::int64_t width, const std::string& holder,
                 CheckpointCare care = {});

  // Layers whose hidden state was thrown away with what another plan had computed; 0: none was.
  std::int64_t discarded_layers() const { return discarded_; }
  // Throws resource_error unless the folder's file system has room for so many bytes, those of
  // checkpoint files that are there, and will be replaced, among them.
  void require_room(std::int64_t bytes) const;

  bool has_hidden(std::int64_t layers) const;
  bool has_kv(std::int64_t layer) const;

  // Rows of one micro-batch; the file comes to be with the last one of its pass.
  void keep_hidden(std::int64_t layers, const MicroBatch& batch, std::span<const float> hidden);
  void keep_kv(std::int64_t layer, const MicroBatch& batch, KvCache& kv);
  // What is wrong with the bytes of a file that is there, all of which are read; empty: nothing.
  // Throws where they cannot be read now, which says nothing of them.
  std::string damage_of_hidden(std::int64_t layers) const;
  void drop_hidden(std::int64_t layers) const;
  // Throws data_error for a damaged file.
  void restore_hidden(std::int64_t layers, const MicroBatch& batch, std::span<float> hidden);
  void restore_kv(std::int64_t layer, const MicroBatch& batch, KvCache& kv);

  // The file of a hidden state, for a rank whose folder lacks it; and that rank's side, where
  // `next` gives its bytes, block by block, and at last none.
  File open_hidden(std::int64_t layers) const;
  void adopt_hidden(std::int64_t layers, const std::function<std::vector<std::byte>()>& next) const;

 private:
  enum class Kind : std::uint32_t { kHidden = 0, kKv = 1 };
  using Key = std::pair<Kind, std::int64_t>;  // and number
  struct Header;
  // A file that grows by one micro-batch after the other.
  struct Draft {
    File file;
    StreamingHash hash;
    std::int64_t bytes = 0;
  };
  // A file that is read the same way.
  struct Restored {
    File file;
    std::int64_t bytes = 0, used = 0;
  };

  std::filesystem::path path(const Key& key) const;
  // Of a file of this work and pass; nullopt where there is none.
  std::optional<Header> header(const Key& key) const;
  void append(const Key& key, const MicroBatch& batch, std::span<const std::byte> bytes);
  void finish(const Key& key, const MicroBatch& batch);
  void take(const Key& key, const MicroBatch& batch, std::span<std::byte> destination);
  void end_restore(const Key& key, const MicroBatch& batch);
  Restored open_checked(const Key& key, std::int64_t most_bytes) const;
  bool is_of_launch() const;
  void mark_launch() const;
  void discard();
  void drop_older();

  std::filesystem::path folder_;
  std::optional<FileLock> lock_;
  std::uint64_t identity_ = 0;
  std::uint64_t pass_;
  std::int64_t width_;
  CheckpointCare care_;
  std::int64_t discarded_ = 0;
  std::vector<std::int64_t> kept_;  // numbers of hidden states, in this run
  std::map<Key, Draft> drafts_;
  std::map<Key, Restored> restored_;
};

}  // namespace stagecoach
