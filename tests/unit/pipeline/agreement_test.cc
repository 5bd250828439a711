#include "pipeline/agreement.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <functional>

#include "pipeline/clock_sync.h"
#include "ranks.h"

namespace stagecoach {
namespace {

RankStatus good_status() {
  RankStatus status;
  status.version = "1.2.3";
  status.plan_hash = 11;
  status.model_hash = 22;
  status.slab_checksums = {101, 102, 103, 900, 901};  // three layers, embedding, head
  status.isa = "avx2";
  status.device = "cpu";
  return status;
}

struct Outcome {
  std::vector<std::string> errors, warnings;  // told by rank 0
  std::vector<int> codes;                     // that each rank ends with; 0: goes on
  std::string hint;
};

Outcome agree_among(const std::vector<RankStatus>& statuses) {
  Outcome outcome;
  outcome.codes.resize(statuses.size());
  std::atomic<int> told_elsewhere{0};
  const auto thrown = run_ranks(static_cast<int>(statuses.size()), [&](Transport& transport) {
    ControlChannel control(transport);
    const auto rank = static_cast<std::size_t>(transport.rank());
    const auto tell = [&](std::vector<std::string>& told, const std::string& text) {
      if (rank == 0) {
        told.push_back(text);
      } else {
        ++told_elsewhere;
      }
    };
    try {
      agree(control, statuses[rank],
            {.error = [&](const Error& error) { tell(outcome.errors, error.what()); },
             .warning = [&](const std::string& text) { tell(outcome.warnings, text); }});
    } catch (const AgreedError& error) {
      outcome.codes[rank] = error.exit_code();
      if (rank == 0) outcome.hint = error.hint();
    }
    transport.finalize();
  });
  EXPECT_EQ(told_elsewhere, 0);
  for (const std::exception_ptr& each : thrown) EXPECT_FALSE(each);
  return outcome;
}

// Three ranks, one of them different.
Outcome agree_with_odd_rank(int odd, const std::function<void(RankStatus&)>& change) {
  std::vector<RankStatus> statuses(3, good_status());
  change(statuses[static_cast<std::size_t>(odd)]);
  return agree_among(statuses);
}

void expect_one_error(const Outcome& outcome, int code, const std::string& named) {
  ASSERT_EQ(outcome.errors.size(), 1U);
  EXPECT_NE(outcome.errors[0].find(named), std::string::npos) << outcome.errors[0];
  EXPECT_TRUE(outcome.warnings.empty());
  for (int each : outcome.codes) EXPECT_EQ(each, code);
}

TEST(Agreement, EqualRanksGoOn) {
  for (std::size_t ranks : {1U, 2U, 5U}) {
    const Outcome outcome = agree_among(std::vector<RankStatus>(ranks, good_status()));
    EXPECT_TRUE(outcome.errors.empty());
    EXPECT_TRUE(outcome.warnings.empty());
    EXPECT_EQ(outcome.codes, std::vector<int>(ranks, 0));
  }
}

TEST(Agreement, DifferencesNameTheRankThatDiffers) {
  expect_one_error(agree_with_odd_rank(2, [](RankStatus& s) { s.version = "1.2.4"; }), 3,
                   "rank 2 on ");
  expect_one_error(agree_with_odd_rank(2, [](RankStatus& s) { s.version = "1.2.4"; }), 3,
                   "runs Stagecoach 1.2.4");
  expect_one_error(agree_with_odd_rank(1, [](RankStatus& s) { s.plan_hash = 12; }), 3,
                   "plan or flags");
  expect_one_error(agree_with_odd_rank(1, [](RankStatus& s) { s.model_hash = 12; }), 3,
                   "another model");
  expect_one_error(agree_with_odd_rank(1, [](RankStatus& s) { s.slab_checksums[1] = 12; }), 3,
                   "other weights for layer 1");
  expect_one_error(agree_with_odd_rank(1, [](RankStatus& s) { s.slab_checksums[3] = 12; }), 3,
                   "the embedding");
  expect_one_error(agree_with_odd_rank(1, [](RankStatus& s) { s.slab_checksums[4] = 12; }), 3,
                   "the head");
  expect_one_error(agree_with_odd_rank(2, [](RankStatus& s) { s.slab_checksums.pop_back(); }), 3,
                   "rank 2 on ");
}

TEST(Agreement, SlicesAgreeWhereTheyOverlap) {
  EXPECT_TRUE(agree_with_odd_rank(2, [](RankStatus& s) {
                s.slab_checksums[0] = s.slab_checksums[4] = 0;
              }).errors.empty());
  std::vector<RankStatus> statuses(3, good_status());
  statuses[0].slab_checksums = {101, 0, 0, 900, 0};
  statuses[1].slab_checksums = {0, 102, 103, 0, 0};
  statuses[2].slab_checksums = {0, 0, 666, 0, 901};
  expect_one_error(agree_among(statuses), 3, "other weights for layer 2");
}

TEST(Agreement, AnErrorOfAnyRankIsEverybodys) {
  const auto fail = [](RankStatus& s) {
    s = failed_status(resource_error("the disk is full", "df -h"));
  };
  for (int odd : {0, 1, 2}) {
    const Outcome outcome = agree_with_odd_rank(odd, fail);
    expect_one_error(outcome, 4, "the disk is full");
    EXPECT_EQ(outcome.hint, "df -h");
    EXPECT_EQ(outcome.errors[0].find("rank "), 0U) << outcome.errors[0];
  }
  // The lowest rank's error counts, and errors count before differences.
  std::vector<RankStatus> statuses{good_status(), failed_status(data_error("first")),
                                   failed_status(usage_error("second")), good_status()};
  statuses[3].version = "0";
  expect_one_error(agree_among(statuses), 3, "first");
}

TEST(Agreement, OtherInstructionSetsAreOneWarning) {
  std::vector<RankStatus> statuses(4, good_status());
  statuses[1].isa = statuses[3].isa = "avx512";
  statuses[2].device = "cuda";
  const Outcome outcome = agree_among(statuses);
  EXPECT_TRUE(outcome.errors.empty());
  ASSERT_EQ(outcome.warnings.size(), 1U);
  EXPECT_NE(outcome.warnings[0].find("rank 1 on "), std::string::npos) << outcome.warnings[0];
  EXPECT_NE(outcome.warnings[0].find("avx512"), std::string::npos) << outcome.warnings[0];
  EXPECT_EQ(outcome.codes, std::vector<int>(4, 0));
}

TEST(Agreement, WhatRankZeroAloneHasMetIsNamed) {
  std::vector<RankStatus> statuses(3, good_status());
  statuses[0] = failed_status(resource_error("its GPU is gone"));
  const Outcome one = agree_among(statuses);
  ASSERT_EQ(one.errors.size(), 1U);
  EXPECT_EQ(one.errors[0].find("rank 0 on "), 0U) << one.errors[0];
  EXPECT_EQ(agree_among(std::vector<RankStatus>(3, statuses[0])).errors,
            std::vector<std::string>{"its GPU is gone"});
}

TEST(Agreement, ASingleRankNamesNoHost) {
  const Outcome outcome = agree_among({failed_status(usage_error("no such flag"))});
  EXPECT_EQ(outcome.errors, std::vector<std::string>{"no such flag"});
}

TEST(ControlChannelTest, MessagesWaitForTheirTurn) {
  auto transports = make_loopback(3);
  ControlChannel zero(*transports[0]);
  const auto send = [&](int from, int value) {
    transports[static_cast<std::size_t>(from)]->send(0, Channel::kControl,
                                                     {static_cast<std::byte>(value)});
  };
  for (int i = 0; i < 3; ++i) send(2, 20 + i);
  for (int i = 0; i < 3; ++i) send(1, 10 + i);
  const auto next = [&](int from) { return std::to_integer<int>(zero.receive_from(from).at(0)); };
  EXPECT_EQ(next(1), 10);
  EXPECT_EQ(next(2), 20);
  EXPECT_EQ(next(2), 21);
  EXPECT_EQ(next(1), 11);
  EXPECT_EQ(next(1), 12);
  EXPECT_EQ(next(2), 22);
}

TEST(ControlChannelTest, ALostPeerEndsTheWait) {
  auto transports = make_loopback(2);
  ControlChannel zero(*transports[0]);
  transports[1].reset();
  try {
    zero.receive_from(1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kPeerLost);
  }
}

TEST(ClockSync, ThreadsOfOneHostShareTheirClock) {
  std::vector<ClockOffset> offsets;
  std::vector<RankTimeline> all;
  const auto thrown = run_ranks(3, [&](Transport& transport) {
    ControlChannel control(transport);
    Timeline timeline;
    for (int i = 0; i <= transport.rank(); ++i)
      timeline.record({.kind = SpanKind::kMlp,
                       .layer = transport.rank(),
                       .begin_ns = now_ns(),
                       .end_ns = now_ns()});
    const auto begin = measure_clocks(control);
    const auto end = measure_clocks(control);
    const auto gathered = gather_timelines(control, timeline,
                                           {.layers = "0:1",
                                            .isa = "avx2",
                                            .device = {},
                                            .inputs = "f32",
                                            .threads = transport.rank() + 1},
                                           begin, end);
    EXPECT_EQ(timeline.size(), 0U);
    if (transport.rank() == 0) {
      offsets = begin;
      all = gathered;
    } else {
      EXPECT_TRUE(begin.empty());
      EXPECT_TRUE(gathered.empty());
    }
  });
  for (const auto& each : thrown) EXPECT_FALSE(each);
  ASSERT_EQ(offsets.size(), 3U);
  EXPECT_EQ(offsets[0].offset_ns, 0);
  for (const ClockOffset& offset : offsets)
    EXPECT_LE(std::abs(offset.offset_ns), offset.uncertainty_ns);
  ASSERT_EQ(all.size(), 3U);
  for (std::size_t r = 0; r < 3; ++r) {
    EXPECT_EQ(all[r].rank, static_cast<int>(r));
    EXPECT_EQ(all[r].usage.threads, static_cast<std::int64_t>(r) + 1);
    EXPECT_EQ(all[r].usage.isa, "avx2");
    ASSERT_EQ(all[r].spans.size(), r + 1);
    EXPECT_EQ(all[r].spans[0].layer, static_cast<std::int32_t>(r));
  }
}

}  // namespace
}  // namespace stagecoach
