#include "pipeline/checkpoint_resume.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <fstream>
#include <mutex>
#include <numeric>

#include "base/error.h"
#include "ranks.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kWidth = 5;
constexpr std::int64_t kRows = 700'000;  // 14 blocks on their way from rank to rank
const CheckpointIdentity kIdentity{{"model", "m"}};

MicroBatch whole_pass() {
  MicroBatch batch;
  batch.pass = {.row = 0, .rows = kRows, .last = true, .keep = true};
  batch.runs = {{.sequence = 0,
                 .position = 0,
                 .ids = std::vector<TokenId>(static_cast<std::size_t>(kRows), 1),
                 .targets = {},
                 .sample = false}};
  return batch;
}

std::vector<float> values_after(std::int64_t layers) {
  std::vector<float> values(static_cast<std::size_t>(kRows * kWidth));
  std::iota(values.begin(), values.end(), static_cast<float>(layers));
  return values;
}

// Every rank has a folder of its own, as on hosts of their own.
class Resume : public ::testing::Test {
 protected:
  PassCheckpoint open(int rank) {
    return {folder_.path() / std::to_string(rank), kIdentity, 1, kWidth, "rank"};
  }
  void keep(int rank, std::int64_t layers) {
    open(rank).keep_hidden(layers, whole_pass(), values_after(layers));
  }
  // What all ranks of `plan` agree on; the state that is gone on from is then where it is needed.
  CheckpointPoint agreed(const StagePlan& plan, bool with_kv = false) {
    CheckpointPoint first;
    thrown_ = run_ranks(plan.ranks, [&](Transport& transport) {
      ControlChannel control(transport);
      const PassCheckpoint checkpoint = open(transport.rank());
      const CheckpointPoint point = agree_on_resume(
          control, checkpoint_contents(checkpoint, plan, transport.rank(), with_kv), plan);
      share_hidden(control, checkpoint, point);
      if (transport.rank() == 0) first = point;
      transport.finalize();
    });
    return first;
  }
  bool all_went_well() const {
    return std::all_of(thrown_.begin(), thrown_.end(), [](const auto& error) { return !error; });
  }

  // Of kRows, and the empty one behind them.
  static constexpr int kBlocks = 15;
  static constexpr std::chrono::milliseconds kNothingMore{500}, kPatience{60'000};

  TemporaryFolder folder_;
  int blocks_ = 0;
  std::vector<std::exception_ptr> thrown_;
};

const StagePlan kFour = explicit_plan("0:1,1:2,2:3,3:4,4:5,5:6,6:7,7:8", 0, 8, 4);
// Of the same, without rank 2.
const StagePlan kThree{
    .ranks = 3, .windows = {{0, 1, 0}, {1, 3, 1}, {3, 4, 2}, {4, 5, 0}, {5, 6, 1}, {6, 8, 2}}};

TEST_F(Resume, FromTheStartWhereNothingIsThere) {
  const CheckpointPoint point = agreed(kFour);
  EXPECT_TRUE(all_went_well());
  EXPECT_EQ(point.layers, 0);
  EXPECT_EQ(point.window, 0);
}

TEST_F(Resume, TheSamePlanGoesOnAtItsOwnWindow) {
  keep(1, 1);
  keep(2, 2);
  keep(3, 3);
  const CheckpointPoint point = agreed(kFour);
  EXPECT_TRUE(all_went_well());
  EXPECT_EQ(point.layers, 3);
  EXPECT_EQ(point.window, 3);
  EXPECT_EQ(point.has, point.needs);
}

TEST_F(Resume, AnotherPlanGoesOnAmidAWindowWithWhatAnotherRankHas) {
  // Rank 2 of four had the state after 2 and after 6 layers, and is gone.
  keep(1, 5);
  keep(0,
       7);  // as if it had been received for the layer that now belongs to the last rank's window
  const CheckpointPoint point = agreed(kThree);
  EXPECT_TRUE(all_went_well());
  EXPECT_EQ(point.layers, 7);
  EXPECT_EQ(point.window, 5);
  EXPECT_EQ(point.has, 0);
  EXPECT_EQ(point.needs, 2);
  std::vector<float> values(static_cast<std::size_t>(kRows * kWidth));
  open(2).restore_hidden(7, whole_pass(), values);
  EXPECT_EQ(values, values_after(7));
}

TEST_F(Resume, AFinishedPassNeedsTheLastRankOnly) {
  keep(0, 8);
  const CheckpointPoint point = agreed(kThree);
  EXPECT_TRUE(all_went_well());
  EXPECT_EQ(point.layers, 8);
  EXPECT_EQ(point.window, 6);
  EXPECT_EQ(point.needs, 2);
}

TEST_F(Resume, KeysAndValuesThatAreMissingSetItBack) {
  keep(3, 3);
  EXPECT_EQ(agreed(kFour, true).layers, 0);
}

TEST_F(Resume, WhoCannotOpenItsFolderSetsItBack) {
  keep(1, 1);
  std::vector<CheckpointPoint> points(4);
  const auto thrown = run_ranks(4, [&](Transport& transport) {
    ControlChannel control(transport);
    const int rank = transport.rank();
    const CheckpointContents mine =
        rank == 2 ? CheckpointContents{} : checkpoint_contents(open(rank), kFour, rank, false);
    points[static_cast<std::size_t>(rank)] = agree_on_resume(control, mine, kFour);
    transport.finalize();
  });
  for (const auto& error : thrown) EXPECT_FALSE(error);
  for (const CheckpointPoint& point : points) EXPECT_EQ(point.layers, 0);
}

// The sender of 14 blocks waits for the other one, which takes none before it looks.
TEST_F(Resume, ATransferKeepsFewBlocksInMemory) {
  keep(0, 7);
  std::size_t waiting = 0;
  const auto thrown = run_ranks(3, [&](Transport& transport) {
    const CheckpointPoint point{.layers = 7, .window = 5, .has = 0, .needs = 2, .discarded = 0};
    if (transport.rank() == 2) {
      // A look at all that comes, which then comes late.
      while (const auto message = transport.receive(
                 Channel::kControl, Clock::now() + (blocks_ == 0 ? kPatience : kNothingMore))) {
        waiting += message->payload.size();
        ++blocks_;
      }
      for (int i = 0; i < blocks_; ++i) transport.send(0, Channel::kControl, {});
      ControlChannel control(transport);
      for (int i = blocks_; i < kBlocks; ++i) {
        control.receive_from(0);
        transport.send(0, Channel::kControl, {});
      }
    } else {
      ControlChannel control(transport);
      share_hidden(control, open(transport.rank()), point);
    }
    transport.finalize();
  });
  for (const auto& error : thrown) EXPECT_FALSE(error);
  EXPECT_LE(waiting, std::size_t{5} << 20);
}

TEST_F(Resume, AllHearOfADamagedState) {
  for (const bool intact : {false, true}) {
    std::vector<int> heard(3, -1);
    const auto thrown = run_ranks(3, [&](Transport& transport) {
      ControlChannel control(transport);
      const CheckpointPoint point{.layers = 7, .window = 5, .has = 1, .needs = 2, .discarded = 0};
      const int rank = transport.rank();
      heard[static_cast<std::size_t>(rank)] = all_hear(control, point, rank == 1 ? intact : true);
      transport.finalize();
    });
    for (const auto& error : thrown) EXPECT_FALSE(error);
    EXPECT_EQ(heard, std::vector<int>(3, intact));
  }
}

TEST_F(Resume, WhatIsDamagedGoesAndWhatCannotBeReadStays) {
  keep(0, 4);
  keep(0, 6);
  std::string said;
  const auto warn = [&](const std::string& why) { said += why + "\n"; };
  const PassCheckpoint checkpoint = open(0);
  CheckpointContents mine = checkpoint_contents(checkpoint, kThree, 0, false);
  const fs::path file = folder_.path() / "0/layers-006.hidden";
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const bool whole = is_whole(checkpoint, 6, mine, warn);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_FALSE(whole);
  EXPECT_EQ(mine.hidden[6], 0);
  EXPECT_EQ(said.find("is dropped"), std::string::npos) << said;
  ASSERT_TRUE(fs::exists(file));
  mine.hidden[6] = 1;
  EXPECT_TRUE(is_whole(checkpoint, 6, mine, warn));
  std::fstream(file, std::ios::in | std::ios::out | std::ios::binary).seekp(100).put('x');
  EXPECT_FALSE(is_whole(checkpoint, 6, mine, warn));
  EXPECT_NE(said.find("is dropped"), std::string::npos) << said;
  EXPECT_FALSE(fs::exists(file));
  EXPECT_EQ(mine.hidden[4], 1);
}

// As of a rank that shares the folder.
TEST_F(Resume, WhatHasGoneIsNotThere) {
  for (const std::int64_t layers : {2, 4, 6}) keep(0, layers);
  const PassCheckpoint checkpoint = open(0);
  CheckpointContents mine = checkpoint_contents(checkpoint, kThree, 0, false);
  fs::remove(folder_.path() / "0/layers-004.hidden");
  fs::remove(folder_.path() / "0/layers-006.hidden");
  fs::create_directory(folder_.path() / "0/layers-006.hidden");  // and cannot be read
  forget_gone(checkpoint, mine);
  EXPECT_EQ(mine.hidden, (std::vector<std::uint8_t>{0, 0, 1, 0, 0, 0, 0, 0, 0}));
}

// A transfer that fails on one side ends on both, and what follows on the channel is understood.
TEST_F(Resume, AFailedTransferEndsOnBothSides) {
  keep(0, 7);
  fs::create_directories(folder_.path() / "2/layers-007.hidden/in-the-way");
  std::mutex mutex;
  std::vector<int> failed;
  const auto thrown = run_ranks(3, [&](Transport& transport) {
    ControlChannel control(transport);
    const PassCheckpoint checkpoint = open(transport.rank());
    try {
      share_hidden(control, checkpoint,
                   {.layers = 7, .window = 5, .has = 0, .needs = 2, .discarded = 0});
    } catch (const Error&) {
      const std::lock_guard lock(mutex);
      failed.push_back(transport.rank());
    }
    if (transport.rank() == 0) control.send(2, {std::byte{7}});
    if (transport.rank() == 2) {
      EXPECT_EQ(control.receive_from(0), std::vector<std::byte>{std::byte{7}});
    }
    transport.finalize();
  });
  for (const auto& error : thrown) EXPECT_FALSE(error);
  EXPECT_EQ(failed, std::vector<int>{2});
}

}  // namespace
}  // namespace stagecoach
