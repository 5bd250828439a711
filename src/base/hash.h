// XXH3-64, the checksum of slabs, parts, plans and messages. Integrity, not security.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace stagecoach {

std::uint64_t xxh3(std::span<const std::byte> bytes);

class StreamingHash {
 public:
  StreamingHash();
  StreamingHash(StreamingHash&&) noexcept;
  ~StreamingHash();
  void update(std::span<const std::byte> bytes);
  std::uint64_t digest() const;
  void reset();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string hash_to_hex(std::uint64_t hash);  // 16 lower-case digits
std::optional<std::uint64_t> hash_from_hex(std::string_view hex);

}  // namespace stagecoach
