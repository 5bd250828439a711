#include "launcher/interruption.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "launcher/addresses.h"

namespace stagecoach {
namespace {

constexpr Seconds kLong{600};

// A name server that says nothing until the test lets it.
class SilentResolver {
 public:
  ~SilentResolver() {
    const std::lock_guard lock(state_->mutex);
    state_->free = true;
    state_->freed.notify_all();
  }
  Resolver resolver() const {
    return [state = state_](const std::string&) {
      std::unique_lock lock(state->mutex);
      state->asked = true;
      state->freed.wait(lock, [&] { return state->free; });
      return Lookup{.addresses = {"192.0.2.1"}, .problem = {}};
    };
  }
  bool asked() const {
    const std::lock_guard lock(state_->mutex);
    return state_->asked;
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable freed;
    bool asked = false, free = false;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

ErrorKind kind_of(const auto& attempt) {
  try {
    attempt();
  } catch (const Error& error) {
    return error.kind();
  }
  return ErrorKind::kInternal;
}

TEST(Addresses, AnInterruptLeavesASilentNameServer) {
  const SilentResolver silent;
  EXPECT_EQ(kind_of([&] {
              addresses_of(
                  "pc-a", kLong, [&] { return silent.asked(); }, silent.resolver());
            }),
            ErrorKind::kInterrupted);
}

TEST(Addresses, PatienceWithANameServerEnds) {
  const SilentResolver silent;
  const Lookup lookup = addresses_of("pc-a", Seconds(0.1), {}, silent.resolver());
  EXPECT_TRUE(lookup.addresses.empty());
  EXPECT_NE(lookup.problem.find("no name server answers"), std::string::npos) << lookup.problem;
}

TEST(Addresses, NobodyIsAskedForAnAddress) {
  const Resolver nobody = [](const std::string&) -> Lookup { throw std::logic_error("asked"); };
  for (const char* const address : {"192.0.2.7", "2001:db8::7"})
    EXPECT_EQ(addresses_of(address, kLong, {}, nobody).addresses,
              std::vector<std::string>{address});
}

TEST(Addresses, OfThisMachine) {
  const std::vector<std::string> found = addresses_of("localhost", kLong, {}).addresses;
  EXPECT_NE(std::find(found.begin(), found.end(), "127.0.0.1"), found.end());
  const Lookup none = addresses_of("no-such-host.invalid", kLong, {});
  EXPECT_TRUE(none.addresses.empty());
  EXPECT_FALSE(none.problem.empty());
}

TEST(Grace, IsCountedFromWhenTheInterruptWasFirstSeen) {
  std::atomic<bool> interrupted{false};
  const Grace grace([&] { return interrupted.load(); });
  const Interrupted at_once = grace.after(Seconds(0)), later = grace.after(kLong);
  EXPECT_FALSE(at_once());
  interrupted = true;
  EXPECT_TRUE(at_once());
  EXPECT_FALSE(later());
  EXPECT_FALSE(Grace({}).after(Seconds(0))()) << "nobody asks";
}

}  // namespace
}  // namespace stagecoach
