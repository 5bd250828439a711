#include <algorithm>

#include "base/error.h"
#include "base/hash.h"
#include "store/layer_store.h"

namespace stagecoach {
namespace {

// Streams parts through one small buffer: a part may be bigger than memory.
class Verifier {
 public:
  Verifier(const LayerStore& store, const VerifyOptions& options)
      : store_(store), options_(options), buffer_(kChunkBytes) {
    for (const SlabEntry& slab : store.manifest().slabs) total_ += slab.bytes;
  }

  std::vector<std::string> run() {
    for (const SlabEntry& slab : store_.manifest().slabs) {
      try {
        const File& file = store_.open_slab(slab);
        for (const PartEntry& part : slab.parts) check_part(file, part);
      } catch (const Error& error) {
        // A disk that fails to read is a finding like any other; Ctrl-C is not.
        if (error.kind() != ErrorKind::kData && error.kind() != ErrorKind::kResources) throw;
        problems_.push_back(error.what());
      }
      slabs_end_ += slab.bytes;
      advance_to(slabs_end_);
    }
    return std::move(problems_);
  }

 private:
  static constexpr std::size_t kChunkBytes = std::size_t{4} << 20;

  void check_part(const File& file, const PartEntry& part) {
    part_hash_.reset();
    position_ = part.offset;
    bool tensors_whole = true;
    for (const TensorEntry& tensor : part.tensors) {
      hash_up_to(file, part.offset + tensor.offset, nullptr);
      tensor_hash_.reset();
      hash_up_to(file, part.offset + tensor.offset + tensor.spec.bytes(), &tensor_hash_);
      if (tensor_hash_.digest() == tensor.checksum) continue;
      tensors_whole = false;
      report(file, fmt::format("{} is damaged", role_name(tensor.spec.role)), tensor.checksum,
             tensor_hash_.digest());
    }
    hash_up_to(file, part.offset + part.bytes, nullptr);
    if (tensors_whole && part_hash_.digest() != part.checksum)
      report(file, fmt::format("the {} part is damaged between its tensors", part_name(part.kind)),
             part.checksum, part_hash_.digest());
  }

  void hash_up_to(const File& file, std::int64_t end, StreamingHash* also) {
    while (position_ < end) {
      const auto size = std::min(kChunkBytes, static_cast<std::size_t>(end - position_));
      const std::span<std::byte> chunk = std::span(buffer_).first(size);
      file.read_at(position_, chunk);
      part_hash_.update(chunk);
      if (also != nullptr) also->update(chunk);
      position_ += static_cast<std::int64_t>(size);
      advance_to(slabs_end_ + position_);
    }
  }

  void report(const File& file, const std::string& problem, std::uint64_t expected,
              std::uint64_t found) {
    problems_.push_back(fmt::format("{}: {}: expected checksum {}, found {}", file.path().string(),
                                    problem, hash_to_hex(expected), hash_to_hex(found)));
  }

  void advance_to(std::int64_t done) {
    if (options_.interrupted && options_.interrupted())
      throw Error(ErrorKind::kInterrupted, "interrupted while verifying");
    if (options_.progress) options_.progress(done, total_);
  }

  const LayerStore& store_;
  const VerifyOptions& options_;
  std::vector<std::byte> buffer_;
  StreamingHash part_hash_, tensor_hash_;
  std::int64_t position_ = 0;   // in the current slab
  std::int64_t slabs_end_ = 0;  // bytes of the slabs before it
  std::int64_t total_ = 0;
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<std::string> verify_store(const LayerStore& store, const VerifyOptions& options) {
  return Verifier(store, options).run();
}

}  // namespace stagecoach
