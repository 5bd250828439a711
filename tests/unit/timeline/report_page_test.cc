#include "timeline/page/report_page.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "spans.h"
#include "timeline/page/gantt.h"
#include "timeline/page/html.h"
#include "timeline/phase_results.h"
#include "timeline/run_summary.h"

namespace stagecoach {
namespace {

using enum SpanKind;

constexpr const char* kHostile = "</script><script>alert('x')</script>\"&\x01\xff";

std::vector<RankTimeline> run_of(int passes) {
  RankBuilder zero(0, kHostile), one(1, "b");
  for (int pass = 0; pass < passes; ++pass) {
    const std::int64_t t = 1000 + 500 * pass;
    zero.label(Phase::kDecode, pass, pass)
        .add(kAttention, t, t + 60, 0)
        .add(kMlp, t + 60, t + 100, 0)
        .add(kSend, t + 100, t + 101, -1, 4096);
    one.label(Phase::kDecode, pass, pass)
        .add(kIdle, t, t + 150, -1, 4096)
        .add(kAttention, t + 150, t + 250, 1)
        .add(kMlp, t + 250, t + 400, 1);
  }
  one.label(Phase::kNone, 0, -1).add(kRead, 0, 700, 1, 1 << 20).add(kRead, 500, 900, 1, 1 << 20);
  return {zero, one};
}

RunInfo info_of(const std::vector<RankTimeline>& ranks) {
  RunInfo info;
  info.command = "time";
  info.work = kHostile;
  info.model = kHostile;
  info.weights = "f16";
  info.layer_end = info.model_layers = info.distinct_layers = 2;
  info.tokens_per_second = 12.5;
  info.phases = phase_results(ranks);
  return info;
}

std::string page_of(const std::vector<RankTimeline>& ranks) {
  return report_page(run_summary(info_of(ranks), ranks), layer_rows(ranks), ranks);
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++found;
  return found;
}

TEST(Html, EscapesWhateverItIsGiven) {
  EXPECT_EQ(html_escape("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&#39;");
  EXPECT_EQ(html_escape("\x01\x7f\xff é\n"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD é\n");
}

TEST(Html, DurationsHaveThreeDigitsAndAUnit) {
  EXPECT_EQ(format_duration(std::int64_t{0}), "0 ns");
  EXPECT_EQ(format_duration(std::int64_t{999}), "999 ns");
  EXPECT_EQ(format_duration(std::int64_t{1'234}), "1.23 µs");
  EXPECT_EQ(format_duration(std::int64_t{99'960'000}), "100 ms");
  EXPECT_EQ(format_ms(12.345), "12.3 ms");
  EXPECT_EQ(format_ms(90'000), "1.50 min");
}

TEST(ReportPage, HostileNamesStayText) {
  const std::string page = page_of(run_of(3));
  EXPECT_EQ(count(page, "<script"), 1u);
  EXPECT_EQ(count(page, "</script"), 1u);
  EXPECT_EQ(count(page, "alert('x')"), 0u);
  EXPECT_GE(count(page, "&lt;/script&gt;"), 4u);  // title, heading, work, host
}

TEST(ReportPage, SaysWhatIsNotKnownAndLoadsNothing) {
  const std::string page = page_of(run_of(3));
  EXPECT_GE(count(page, "not probed"), 2u);
  for (const char* foreign : {"http://", "https://", "src=", "@import", "url("})
    EXPECT_EQ(count(page, foreign), 0u) << foreign;
  EXPECT_GE(count(page, "12.3 kB"), 1u);  // 3 messages of 4096 bytes
  EXPECT_GE(count(page, "12.5"), 1u);
  EXPECT_GE(count(page, "waiting for rank 0&#39;s messages"), 1u);
}

TEST(ReportPage, OfNothingIsStillAPage) {
  const std::string page = report_page({}, {}, {});
  EXPECT_GE(count(page, "</html>"), 1u);
  EXPECT_GE(count(page, "Nothing was recorded"), 1u);
}

TEST(ReportPage, ALongRunIsMergedAndSaysSo) {
  const std::vector<RankTimeline> ranks = run_of(20'000);
  const std::string page = page_of(ranks);
  EXPECT_LT(page.size(), std::size_t{2} << 20);
  EXPECT_GE(count(page, "merged into 600 slices"), 1u);
  EXPECT_GE(count(page, "every one of this stretch"), 1u);  // a single pass is not merged
}

TEST(Gantt, SlicesShareTheTimeAndAreNeverOverfull) {
  const TimeRange range{.begin_ns = 0, .end_ns = 1'000'000};
  const std::vector<GanttRow> rows = gantt_rows({RankBuilder(3, "a")
                                                     .add(kMlp, 0, 250, 0)
                                                     .add(kIdle, 250, 600)
                                                     .add(kRead, 0, 100)
                                                     .add(kRead, 0, 100)},
                                                range);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_FALSE(rows[0].reads);
  EXPECT_TRUE(rows[1].reads);
  const SlicedRow main = slice_row(rows[0], range, 2), reads = slice_row(rows[1], range, 2);
  const auto share = [](const SlicedRow& row, std::size_t slice, Activity activity) {
    return row.slices[slice].share[static_cast<std::size_t>(activity)];
  };
  EXPECT_DOUBLE_EQ(share(main, 0, Activity::kMlp), 0.5);
  EXPECT_DOUBLE_EQ(share(main, 0, Activity::kWait), 0.5);
  EXPECT_DOUBLE_EQ(share(main, 1, Activity::kWait), 0.2);
  EXPECT_DOUBLE_EQ(share(reads, 0, Activity::kRead), 0.2);  // two reads at once
}

TEST(Gantt, ShowsTheMedianPass) {
  const std::vector<RankTimeline> ranks{RankBuilder(0, "a")
                                            .label(Phase::kDecode, -1, 0)
                                            .add(kMlp, 0, 5000, 0)
                                            .label(Phase::kDecode, 0, 1)
                                            .add(kMlp, 5000, 5900, 0)
                                            .label(Phase::kDecode, 1, 2)
                                            .add(kMlp, 6000, 6100, 0)
                                            .label(Phase::kDecode, 2, 3)
                                            .add(kMlp, 7000, 7200, 0)};
  const PassRange pass = median_pass(ranks, Phase::kDecode);
  EXPECT_EQ(pass.pass, 2);
  EXPECT_EQ(pass.passes, 3);
  EXPECT_EQ(pass.range.begin_ns, 7'000'000);
  EXPECT_EQ(pass.range.end_ns, 7'200'000);
  EXPECT_EQ(median_pass(ranks, Phase::kPrefill).passes, 0);
}

TEST(PhaseResults, TokensOverTheTimeInWhichAPassIsUnderWay) {
  // Two passes that overlap, 0-100 and 50-150 µs, of 8 tokens each.
  const std::vector<RankTimeline> ranks{
      RankBuilder(0, "a")
          .label(Phase::kDecode, 0, 0)
          .add(kAttention, 0, 100, 0)
          .add(kMlp, 0, 100, 0),
      RankBuilder(1, "b").label(Phase::kDecode, 1, 1).add(kAttention, 50, 150, 0)};
  const std::vector<PhaseResult> results = phase_results(ranks);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].passes, 2);
  EXPECT_EQ(results[0].tokens, 8);
  EXPECT_DOUBLE_EQ(results[0].ms, 0.1);
  EXPECT_DOUBLE_EQ(results[0].tokens_per_second, 16 / 150e-6);
}

TEST(RunJson, ReadsBackWhatItWrote) {
  std::vector<RankTimeline> ranks = run_of(3);
  ranks[0].host = "pc-a";
  ranks[0].usage = {.layers = "0:1",
                    .isa = "avx2",
                    .device = "GPU 0 (A)",
                    .inputs = "f32",
                    .threads = 4,
                    .weights_bytes = 1000,
                    .kv_bytes = 200,
                    .device_weights_bytes = 700,
                    .device_kv_bytes = 60,
                    .peak_bytes = 5000};
  ranks[0].spans.push_back(ranks[0].spans.back());
  ranks[0].spans.back().kind = SpanKind::kCopy;
  RunInfo info = info_of(ranks);
  info.model = "m";
  info.work = "w";
  const std::string text = run_json(run_summary(info, ranks));
  const RunSummary read = parse_run_json(text, "run.json");
  EXPECT_EQ(run_json(read), text);
  EXPECT_EQ(read.info.ranks, 2);
  EXPECT_EQ(read.ranks[0].usage.peak_bytes, 5000);
  EXPECT_EQ(read.ranks[0].usage.device, "GPU 0 (A)");
  EXPECT_EQ(read.ranks[0].usage.device_weights_bytes, 700);
  EXPECT_EQ(read.ranks[0].usage.device_kv_bytes, 60);
  EXPECT_EQ(read.ranks[0].sent_bytes, 3 * 4096);
  EXPECT_EQ(read.ranks[1].received_bytes, 3 * 4096);
  EXPECT_EQ(read.ranks[1].read_bytes, 2 << 20);
  EXPECT_DOUBLE_EQ(read.info.phases.at(0).ms, 0.4);
  ASSERT_EQ(read.splits.size(), 1u);
  EXPECT_EQ(read.splits[0].critical_path, describe(critical_paths(ranks).at(0)));
  ASSERT_EQ(read.splits[0].ranks.size(), 2u);
  EXPECT_EQ(read.splits[0].ranks[1].mostly_for, 0);
  EXPECT_FALSE(read.splits[0].ranks[1].share_of_disk);
  EXPECT_GT(read.splits[0].ranks[0].bus_ms, 0);
  EXPECT_EQ(read.splits[0].ranks[1].bus_ms, 0);
}

TEST(RunJson, OfVersionOneIsReadWithoutASplit) {
  std::vector<RankTimeline> ranks = run_of(1);
  RunInfo info = info_of(ranks);
  info.model = info.work = "m";
  Json json = parse_json(run_json(run_summary(info, ranks)), "run.json");
  json["version"] = 1;
  json.erase("kv");
  for (Json& rank : json["ranks"])
    for (const char* key : {"inputs", "device", "device_weights_bytes", "device_kv_bytes"})
      rank.erase(key);
  EXPECT_THROW(parse_run_json(json.dump(-1, ' ', true, Json::error_handler_t::replace), "run.json"),
               Error);  // it had none
  json.erase("splits");
  const RunSummary read =
      parse_run_json(json.dump(-1, ' ', true, Json::error_handler_t::replace), "run.json");
  EXPECT_TRUE(read.splits.empty());
  EXPECT_EQ(read.ranks.size(), 2u);
}

TEST(RunJson, RefusesOtherVersionsAndNonsense) {
  const std::vector<RankTimeline> ranks = run_of(1);
  RunInfo info = info_of(ranks);
  info.model = info.work = "m";
  const std::string good = run_json(run_summary(info, ranks));
  const auto refuses = [&](const std::string& from, const std::string& to, const char* word) {
    std::string bad = good;
    ASSERT_NE(bad.find(from), std::string::npos) << from;
    bad.replace(bad.find(from), from.size(), to);
    try {
      parse_run_json(bad, "run.json");
      ADD_FAILURE() << to;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  refuses("\"version\": 4", "\"version\": 5", "expected version 1 to 4, found 5");
  refuses("\"busy\"", "\"bussy\"", "bussy");
  refuses("\"disk_ms\": 0.0", "\"disk_ms\": -1", "disk_ms");
  refuses("stagecoach-run", "other", "stagecoach-run");
  refuses("\"decode\"", "\"dream\"", "dream");
  refuses("\"passes\": 1", "\"passes\": -1", "passes");
  refuses("\"tokens_per_second\": 12.5", "\"tokens_per_second\": -1", "tokens_per_second");
  refuses("\"command\": \"time\"", "\"command\": 3", "command");
  refuses("\"wire\"", "\"wires\"", "wire");
}

}  // namespace
}  // namespace stagecoach
