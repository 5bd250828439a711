// What a peer with the key may send an agent: frames with requests, one after the other. Without
// those that would start programs or call other hosts; of these, the command of a daemon is read.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "fuzz_input.h"
#include "launcher/agent_session.h"
#include "launcher/daemon_command.h"

using namespace stagecoach;
namespace fs = std::filesystem;

namespace {

class InputChannel : public Channel {
 public:
  // In messages "@" stands for `folder`, which seeds cannot know.
  InputChannel(std::string_view bytes, std::string folder)
      : rest_(as_bytes(bytes)), folder_(std::move(folder)) {}

  const std::string& peer() const override { return peer_; }
  void send(const Json& message) override {
    STAGECOACH_CHECK(message_payload(message).size() <= kMaxMessage);
  }
  void send_data(std::span<const std::byte> data) override {
    STAGECOACH_CHECK(data.size() <= kMaxData);
  }
  void close_gently() override { broken_ = true; }
  bool broken() const override { return broken_; }
  int descriptor() const override { return -1; }

  Frame receive(Seconds) override {
    if (rest_.size() < kFrameHeader) throw ended();
    const FrameStart start = parse_frame_header(rest_.first<kFrameHeader>());
    rest_ = rest_.subspan(kFrameHeader);
    if (rest_.size() < start.bytes) throw ended();
    Frame frame{.kind = start.kind, .payload = {}};
    for (const std::byte byte : rest_.first(start.bytes)) {
      if (start.kind == FrameKind::kMessage && byte == std::byte{'@'})
        for (const char c : folder_) frame.payload.push_back(static_cast<std::byte>(c));
      else
        frame.payload.push_back(byte);
    }
    rest_ = rest_.subspan(start.bytes);
    return frame;
  }

  std::size_t receive_data(std::span<std::byte> into, Seconds patience) override {
    const Frame frame = receive(patience);
    if (frame.kind != FrameKind::kData || frame.payload.empty() ||
        frame.payload.size() > into.size())
      throw FrameError("expected data");
    std::copy(frame.payload.begin(), frame.payload.end(), into.begin());
    return frame.payload.size();
  }

 private:
  Error ended() {
    broken_ = true;
    return {ErrorKind::kPeerLost, "the input ends"};
  }
  bool broken_ = false;
  std::span<const std::byte> rest_;
  const std::string folder_;
  const std::string peer_ = "input";
};

// Requests that reach for programs or for other hosts.
bool reaches_out(std::string_view bytes) {
  constexpr std::string_view kOps[]{"\"start\"", "\"link\"", "\"pull\"", "\"install\"", "\\u"};
  return std::any_of(std::begin(kOps), std::end(kOps),
                     [&](std::string_view op) { return bytes.find(op) != bytes.npos; });
}

// Beside the agent's folders, a file that no request may touch.
struct Folders {
  Folders() : root(fs::temp_directory_path() / fmt::format("stagecoach-fuzz-{}", ::getpid())) {
    ::setenv("PATH", "/nonexistent", 1);  // facts ask programs
    fs::create_directories(root / "stores/model/tokenizer");
    std::ofstream(root / "sentinel") << "untouched";
    std::ofstream(root / "stores/model/tokenizer/vocab.json") << "{}";
  }
  ~Folders() { fs::remove_all(root); }
  void check() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(root)) names.insert(entry.path().filename());
    names.erase("state");
    STAGECOACH_CHECK((names == std::set<std::string>{"sentinel", "stores"}));
    STAGECOACH_CHECK(read_text_file(root / "sentinel", 100) == "untouched");
  }
  const fs::path root;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Folders folders;
  return fuzz::check(data, size, [](std::string_view bytes) {
    try {
      parse_daemon_command(std::string(bytes));
    } catch (const Error& error) {
      STAGECOACH_CHECK(error.kind() == ErrorKind::kUsage);
    }
    if (reaches_out(bytes)) return;
    AgentContext context(
        {.key = {},
         .listen = {},
         .stores = {folders.root / "stores"},
         .state = folders.root / "state",
         .services = {.isa = [] { return "none"; },
                      .free_memory = [] { return std::int64_t{1}; },
                      .disk_rate = [](const fs::path&, const Interrupted&) { return 1.0; },
                      .probe = [](const fs::path&, const Interrupted&) {}}});
    InputChannel channel(bytes, folders.root / "stores");
    try {
      AgentSession(context, channel).run();
    } catch (const Error& error) {
      STAGECOACH_CHECK(error.kind() == ErrorKind::kPeerLost || error.kind() == ErrorKind::kData);
    }
    folders.check();
  });
}
