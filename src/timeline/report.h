// Tables and files made from all ranks' spans.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "timeline/timeline.h"

namespace stagecoach {

struct RankTimeline {
  int rank = 0;
  std::string host;
  // Add to this rank's clock to get rank 0's, linear between the two measurements.
  std::int64_t offset_begin_ns = 0, offset_end_ns = 0;
  std::int64_t measured_begin_ns = 0, measured_end_ns = 0;  // of rank 0's clock
  std::vector<Span> spans;

  std::int64_t to_rank0(std::int64_t local_ns) const;
};

// One row per (layer, rank, phase), in layer order. The columns are CLI.md's.
struct LayerRow {
  std::int64_t layer = 0;
  int rank = 0;
  std::string host;
  Phase phase = Phase::kNone;
  double ms = 0;        // median per pass, from hidden state in to hidden state out
  double read_ms = 0, wait_ms = 0, compute_ms = 0;
  double attention_ms = 0, mlp_ms = 0;
  std::int64_t bytes = 0, flops = 0, tokens = 0;
  std::int64_t passes = 0;
  std::optional<double> share_of_limit;  // until probe has run: none
  double gb_per_s() const;
  double gflop_per_s() const;
};

// Sums the micro-batches of one pass when `group` maps micro-batch → pass; medians over passes.
std::vector<LayerRow> layer_rows(const std::vector<RankTimeline>& ranks);

// A table for people, at most ~40 lines (long models are shown by rank with the extremes).
std::string format_layer_table(const std::vector<LayerRow>& rows);

std::string layers_csv(const std::vector<LayerRow>& rows);
std::string trace_json(const std::vector<RankTimeline>& ranks);  // Chrome trace events (opens in Perfetto)

// Writes layers.csv and trace.json into `directory`, which is created. Throws resource_error.
void write_report(const std::filesystem::path& directory, const std::vector<RankTimeline>& ranks);

}  // namespace stagecoach
