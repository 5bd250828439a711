#include "launcher/frame.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace stagecoach {
namespace {

TEST(Frame, HeadersReadBack) {
  for (const auto& [kind, bytes] :
       {std::pair(FrameKind::kMessage, std::size_t{0}), std::pair(FrameKind::kMessage, kMaxMessage),
        std::pair(FrameKind::kData, std::size_t{1}), std::pair(FrameKind::kData, kMaxData)}) {
    const FrameStart start = parse_frame_header(frame_header(kind, bytes));
    EXPECT_EQ(start.kind, kind);
    EXPECT_EQ(start.bytes, bytes);
  }
}

TEST(Frame, RefusesWhatIsNone) {
  const auto header = [](std::uint32_t bytes, std::uint8_t kind) {
    std::array<std::byte, kFrameHeader> raw{};
    for (std::size_t i = 0; i < 4; ++i) raw[i] = static_cast<std::byte>(bytes >> (8 * i));
    raw[4] = static_cast<std::byte>(kind);
    return raw;
  };
  EXPECT_THROW(parse_frame_header(header(4, 0)), Error);
  EXPECT_THROW(parse_frame_header(header(4, 3)), Error);
  EXPECT_THROW(parse_frame_header(header(kMaxMessage + 1, 1)), Error);
  EXPECT_THROW(parse_frame_header(header(kMaxData + 1, 2)), Error);
  EXPECT_THROW(parse_frame_header(header(0xFFFFFFFF, 2)), Error);
}

TEST(Frame, ErrorsKeepKindAndHint) {
  const Json message = error_message(resource_error("the disk is full", "free some"));
  try {
    throw_if_error(message, "pc-b");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResources);
    EXPECT_STREQ(error.what(), "pc-b: the disk is full");
    EXPECT_EQ(error.hint(), "free some");
  }
  try {  // of Ctrl-C there
    throw_if_error(error_message({ErrorKind::kInterrupted, "interrupted"}), "pc-b");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kPeerLost);
  }
  EXPECT_NO_THROW(throw_if_error({{"ok", true}}, "pc-b"));
  EXPECT_THROW(throw_if_error({{"error", 1}}, "pc-b"), Error);
}

TEST(Frame, MessagesAreObjects) {
  const auto frame = [](const std::string& text) {
    Frame made;
    for (const char c : text) made.payload.push_back(static_cast<std::byte>(c));
    return made;
  };
  EXPECT_EQ(parse_message(frame(R"({"a": 1})"), "pc").at("a"), 1);
  for (const char* text : {"[]", "1", "", "{", "{\"a\":1,\"a\":2}", "{\"a\":\"\xff\"}"})
    EXPECT_THROW(parse_message(frame(text), "pc"), Error) << text;
}

}  // namespace
}  // namespace stagecoach
