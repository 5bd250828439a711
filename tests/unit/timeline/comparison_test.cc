#include "timeline/comparison.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "timeline/saved_report.h"

namespace stagecoach {
namespace {

SavedReport report_of(const std::string& name, double decode_ms, double slow_layer_ms) {
  SavedReport report;
  report.name = name;
  report.run.info.command = "time";
  report.run.info.model = "m";
  report.run.info.weights = "f16";
  report.run.info.ranks = 2;
  report.run.info.phases = {{.phase = Phase::kDecode,
                             .passes = 5,
                             .tokens = 4,
                             .ms = decode_ms,
                             .ms_q1 = decode_ms,
                             .ms_q3 = decode_ms,
                             .tokens_per_second = 4000 / decode_ms}};
  for (int layer = 0; layer < 3; ++layer) {
    LayerRow row;
    row.layer = layer;
    row.phase = Phase::kDecode;
    row.ms = layer == 1 ? slow_layer_ms : 2;
    row.rank = layer / 2;
    row.host = "pc";
    report.rows.push_back(row);
  }
  return report;
}

TEST(LayersCsv, ReadsBackWhatItWrote) {
  std::vector<LayerRow> rows = report_of("a", 10, 3).rows;
  rows[0].host = "a \"big\",\nodd host";
  rows[1].share_of_limit = 0.25;
  rows[2].compute_ms = 0.1 + 0.2;
  rows[2].bytes = 123;
  const std::string csv = layers_csv(rows);
  EXPECT_EQ(layers_csv(parse_layers_csv(csv, "layers.csv")), csv);
  EXPECT_TRUE(parse_layers_csv(layers_csv({}), "layers.csv").empty());
}

TEST(LayersCsv, IsRefusedByLine) {
  const std::string header = layers_csv({});
  const std::string good = "0,0,pc,decode,1,0,0,1,10,20,0.1,0.2,\n";
  EXPECT_EQ(parse_layers_csv(header + good, "f").size(), 1u);
  EXPECT_EQ(parse_layers_csv(header + good, "f")[0].device, "");
  const auto refuses = [&](const std::string& text, const std::string& where, const char* word) {
    try {
      parse_layers_csv(text, "f");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      EXPECT_EQ(std::string(error.what()).rfind(where, 0), 0u) << error.what();
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  refuses("", "f:1: ", "columns");
  refuses("layer,rank\n", "f:1: ", "another version");
  refuses(header.substr(0, header.size() - 1) + ",more\n" + good, "f:1: ", "more");
  refuses(header + good + good.substr(0, 20), "f:3: ", "cut off");
  refuses(header + good.substr(0, 20) + "\n", "f:2: ", "13 fields");
  for (const char* bad : {"x", "-1", "nan", "inf", "1 ", "", "1e999"})
    refuses(header + "0,0,pc,decode," + bad + ",0,0,1,10,20,0.1,0.2,\n", "f:2: ", "ms: expected");
  refuses(header + "0.5" + good.substr(1), "f:2: ", "layer");
  refuses(header + "0,0,pc,dream" + good.substr(13), "f:2: ", "prefill or decode");
  refuses(header + "0,0,\"a\nb\",decode,1,0,0,1,10,20,0.1,0.2,\n" + "oops\n", "f:4: ", "fields");
  refuses(header + "0,0,\"a", "f:2: ", "no end");
  refuses(header + "0,0,\"a\"b,decode,1,0,0,1,10,20,0.1,0.2,\n", "f:2: ", "comma");
}

TEST(LayersCsv, NamesTheDeviceWhereAJobHasAGpu) {
  std::vector<LayerRow> rows = report_of("a", 10, 2).rows;
  rows.resize(2);
  rows[0].device = "cuda";
  rows[1].device = "cpu";
  rows[0].copy_ms = 0.3;
  const std::string csv = layers_csv(rows), header = layers_csv({});
  const std::string columns = header.substr(0, header.size() - 1);
  EXPECT_EQ(csv.rfind(columns + ",device,copy_ms\n", 0), 0u) << csv;
  const auto read = parse_layers_csv(csv, "f");
  ASSERT_EQ(read.size(), 2u);
  EXPECT_EQ(read[0].device, "cuda");
  EXPECT_EQ(read[1].device, "cpu");
  EXPECT_DOUBLE_EQ(read[0].copy_ms, 0.3);
  // As it was written before copies had a column.
  const auto old =
      parse_layers_csv(columns + ",device\n0,0,pc,decode,1,0,0,1,10,20,0.1,0.2,,cuda\n", "f");
  ASSERT_EQ(old.size(), 1u);
  EXPECT_EQ(old[0].device, "cuda");
}

TEST(Comparison, SaysWhereTheDifferenceIs) {
  const SavedReport base = report_of("a", 10, 3), slower = report_of("b", 20, 12);
  EXPECT_EQ(biggest_difference(base, slower),
            "decode is 2.00 times as slow (20.0 ms instead of 10.0 ms a pass); most in layer 1: "
            "12.0 ms instead of 3.00 ms");
  EXPECT_NE(biggest_difference(slower, base).find("2.00 times as fast"), std::string::npos);
  EXPECT_EQ(biggest_difference(base, base), "as fast, within 2 %");
  SavedReport prefill = base;
  prefill.run.info.phases[0].phase = Phase::kPrefill;
  EXPECT_EQ(biggest_difference(base, prefill), "no phase in common");
  SavedReport longer = slower;
  longer.run.info.phases[0].tokens = 16;
  longer.run.info.phases[0].tokens_per_second = 800;
  EXPECT_EQ(biggest_difference(base, longer),
            "decode is 2.00 times as fast (800 tokens/s instead of 400; passes of 16 tokens "
            "instead of 4)");
}

TEST(Comparison, SaysThatLayersShareSlabs) {
  SavedReport shared = report_of("s", 10, 3);
  shared.run.info.model_layers = 3;
  shared.run.info.distinct_layers = 1;
  const std::vector<SavedReport> reports{report_of("a", 10, 3), shared};
  EXPECT_NE(comparison_table(reports).find("s: the store's 3 layers share 1 slabs"),
            std::string::npos);
  EXPECT_EQ(comparison_json(reports)[1]["distinct_layers"], 1);
  EXPECT_NE(comparison_page(reports).find("3 layers share 1 slabs"), std::string::npos);
  EXPECT_TRUE(note_of(reports[0]).empty());
}

TEST(Comparison, TableJsonAndPageHoldTheSameFigures) {
  const std::vector<SavedReport> reports{report_of("a", 10, 3), report_of("<b>&", 20, 12)};
  const std::string table = comparison_table(reports);
  EXPECT_NE(table.find("<b>& against a: decode is 2.00 times as slow"), std::string::npos) << table;
  EXPECT_NE(table.find(" 400 "), std::string::npos) << table;
  const auto objects = comparison_json(reports);
  ASSERT_EQ(objects.size(), 2u);
  EXPECT_EQ(objects[0]["decode"]["ms"], 10.0);
  EXPECT_EQ(objects[0]["decode"]["layer_ms"], 2.0);
  EXPECT_TRUE(objects[0]["prefill"].is_null());
  EXPECT_TRUE(objects[0]["difference"].is_null());
  EXPECT_TRUE(objects[1]["difference"].is_string());
  const std::string page = comparison_page(reports);
  EXPECT_EQ(page.find("<b>&"), std::string::npos);
  EXPECT_NE(page.find("&lt;b&gt;&amp;"), std::string::npos);
  EXPECT_NE(page.find("12.0 ms"), std::string::npos);
  EXPECT_EQ(page.find("<h2>Prefill"), std::string::npos);
}

}  // namespace
}  // namespace stagecoach
