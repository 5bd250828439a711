#include "timeline/clock_offset.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <random>
#include <vector>

#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

TEST(ClockOffset, OfASymmetricPingIsExact) {
  // The other host booted an hour later; 100 µs each way.
  const std::array samples{PingSample{.sent_ns = 5000 * kSecond,
                                      .remote_ns = 1400 * kSecond + 100'000,
                                      .received_ns = 5000 * kSecond + 200'000}};
  const ClockOffset offset = estimate_clock_offset(samples);
  EXPECT_EQ(offset.offset_ns, 3600 * kSecond);
  EXPECT_EQ(offset.uncertainty_ns, 100'000);
  EXPECT_EQ(offset.measured_ns, 5000 * kSecond + 100'000);
}

TEST(ClockOffset, TheFastestPingDecides) {
  const std::array samples{PingSample{0, 900, 1000}, PingSample{2000, 2011, 2020},
                           PingSample{3000, 3001, 3500}};
  const ClockOffset offset = estimate_clock_offset(samples);
  EXPECT_EQ(offset.offset_ns, -1);
  EXPECT_EQ(offset.uncertainty_ns, 10);
  EXPECT_EQ(offset.measured_ns, 2010);
}

TEST(ClockOffset, AnswersBeforeTheQuestionAreIgnored) {
  const std::array samples{PingSample{1000, 500, 900}, PingSample{2000, 1600, 2200}};
  EXPECT_EQ(estimate_clock_offset(samples).offset_ns, 500);
  EXPECT_THROW(estimate_clock_offset(std::span(samples).first(1)), Error);
  EXPECT_THROW(estimate_clock_offset({}), Error);
}

TEST(ClockOffset, TheTruthLiesWithinTheUncertaintyWhateverTheDelays) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 1000; ++trial) {
    const std::int64_t truth =
        static_cast<std::int64_t>(random() % (1000 * kSecond)) - 500 * kSecond;
    std::vector<PingSample> samples;
    std::int64_t now = 600 * kSecond;
    for (int i = 0; i < 8; ++i) {
      const auto there = static_cast<std::int64_t>(random() % 1'000'000);
      const auto back = static_cast<std::int64_t>(random() % 1'000'000);
      samples.push_back({now, now + there - truth, now + there + back});
      now += there + back;
    }
    const ClockOffset offset = estimate_clock_offset(samples);
    EXPECT_LE(std::abs(offset.offset_ns - truth), offset.uncertainty_ns + 1);
  }
}

TEST(ClockMap, RankZeroItselfIsTheIdentity) {
  EXPECT_EQ(ClockMap{}.to_rank0(0), 0);
  EXPECT_EQ(ClockMap{}.to_rank0(123'456'789), 123'456'789);
}

TEST(ClockMap, FollowsADriftingClockBetweenTheMeasurements) {
  // Remote clock: 50 ppm slow, 1000 s behind when rank 0's clock shows 2000 s.
  const auto remote_of = [](std::int64_t rank0_ns) {
    return 1000 * kSecond + (rank0_ns - 2000 * kSecond) - (rank0_ns - 2000 * kSecond) / 20'000;
  };
  const auto measure = [&](std::int64_t at) {
    return ClockOffset{.offset_ns = at - remote_of(at), .uncertainty_ns = 0, .measured_ns = at};
  };
  const ClockMap map{.begin = measure(2000 * kSecond), .end = measure(2400 * kSecond)};
  for (std::int64_t at = 2000 * kSecond; at <= 2400 * kSecond; at += 7 * kSecond)
    EXPECT_LE(std::abs(map.to_rank0(remote_of(at)) - at), 1) << at;
  // Outside: the nearer measurement holds, so that nothing jumps.
  EXPECT_EQ(map.to_rank0(remote_of(2000 * kSecond) - 10), 2000 * kSecond - 10);
  EXPECT_EQ(map.to_rank0(remote_of(2400 * kSecond) + 10), 2400 * kSecond + 10);
}

TEST(ClockMap, NeverTurnsTimeBack) {
  const ClockMap map{
      .begin = {.offset_ns = 1'000'000, .uncertainty_ns = 0, .measured_ns = 1000 * kSecond},
      .end = {.offset_ns = -1'000'000, .uncertainty_ns = 0, .measured_ns = 1010 * kSecond}};
  std::int64_t last = map.to_rank0(990 * kSecond);
  for (std::int64_t at = 990 * kSecond; at < 1020 * kSecond; at += 10'000'019) {
    EXPECT_GE(map.to_rank0(at), last);
    last = map.to_rank0(at);
  }
}

TEST(ClockMap, NoiseBetweenNearbyMeasurementsIsAveragedNotExtrapolated) {
  // 1 ms apart, 40 µs of disagreement: as a rate that would be 4 %.
  const ClockMap map{
      .begin = {.offset_ns = 100'000, .uncertainty_ns = 50'000, .measured_ns = 10 * kSecond},
      .end = {
          .offset_ns = 140'000, .uncertainty_ns = 50'000, .measured_ns = 10 * kSecond + 1'000'000}};
  for (const std::int64_t at :
       {std::int64_t{0}, 10 * kSecond, 10 * kSecond + 500'000, 100 * kSecond})
    EXPECT_EQ(map.to_rank0(at), at + 120'000);
}

TEST(ClockMap, WithoutASecondMeasurementTheFirstHolds) {
  const ClockMap map{.begin = {.offset_ns = -77, .uncertainty_ns = 5, .measured_ns = 10 * kSecond},
                     .end = {}};
  EXPECT_EQ(map.to_rank0(0), -77);
  EXPECT_EQ(map.to_rank0(100 * kSecond), 100 * kSecond - 77);
}

}  // namespace
}  // namespace stagecoach
