// What agent and launcher say to each other, once TLS has shown that both have the key: frames, a
// message (JSON) or bytes of a file each. docs/launcher.md lists the requests.
//
//   0  u32 bytes of the payload, little-endian   4  u8 kind   5  payload
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace stagecoach {

// Of requests and replies; hosts whose numbers differ cannot talk, whatever their versions.
inline constexpr std::int64_t kProtocol = 1;

// What is no frame, or not the one that must come now: where the next one begins is not known.
struct FrameError : Error {
  explicit FrameError(const std::string& what)
      : Error(ErrorKind::kData, what, "the same version of Stagecoach on every PC") {}
};

enum class FrameKind : std::uint8_t { kMessage = 1, kData = 2 };

struct Frame {
  FrameKind kind = FrameKind::kMessage;
  std::vector<std::byte> payload;
};

inline constexpr std::size_t kFrameHeader = 5;
inline constexpr std::size_t kMaxMessage = std::size_t{16} << 20;  // a manifest of 1,000 layers
inline constexpr std::size_t kMaxData = std::size_t{1} << 20;

std::array<std::byte, kFrameHeader> frame_header(FrameKind kind, std::size_t bytes);

struct FrameStart {
  FrameKind kind = FrameKind::kMessage;
  std::size_t bytes = 0;
};

// Throws FrameError for a kind that is none and for more bytes than such a frame may have.
FrameStart parse_frame_header(std::span<const std::byte, kFrameHeader> header);

std::vector<std::byte> message_payload(const Json& message);
// Throws FrameError unless the frame is a message, an object. `peer` names it in errors.
Json parse_message(const Frame& frame, const std::string& peer);

// An error as a message, and back: {"error", "hint", "code"}.
Json error_message(const Error& error);
// Throws what the message says, if it is an error, with `peer` in front.
void throw_if_error(const Json& message, const std::string& peer);

}  // namespace stagecoach
