// layers.csv, one JSON row, and the report folder.
#include "timeline/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "timeline/csv.h"
#include "timeline/page/report_page.h"
#include "timeline/run_summary.h"

namespace stagecoach {
namespace {

// The one list of columns: CSV header, CSV values and JSON keys come from here. The last two are
// there where a job has a GPU.
template <typename Visitor>
void for_each_column(const LayerRow& row, bool with_device, Visitor&& visit) {
  visit("layer", row.layer);
  visit("rank", row.rank);
  visit("host", row.host);
  visit("phase", phase_name(row.phase));
  visit("ms", row.ms);
  visit("read_ms", row.read_ms);
  visit("wait_ms", row.wait_ms);
  visit("compute_ms", row.compute_ms);
  visit("bytes", row.bytes);
  visit("flops", row.flops);
  visit("gb_per_s", row.gb_per_s());
  visit("gflop_per_s", row.gflop_per_s());
  visit("share_of_limit", row.share_of_limit);
  if (!with_device) return;
  visit("device", row.device);
  visit("copy_ms", row.copy_ms);
}

using OrderedJson = nlohmann::ordered_json;
OrderedJson json_value(const std::optional<double>& value) {
  return value ? OrderedJson(*value) : OrderedJson(nullptr);
}
template <typename T>
OrderedJson json_value(const T& value) {
  return value;
}

}  // namespace

std::string layers_csv(const std::vector<LayerRow>& rows) {
  std::string csv;
  const auto append = [&csv, first = true](const std::string& field) mutable {
    if (!first) csv += ',';
    first = false;
    csv += field;
  };
  const bool with_device = has_gpu(rows);
  for_each_column({}, with_device,
                  [line = append](const char* name, const auto&) mutable { line(name); });
  csv += '\n';
  for (const LayerRow& row : rows) {
    for_each_column(row, with_device, [line = append](const char*, const auto& value) mutable {
      line(csv_field(value));
    });
    csv += '\n';
  }
  return csv;
}

std::string layer_row_json(const LayerRow& row) {
  OrderedJson object;
  for_each_column(row, !row.device.empty(),
                  [&](const char* name, const auto& value) { object[name] = json_value(value); });
  return object.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

void write_report(const std::filesystem::path& directory, const RunInfo& info,
                  const std::vector<RankTimeline>& ranks) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error)
    throw resource_error(fmt::format("cannot create {}: {}", directory.string(), error.message()),
                         "give --report a folder that you may write");
  const RunSummary summary = run_summary(info, ranks);
  const std::vector<LayerRow> rows = layer_rows(ranks);
  write_file_atomically(directory / "layers.csv", layers_csv(rows));
  write_file_atomically(directory / "run.json", run_json(summary));
  write_file_atomically(directory / "trace.json", trace_json(info, ranks));
  write_file_atomically(directory / "report.html", report_page(summary, rows, ranks));
}

}  // namespace stagecoach
