#include "pipeline/peer_watch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "transport/faulty/faulty_transport.h"
#include "transport/loopback/loopback_transport.h"

namespace stagecoach {
namespace {

using std::chrono::milliseconds;

struct Report {
  int from = 0, peer = 0;
  bool reporter = false;
};

class PeerWatchTest : public testing::Test {
 protected:
  // All ranks of `size`, of which `silent` ones send nothing. Deadlines are far apart from the beat
  // so that a busy machine loses nobody.
  void open(int size, const std::vector<int>& silent) {
    auto plain = make_loopback(size);
    for (int r = 0; r < size; ++r) {
      std::vector<Fault> script;
      if (std::find(silent.begin(), silent.end(), r) != silent.end())
        script.push_back({.kind = Fault::Kind::kSilence});
      transports_.push_back(make_faulty(std::move(plain[static_cast<std::size_t>(r)]), script, 1));
    }
  }
  void watch(int rank) {
    watches_.push_back(std::make_unique<PeerWatch>(
        *transports_[static_cast<std::size_t>(rank)],
        PeerWatchOptions{.interval = milliseconds(20), .silence = milliseconds(2000)},
        PeerWatch::Events{.lost =
                              [this, rank](int peer, double seconds, bool reporter) {
                                EXPECT_GE(seconds, 2.0);
                                const std::lock_guard lock(mutex_);
                                reports_.push_back({rank, peer, reporter});
                                changed_.notify_all();
                              },
                          .failed =
                              [this](const Error& error) {
                                const std::lock_guard lock(mutex_);
                                failures_.push_back(error.what());
                                changed_.notify_all();
                              }}));
  }
  std::vector<Report> wait_for_reports(std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(60), [&] { return reports_.size() >= count; });
    return reports_;
  }
  void end() { watches_.clear(); }

  std::vector<std::unique_ptr<Transport>> transports_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Report> reports_;
  std::vector<std::string> failures_;
  std::vector<std::unique_ptr<PeerWatch>> watches_;
};

TEST_F(PeerWatchTest, ASilentPeerIsNoticedByAllAndToldByTheLowest) {
  open(3, {2});
  watch(0);
  watch(1);
  wait_for_reports(2);
  end();
  ASSERT_EQ(reports_.size(), 2U) << "each watch calls once";
  for (const Report& report : reports_) {
    EXPECT_EQ(report.reporter, report.from == 0);
    EXPECT_EQ(report.peer, 2);
  }
}

TEST_F(PeerWatchTest, WhenRankZeroIsSilentTheNextLowestTells) {
  open(3, {0});
  watch(1);
  watch(2);
  wait_for_reports(2);
  end();
  ASSERT_EQ(reports_.size(), 2U);
  for (const Report& report : reports_) {
    EXPECT_EQ(report.reporter, report.from == 1);
    EXPECT_EQ(report.peer, 0);
  }
}

// Beating ranks whose main threads do nothing at all: longer than the silence, nobody is lost.
TEST_F(PeerWatchTest, ABusyPeerThatBeatsIsNotLost) {
  open(3, {});
  for (int r = 0; r < 3; ++r) watch(r);
  std::this_thread::sleep_for(milliseconds(3000));
  end();
  EXPECT_TRUE(reports_.empty());
}

TEST_F(PeerWatchTest, AFailedTransportIsToldAfterASecondOfGrace) {
  auto plain = make_loopback(2);
  transports_.push_back(make_faulty(std::move(plain[0]), {{.kind = Fault::Kind::kFailReceive}}, 1));
  watch(0);
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(60), [&] { return !failures_.empty(); });
  }
  end();
  EXPECT_TRUE(reports_.empty());
  EXPECT_EQ(failures_.size(), 1U);
}

TEST_F(PeerWatchTest, ALoneRankWatchesNobody) {
  open(1, {0});
  watch(0);
  end();
  EXPECT_TRUE(reports_.empty());
}

}  // namespace
}  // namespace stagecoach
