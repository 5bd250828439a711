#include "base/hash.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <charconv>

namespace stagecoach {

std::uint64_t xxh3(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

struct StreamingHash::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

StreamingHash::StreamingHash() : state_(std::make_unique<State>()) {
  reset();
}
StreamingHash::StreamingHash(StreamingHash&&) noexcept = default;
StreamingHash::~StreamingHash() = default;
void StreamingHash::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_->xxh, bytes.data(), bytes.size());
}
std::uint64_t StreamingHash::digest() const {
  return XXH3_64bits_digest(state_->xxh);
}
void StreamingHash::reset() {
  XXH3_64bits_reset(state_->xxh);
}

std::string hash_to_hex(std::uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

std::optional<std::uint64_t> hash_from_hex(std::string_view hex) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), value, 16);
  if (hex.size() != 16 || error != std::errc{} || end != hex.data() + hex.size())
    return std::nullopt;
  return value;
}

}  // namespace stagecoach
