// Tables and files made from all ranks' spans. What each column means: docs/timing.md.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "timeline/clock_offset.h"
#include "timeline/run_info.h"
#include "timeline/timeline.h"

namespace stagecoach {

struct RankTimeline {
  int rank = 0;
  std::string host;
  ClockMap clock;  // this rank's clock → rank 0's
  std::vector<Span> spans;
  RankUsage usage{};

  std::int64_t to_rank0(std::int64_t local_ns) const { return clock.to_rank0(local_ns); }
};

// What one pass of one phase through one layer cost on the rank that ran it: medians over passes,
// each number by itself.
struct LayerRow {
  std::int64_t layer = 0;
  int rank = 0;
  std::string host;
  Phase phase = Phase::kNone;
  double ms = 0;                    // wall, from hidden state in to hidden state out
  double ms_q1 = 0, ms_q3 = 0;      // its quartiles
  double read_ms = 0, copy_ms = 0;  // from disk; to a device
  double wait_ms = 0, compute_ms = 0;
  double attention_ms = 0, mlp_ms = 0;  // add up to compute_ms within a pass
  std::int64_t bytes = 0;               // weights used: a micro-batch uses all of them again
  std::int64_t flops = 0, tokens = 0;
  std::int64_t passes = 0;  // how many the medians are of
  // Of the nearer of the rank's two limits, 1 being all of it; until probe has run: none.
  std::optional<double> share_of_limit;
  std::string device;  // that computed it: "cpu", "cuda"; empty: the job has no GPU

  double gb_per_s() const;  // 10⁹ bytes / compute time; 0 when nothing was timed
  double gflop_per_s() const;
};

// One row per (layer, rank that ran it, phase), sorted by layer, then rank, then phase. The
// micro-batches of one pass add up; warm-up passes (negative) are left out.
std::vector<LayerRow> layer_rows(const std::vector<RankTimeline>& ranks);

// Whether some rank of the job has a GPU: then all rows name their device.
bool has_gpu(const std::vector<LayerRow>& rows);

// What happens outside layers: the median over passes of the time that spans of `kind` took
// together, in milliseconds; 0 when there are none.
double median_pass_ms(const std::vector<RankTimeline>& ranks, SpanKind kind, Phase phase);

// A table for people, at most 40 lines: of long models each rank's slowest, first and last layers,
// then as many of the slowest as fit; and every rank's totals. Ends with a newline; empty without
// rows.
std::string format_layer_table(const std::vector<LayerRow>& rows);

// The columns of docs/cli.md, floats so that they read back exactly, text quoted as in RFC 4180.
std::string layers_csv(const std::vector<LayerRow>& rows);
// One JSON object with the same columns, without a newline; share_of_limit may be null.
std::string layer_row_json(const LayerRow& row);

// Chrome trace events, the JSON object form, on rank 0's clock. Opens in Perfetto and
// chrome://tracing. What was run stands in "otherData".
std::string trace_json(const RunInfo& info, const std::vector<RankTimeline>& ranks);

// Writes layers.csv, run.json, trace.json and report.html into `directory`, which is created.
// Throws resource_error.
void write_report(const std::filesystem::path& directory, const RunInfo& info,
                  const std::vector<RankTimeline>& ranks);

}  // namespace stagecoach
