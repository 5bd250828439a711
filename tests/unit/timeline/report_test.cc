#include "timeline/report.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

LayerRow make_row(std::int64_t layer, int rank, double ms) {
  LayerRow row;
  row.layer = layer;
  row.rank = rank;
  row.host = "pc-" + std::to_string(rank);
  row.phase = Phase::kPrefill;
  row.ms = ms;
  row.compute_ms = ms / 3;
  row.bytes = 123'456'789;
  row.flops = 987'654'321;
  row.passes = 1;
  return row;
}

// 96 layers over `ranks`, both phases, one slow layer.
std::vector<LayerRow> long_model(int ranks) {
  std::vector<LayerRow> rows;
  for (int layer = 0; layer < 96; ++layer)
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
      LayerRow row = make_row(layer, layer * ranks / 96, layer == 41 ? 777 : 10 + layer % 7);
      row.phase = phase;
      rows.push_back(row);
    }
  return rows;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

TEST(LayerTable, ShowsAllLayersOfAShortModel) {
  std::vector<LayerRow> rows;
  for (int layer = 0; layer < 8; ++layer) rows.push_back(make_row(layer, layer / 4, 1.5 + layer));
  rows[3].share_of_limit = 0.42;
  const std::vector<std::string> lines = lines_of(format_layer_table(rows));
  ASSERT_EQ(lines.size(), 1u + 8 + 1 + 2);
  EXPECT_NE(lines[4].find("42 %"), std::string::npos);
  EXPECT_NE(lines[4].find("4.500"), std::string::npos);
  EXPECT_NE(lines[10].find("12.000"), std::string::npos);  // rank 0: 1.5 + 2.5 + 3.5 + 4.5
  EXPECT_NE(lines[11].find("pc-1"), std::string::npos);
}

// Ranks with devices of one kind each say so elsewhere.
TEST(LayerTable, NamesTheDeviceWhereARankHasTwo) {
  std::vector<LayerRow> rows{make_row(0, 0, 1), make_row(1, 0, 1), make_row(2, 1, 1)};
  rows[0].device = rows[1].device = "cuda";
  rows[2].device = "cpu";
  EXPECT_EQ(format_layer_table(rows).find("cuda"), std::string::npos);
  rows[1].device = "cpu";
  rows[1].host = "a-host-of-a-long-name";
  const std::vector<std::string> lines = lines_of(format_layer_table(rows));
  EXPECT_TRUE(lines[1].ends_with(" cuda"));
  EXPECT_TRUE(lines[2].ends_with(" cpu"));
  for (const std::string& line : lines) EXPECT_LE(line.size(), 120u);
}

TEST(LayerTable, CopiesHaveAColumnWhereTheJobHasAGpu) {
  std::vector<LayerRow> rows{make_row(0, 0, 1), make_row(1, 0, 1)};
  EXPECT_EQ(format_layer_table(rows).find("copy"), std::string::npos);
  rows[0].device = rows[1].device = "cuda";
  rows[0].copy_ms = 4.25;
  rows[1].copy_ms = 0.5;
  const std::vector<std::string> lines = lines_of(format_layer_table(rows));
  EXPECT_NE(lines[0].find("    copy "), std::string::npos);
  EXPECT_NE(lines[1].find("   4.250 "), std::string::npos);
  EXPECT_NE(lines.back().find("   4.750 "), std::string::npos);  // the rank's sum
}

TEST(LayerTable, TotalsWeighTheSharesByComputeTime) {
  std::vector<LayerRow> rows{make_row(0, 0, 1), make_row(1, 0, 1)};
  rows[0].compute_ms = 1;
  rows[0].share_of_limit = 0.25;
  rows[1].compute_ms = 3;
  EXPECT_EQ(lines_of(format_layer_table(rows)).back().find('%'), std::string::npos);
  rows[1].share_of_limit = 0.65;
  EXPECT_NE(lines_of(format_layer_table(rows)).back().find("55 %"), std::string::npos);
}

TEST(LayerTable, NeverExceedsFortyLinesAndKeepsTheExtremes) {
  for (const int ranks : {1, 2, 4, 8, 48, 96}) {
    const std::vector<std::string> lines = lines_of(format_layer_table(long_model(ranks)));
    EXPECT_LE(lines.size(), 40u) << ranks;
    EXPECT_GE(lines.size(), 38u) << ranks;
    EXPECT_TRUE(std::any_of(lines.begin(), lines.end(), [](const std::string& line) {
      return line.find(" 777.000") != std::string::npos && line.rfind("    41", 0) == 0;
    })) << ranks;
    for (const std::string& line : lines) EXPECT_LE(line.size(), 120u);
  }
  const std::vector<std::string> four = lines_of(format_layer_table(long_model(4)));
  for (const char* layer : {"     0", "    23", "    24", "    95"})
    EXPECT_TRUE(std::any_of(four.begin(), four.end(), [&](const std::string& l) {
      return l.rfind(layer, 0) == 0;
    })) << layer;
}

TEST(LayerTable, NothingToShow) {
  EXPECT_EQ(format_layer_table({}), "");
}

TEST(LayersCsv, HasTheDocumentedColumns) {
  EXPECT_EQ(layers_csv({}),
            "layer,rank,host,phase,ms,read_ms,wait_ms,compute_ms,bytes,flops,gb_per_s,gflop_per_s,"
            "share_of_limit\n");
}

TEST(LayersCsv, FloatsReadBackExactly) {
  LayerRow row = make_row(7, 2, 0.1 + 0.2);
  row.share_of_limit = 1.0 / 3;
  row.device = "cuda";
  row.copy_ms = 0.1 + 0.7;
  std::vector<std::string> fields;
  std::istringstream line(lines_of(layers_csv({row})).at(1));
  for (std::string field; std::getline(line, field, ',');) fields.push_back(field);
  ASSERT_EQ(fields.size(), 15u);
  EXPECT_EQ(fields[0], "7");
  EXPECT_EQ(fields[1], "2");
  EXPECT_EQ(fields[2], "pc-2");
  EXPECT_EQ(fields[3], "prefill");
  EXPECT_EQ(std::stod(fields[4]), row.ms);
  EXPECT_EQ(std::stod(fields[7]), row.compute_ms);
  EXPECT_EQ(fields[8], "123456789");
  EXPECT_EQ(std::stod(fields[10]), row.gb_per_s());
  EXPECT_EQ(std::stod(fields[11]), row.gflop_per_s());
  EXPECT_EQ(std::stod(fields[12]), *row.share_of_limit);
  EXPECT_EQ(fields[13], "cuda");
  EXPECT_EQ(std::stod(fields[14]), row.copy_ms);
}

TEST(LayersCsv, QuotesHostsAndLeavesAnUnknownShareEmpty) {
  LayerRow row = make_row(0, 0, 1);
  row.host = "a \"big\", odd\nhost";
  const std::string csv = layers_csv({row});
  EXPECT_NE(csv.find("\n0,0,\"a \"\"big\"\", odd\nhost\",prefill,1,"), std::string::npos) << csv;
  EXPECT_EQ(csv.substr(csv.size() - 2), ",\n");
}

TEST(LayerRowJson, HasTheSameColumnsInTheSameOrder) {
  LayerRow row = make_row(5, 1, 0.1 + 0.2);
  row.host = "a\"b\xff";
  const std::string text = layer_row_json(row);
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const auto json = nlohmann::ordered_json::parse(text);
  std::string header;
  for (const auto& [key, value] : json.items()) header += (header.empty() ? "" : ",") + key;
  EXPECT_EQ(header + "\n", layers_csv({}));
  EXPECT_EQ(json["ms"].get<double>(), row.ms);
  EXPECT_EQ(json["layer"], 5);
  EXPECT_EQ(json["phase"], "prefill");
  EXPECT_TRUE(json["share_of_limit"].is_null());
  row.share_of_limit = 0.5;
  EXPECT_EQ(nlohmann::json::parse(layer_row_json(row))["share_of_limit"], 0.5);
}

std::vector<RankTimeline> two_ranks() {
  RankTimeline zero{.rank = 0, .host = "pc-a", .clock = {}, .spans = {}};
  zero.spans = {
      {.kind = SpanKind::kAttention,
       .phase = Phase::kPrefill,
       .layer = 3,
       .micro_batch = 1,
       .bytes = 2000,
       .flops = 500,
       .tokens = 8,
       .begin_ns = 1'000'001'500,
       .end_ns = 1'000'002'500},
      {.kind = SpanKind::kSend,
       .phase = Phase::kPrefill,
       .micro_batch = 1,
       .bytes = 64,
       .begin_ns = 1'000'003'000,
       .end_ns = 1'000'004'000},
  };
  // Its clock is 999 s ahead of rank 0's.
  RankTimeline one{.rank = 1, .host = "pc \"b\"", .clock = {}, .spans = {}};
  one.clock.begin = {.offset_ns = -999'000'000'000, .uncertainty_ns = 0, .measured_ns = 1};
  const std::int64_t base = 1'000'000'000'000;
  one.spans = {
      {.kind = SpanKind::kRead,
       .layer = 4,
       .bytes = 100,
       .begin_ns = base + 1000,
       .end_ns = base + 3000},
      {.kind = SpanKind::kRead,
       .layer = 5,
       .bytes = 100,
       .begin_ns = base + 2000,
       .end_ns = base + 4000},
      {.kind = SpanKind::kRead,
       .layer = 6,
       .bytes = 100,
       .begin_ns = base + 3000,
       .end_ns = base + 5000},
  };
  return {zero, one};
}

TEST(Trace, IsStrictJsonWithProcessesAndLanes) {
  const Json trace = parse_json(trace_json({}, two_ranks()), "trace");
  std::map<std::int64_t, std::string> processes;
  std::map<std::pair<std::int64_t, std::int64_t>, std::string> threads;
  for (const Json& e : trace["traceEvents"]) {
    if (e["ph"] != "M") continue;
    if (e["name"] == "process_name")
      processes[e["pid"].get<std::int64_t>()] = e["args"]["name"].get<std::string>();
    if (e["name"] == "thread_name")
      threads[{e["pid"].get<std::int64_t>(), e["tid"].get<std::int64_t>()}] =
          e["args"]["name"].get<std::string>();
  }
  EXPECT_EQ(processes[0], "rank 0 on pc-a");
  EXPECT_EQ(processes[1], "rank 1 on pc \"b\"");
  EXPECT_EQ((threads[{0, 1}]), "compute");
  EXPECT_EQ((threads[{0, 3}]), "network");
  EXPECT_EQ((threads[{1, 2}]), "disk");
  EXPECT_EQ((threads[{1, 12}]), "disk 2");  // two reads at once, never three
  EXPECT_EQ(threads.size(), 4u);
}

TEST(Trace, TimesAreMicrosecondsOfRankZerosClock) {
  const Json trace = parse_json(trace_json({}, two_ranks()), "trace");
  std::map<std::string, Json> events;
  for (const Json& e : trace["traceEvents"])
    if (e["ph"] == "X") events[e["name"].get<std::string>()] = e;
  ASSERT_EQ(events.size(), 5u);
  // The first span of all is rank 1's read at 1 000 001 000 ns of rank 0's clock.
  EXPECT_EQ(trace["otherData"]["origin_ns"], 1'000'001'000);
  EXPECT_EQ(events["read 4"]["ts"], 0.0);
  EXPECT_EQ(events["attention 3"]["ts"], 0.5);
  EXPECT_EQ(events["attention 3"]["dur"], 1.0);
  EXPECT_EQ(events["send"]["ts"], 2.0);
  EXPECT_EQ(events["read 5"]["tid"], 12);
  EXPECT_EQ(events["read 6"]["tid"], 2);

  const Json& args = events["attention 3"]["args"];
  EXPECT_EQ(args["layer"], 3);
  EXPECT_EQ(args["micro_batch"], 1);
  EXPECT_EQ(args["bytes"], 2000);
  EXPECT_EQ(args["GB/s"], 2.0);
  EXPECT_EQ(args["GFLOP/s"], 0.5);
  EXPECT_FALSE(events["read 4"]["args"].contains("micro_batch"));
}

TEST(Trace, SaysThatLayersShareSlabs) {
  RunInfo info;
  info.model = "m \"x\"";
  info.model_layers = info.distinct_layers = 4;
  EXPECT_FALSE(parse_json(trace_json(info, two_ranks()), "trace")["otherData"].contains("note"));
  info.distinct_layers = 2;
  const Json about = parse_json(trace_json(info, two_ranks()), "trace")["otherData"];
  EXPECT_EQ(about["model"], "m \"x\"");
  EXPECT_EQ(about["distinct_layers"], 2);
  EXPECT_NE(about["note"].get<std::string>().find("4 layers share 2 slabs"), std::string::npos);
  EXPECT_EQ(about["origin_ns"], 1'000'001'000);
}

TEST(Trace, OfNothingIsStillATrace) {
  EXPECT_TRUE(parse_json(trace_json({}, {}), "trace")["traceEvents"].empty());
}

TEST(WriteReport, CreatesTheFolderAndItsFiles) {
  std::string name = (fs::temp_directory_path() / "stagecoach-report-test-XXXXXX").string();
  ASSERT_NE(::mkdtemp(name.data()), nullptr);
  const fs::path root(name);
  write_report(root / "new" / "report", {}, two_ranks());
  const std::string csv = read_text_file(root / "new/report/layers.csv", 1 << 20);
  EXPECT_EQ(csv, layers_csv(layer_rows(two_ranks())));
  EXPECT_EQ(lines_of(csv).size(), 2u);
  EXPECT_EQ(read_text_file(root / "new/report/trace.json", 1 << 20), trace_json({}, two_ranks()));
  EXPECT_TRUE(fs::exists(root / "new/report/run.json"));
  EXPECT_TRUE(fs::exists(root / "new/report/report.html"));
  EXPECT_EQ(std::distance(fs::directory_iterator(root / "new/report"), fs::directory_iterator()),
            4);

  std::ofstream(root / "file") << "x";
  fs::create_directories(root / "taken" / "layers.csv");
  for (const char* bad : {"file", "file/report", "taken"}) {
    try {
      write_report(root / bad, {}, two_ranks());
      ADD_FAILURE() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kResources) << bad << ": " << e.what();
    }
  }
  fs::remove_all(root);
}

}  // namespace
}  // namespace stagecoach
