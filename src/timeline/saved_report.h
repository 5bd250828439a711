// A report folder, read back.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "timeline/report.h"
#include "timeline/run_summary.h"

namespace stagecoach {

struct SavedReport {
  std::string name;  // the folder's, as it was given
  RunSummary run;
  std::vector<LayerRow> rows;  // without what layers.csv does not hold: attention_ms, mlp_ms
};

// Reads run.json and layers.csv of `directory`. Throws data_error naming file and line.
SavedReport read_report(const std::filesystem::path& directory);

// The rows of a layers.csv. `source` names the text in errors. Throws data_error with the line for
// another header, a missing field, a field that is not what its column holds, or a last line
// without its end (a file that was cut off).
std::vector<LayerRow> parse_layers_csv(std::string_view text, const std::string& source);

}  // namespace stagecoach
