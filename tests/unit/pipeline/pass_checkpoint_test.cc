#include "pipeline/pass_checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <fstream>
#include <numeric>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kWidth = 6;
const CheckpointIdentity kIdentity{{"model", "m"}, {"text", "t"}, {"plan", "p"}};

// Rows [first, first + count) of a pass of `rows`, all of one sequence.
MicroBatch batch(std::int64_t first, std::int64_t count, std::int64_t rows) {
  MicroBatch result;
  result.pass = {.row = first, .rows = rows, .last = first + count == rows, .keep = true};
  result.runs = {{.sequence = 0,
                  .position = first,
                  .ids = std::vector<TokenId>(static_cast<std::size_t>(count), 1),
                  .targets = {},
                  .sample = false}};
  return result;
}

std::vector<float> hidden(std::int64_t first, std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count * kWidth));
  std::iota(values.begin(), values.end(), static_cast<float>(first * kWidth));
  return values;
}

class PassCheckpointTest : public testing::Test {
 protected:
  PassCheckpoint open(std::uint64_t pass = 1, const CheckpointIdentity& identity = kIdentity) {
    // Several are open at once here, as those of several ranks are.
    return {folder_.path() / "checkpoint", identity, pass, kWidth,
            "rank-" + std::to_string(opened_++)};
  }
  void keep_window(std::int64_t window) {
    PassCheckpoint checkpoint = open();
    checkpoint.keep_hidden(window, batch(0, 3, 8), hidden(0, 3));
    EXPECT_FALSE(checkpoint.has_hidden(window)) << "a part of it is no file yet";
    checkpoint.keep_hidden(window, batch(3, 5, 8), hidden(3, 5));
    EXPECT_TRUE(checkpoint.has_hidden(window));
  }
  template <typename Act>
  static Error error_of(Act act) {
    try {
      act();
    } catch (const Error& error) {
      return error;
    }
    return {ErrorKind::kInternal, "nothing was thrown"};
  }

  TemporaryFolder folder_;
  int opened_ = 0;
};

TEST_F(PassCheckpointTest, GivesBackWhatItKeptHoweverThePassIsCut) {
  keep_window(4);
  PassCheckpoint later = open();
  EXPECT_TRUE(later.has_hidden(4));
  EXPECT_FALSE(later.has_hidden(5));
  std::vector<float> values(static_cast<std::size_t>(7 * kWidth));
  later.restore_hidden(4, batch(0, 7, 8), values);
  EXPECT_EQ(values, hidden(0, 7));
  values.resize(static_cast<std::size_t>(kWidth));
  later.restore_hidden(4, batch(7, 1, 8), values);
  EXPECT_EQ(values, hidden(7, 1));
}

TEST_F(PassCheckpointTest, AnotherPassOfTheSameWorkIsPassedOver) {
  keep_window(0);
  EXPECT_FALSE(open(2).has_hidden(0));
  EXPECT_TRUE(open(1).has_hidden(0));
}

TEST_F(PassCheckpointTest, AnotherJobIsRefusedByName) {
  open();
  for (const std::size_t field : {0, 1, 2}) {
    CheckpointIdentity other = kIdentity;
    other[field].second = "other";
    const Error error = error_of([&] { open(1, other); });
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    EXPECT_NE(std::string(error.what()).find("belongs to another " + other[field].first),
              std::string::npos)
        << error.what();
  }
}

TEST_F(PassCheckpointTest, ARefusedPlanSaysInWhatItDiffers) {
  CheckpointIdentity detailed = kIdentity;
  detailed.emplace_back("plan: ranks", "2");
  detailed.emplace_back("plan: --micro-batch", "256");
  open(1, detailed);
  open();  // what is compared is the plan alone
  CheckpointIdentity other = detailed;
  other[2].second = "other";
  other[4].second = "128";
  const Error error = error_of([&] { open(1, other); });
  EXPECT_NE(std::string(error.what())
                .find("belongs to another plan: --micro-batch expected 128, found 256"),
            std::string::npos)
      << error.what();
}

// After a loss: the model and the text must still be the same.
TEST_F(PassCheckpointTest, AnotherPlanIsBegunAnewWhereALaunchAsks) {
  const fs::path folder = folder_.path() / "checkpoint";
  keep_window(3);
  keep_window(5);
  std::ofstream(folder / "layers.txt") << "nobody's";
  std::ofstream(folder / "layers-006.hidden.part") << "half";
  const auto anew = [&](const CheckpointIdentity& identity, const char* launch = "launch-2") {
    return PassCheckpoint(folder, identity, 1, kWidth, "rank-0",
                          {.launch = launch, .newest = false});
  };
  CheckpointIdentity other_plan = kIdentity;
  other_plan[2].second = "other";
  EXPECT_EQ(anew(kIdentity, "launch-1").discarded_layers(), 0);
  EXPECT_EQ(error_of([&] { anew(other_plan); }).kind(), ErrorKind::kData)
      << "no run of this launch was there";
  EXPECT_EQ(anew(kIdentity).discarded_layers(), 0);
  EXPECT_TRUE(open().has_hidden(5)) << "the same plan goes on";
  CheckpointIdentity other = kIdentity;
  other[1].second = "other";
  EXPECT_EQ(error_of([&] { anew(other); }).kind(), ErrorKind::kData);
  other = other_plan;
  EXPECT_EQ(anew(other).discarded_layers(), 5) << "6 is not finished";
  for (const char* name : {"layers-003.hidden", "layers-006.hidden.part"})
    EXPECT_FALSE(fs::exists(folder / name)) << name;
  EXPECT_TRUE(fs::exists(folder / "layers.txt"));
  EXPECT_EQ(anew(other).discarded_layers(), 0);
  EXPECT_EQ(error_of([&] { open(); }).kind(), ErrorKind::kData) << "it is the other plan's now";
}

TEST_F(PassCheckpointTest, KeepsTheNewestOnly) {
  keep_window(2);  // of a run before
  PassCheckpoint checkpoint(folder_.path() / "checkpoint", kIdentity, 1, kWidth, "rank-9",
                            {.launch = {}, .newest = true});
  for (const std::int64_t layers : {4, 7, 9})
    checkpoint.keep_hidden(layers, batch(0, 8, 8), hidden(0, 8));
  std::vector<std::int64_t> there;
  for (std::int64_t layers = 1; layers < 12; ++layers)
    if (checkpoint.has_hidden(layers)) there.push_back(layers);
  EXPECT_EQ(there, (std::vector<std::int64_t>{7, 9}));
}

TEST_F(PassCheckpointTest, DamageIsFoundBeforeItIsUsed) {
  keep_window(4);
  EXPECT_EQ(open().damage_of_hidden(4), "");
  const fs::path file = folder_.path() / "checkpoint" / "layers-004.hidden";
  std::fstream(file, std::ios::in | std::ios::out | std::ios::binary).seekp(100).put('x');
  const PassCheckpoint checkpoint = open();
  EXPECT_NE(checkpoint.damage_of_hidden(4).find("is damaged"), std::string::npos);
  checkpoint.drop_hidden(4);
  EXPECT_FALSE(checkpoint.has_hidden(4));
  EXPECT_NE(checkpoint.damage_of_hidden(4), "") << "gone is no better";
}

// Too many open files say nothing of a file's bytes.
TEST_F(PassCheckpointTest, WhatCannotBeReadNowIsNotDamaged) {
  keep_window(4);
  const PassCheckpoint checkpoint = open();
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const Error error = error_of([&] { checkpoint.damage_of_hidden(4); });
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(error.kind(), ErrorKind::kResources) << error.what();
  EXPECT_EQ(checkpoint.damage_of_hidden(4), "");
}

TEST_F(PassCheckpointTest, WhatItReplacesIsRoom) {
  keep_window(4);
  const fs::path file = folder_.path() / "checkpoint" / "layers-004.hidden";
  const auto much = static_cast<std::int64_t>(2 * fs::space(folder_.path()).available);
  const PassCheckpoint checkpoint = open();
  const auto wants = [&] { return error_of([&] { checkpoint.require_room(much); }).kind(); };
  EXPECT_EQ(wants(), ErrorKind::kResources);
  std::error_code too_long;
  fs::resize_file(file, static_cast<std::uintmax_t>(much), too_long);  // a hole
  if (too_long) GTEST_SKIP() << "files there are not so long: " << too_long.message();
  EXPECT_NO_THROW(checkpoint.require_room(much));
  fs::rename(file, folder_.path() / "checkpoint" / "somebodys");
  EXPECT_EQ(wants(), ErrorKind::kResources);
}

TEST_F(PassCheckpointTest, WantsRoom) {
  const PassCheckpoint checkpoint = open();
  EXPECT_NO_THROW(checkpoint.require_room(1));
  const Error error = error_of([&] { checkpoint.require_room(std::int64_t{1} << 60); });
  EXPECT_EQ(error.kind(), ErrorKind::kResources);
  EXPECT_NE(std::string(error.what()).find("no room for a checkpoint"), std::string::npos);
}

TEST_F(PassCheckpointTest, TwoJobsAtOnceDoNotShareAFolder) {
  const fs::path folder = folder_.path() / "checkpoint";
  const PassCheckpoint first(folder, kIdentity, 1, kWidth, "rank-0");
  const PassCheckpoint second_rank(folder, kIdentity, 1, kWidth, "rank-1");
  EXPECT_EQ(error_of([&] { PassCheckpoint(folder, kIdentity, 1, kWidth, "rank-0"); }).kind(),
            ErrorKind::kUsage);
}

TEST_F(PassCheckpointTest, HostileFilesAreNoCheckpoints) {
  keep_window(0);
  const fs::path file = folder_.path() / "checkpoint" / "layers-000.hidden";
  std::string bytes;
  {
    std::ifstream in(file, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  for (std::size_t length = 0; length < bytes.size(); length += 13) {
    std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes.substr(0, length);
    EXPECT_FALSE(open().has_hidden(0)) << length;
  }
  for (std::size_t byte = 0; byte < 48; ++byte) {
    std::string altered = bytes;
    altered[byte] = static_cast<char>(altered[byte] ^ 0x40);
    std::ofstream(file, std::ios::binary | std::ios::trunc) << altered;
    EXPECT_FALSE(open().has_hidden(0)) << "byte " << byte;
  }
  for (const std::size_t byte : {std::size_t{48}, std::size_t{64}, bytes.size() - 1}) {
    std::string altered = bytes;
    altered[byte] = static_cast<char>(altered[byte] ^ 0x40);
    std::ofstream(file, std::ios::binary | std::ios::trunc) << altered;
    PassCheckpoint checkpoint = open();
    std::vector<float> values(static_cast<std::size_t>(8 * kWidth));
    const Error error = error_of([&] { checkpoint.restore_hidden(0, batch(0, 8, 8), values); });
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    EXPECT_NE(std::string(error.what()).find("is damaged"), std::string::npos) << error.what();
  }
}

class PassCheckpointKvTest : public PassCheckpointTest,
                             public testing::WithParamInterface<KvType> {};

// A page that two micro-batches write to comes back as the second one left it.
TEST_P(PassCheckpointKvTest, KeysAndValuesComeBack) {
  const KvType type = GetParam();
  ModelSpec spec;
  spec.num_attention_heads = spec.num_key_value_heads = 1;
  spec.head_dim = 4;
  const auto backend = make_cpu_backend({.threads = 1, .isa = {}});
  KvCache kv(spec, type, *backend);
  kv.add_layers(2, 3);
  const MicroBatch first = batch(0, 70, 100), second = batch(70, 30, 100);
  const auto bytes = static_cast<std::size_t>(kv.page_bytes());
  std::vector<std::byte> page0(bytes, std::byte{5}), page1(bytes, std::byte{6}), back(bytes);
  PassCheckpoint checkpoint = open();
  kv.set_page(2, 0, 0, page0);
  kv.set_page(2, 0, 1, page1);
  checkpoint.keep_kv(2, first, kv);
  page1.back() = std::byte{7};
  kv.set_page(2, 0, 1, page1);
  checkpoint.keep_kv(2, second, kv);
  ASSERT_TRUE(checkpoint.has_kv(2));
  kv.drop(0);
  kv.set_page(2, 0, 0, back);
  kv.set_page(2, 0, 1, back);
  PassCheckpoint later = open();
  later.restore_kv(2, first, kv);
  later.restore_kv(2, second, kv);
  kv.get_page(2, 0, 0, back);
  EXPECT_EQ(back, page0);
  kv.get_page(2, 0, 1, back);
  EXPECT_EQ(back, page1);
}

INSTANTIATE_TEST_SUITE_P(Types, PassCheckpointKvTest,
                         testing::Values(KvType::kF32, KvType::kF16, KvType::kQ8));

}  // namespace
}  // namespace stagecoach
