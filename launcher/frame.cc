#include "launcher/frame.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"

namespace stagecoach {

std::array<std::byte, kFrameHeader> frame_header(FrameKind kind, std::size_t bytes) {
  STAGECOACH_CHECK(bytes <= (kind == FrameKind::kData ? kMaxData : kMaxMessage));
  std::array<std::byte, kFrameHeader> header;
  for (std::size_t i = 0; i < 4; ++i) header[i] = static_cast<std::byte>(bytes >> (8 * i));
  header[4] = static_cast<std::byte>(kind);
  return header;
}

FrameStart parse_frame_header(std::span<const std::byte, kFrameHeader> header) {
  FrameStart start;
  for (std::size_t i = 0; i < 4; ++i)
    start.bytes |= static_cast<std::size_t>(std::to_integer<std::uint8_t>(header[i])) << (8 * i);
  const auto kind = std::to_integer<std::uint8_t>(header[4]);
  if (kind != static_cast<std::uint8_t>(FrameKind::kMessage) &&
      kind != static_cast<std::uint8_t>(FrameKind::kData))
    throw FrameError(fmt::format("a frame of unknown kind {}", kind));
  start.kind = static_cast<FrameKind>(kind);
  const std::size_t most = start.kind == FrameKind::kData ? kMaxData : kMaxMessage;
  if (start.bytes > most)
    throw FrameError(fmt::format("a frame of {} bytes, expected {} at most", start.bytes, most));
  return start;
}

std::vector<std::byte> message_payload(const Json& message) {
  // What a file name or an error quotes may be no UTF-8.
  const std::string text = message.dump(-1, ' ', false, Json::error_handler_t::replace);
  const std::span<const std::byte> bytes = as_bytes(text);
  return {bytes.begin(), bytes.end()};
}

Json parse_message(const Frame& frame, const std::string& peer) {
  if (frame.kind != FrameKind::kMessage)
    throw FrameError(
        fmt::format("{}: expected a message, found {} bytes of data", peer, frame.payload.size()));
  const std::string_view text(reinterpret_cast<const char*>(frame.payload.data()),
                              frame.payload.size());
  Json message;
  try {
    message = parse_json(text, peer);
  } catch (const Error& error) {
    throw FrameError(error.what());
  }
  if (!message.is_object()) throw FrameError(fmt::format("{}: expected an object", peer));
  return message;
}

Json error_message(const Error& error) {
  return {{"error", error.what()}, {"hint", error.hint()}, {"code", error.exit_code()}};
}

void throw_if_error(const Json& message, const std::string& peer) {
  if (!message.contains("error")) return;
  const JsonObject object(message, peer);
  constexpr std::array kKinds{ErrorKind::kInternal, ErrorKind::kUsage, ErrorKind::kData,
                              ErrorKind::kResources, ErrorKind::kPeerLost};
  std::int64_t code = object.integer("code");
  // Of its end there, not of Ctrl-C here.
  if (code == static_cast<int>(ErrorKind::kInterrupted))
    code = static_cast<int>(ErrorKind::kPeerLost);
  const auto kind = std::find_if(kKinds.begin(), kKinds.end(),
                                 [&](ErrorKind known) { return static_cast<int>(known) == code; });
  throw Error(kind == kKinds.end() ? ErrorKind::kInternal : *kind,
              fmt::format("{}: {}", peer, object.string("error")), object.string("hint"));
}

}  // namespace stagecoach
