// Several runs side by side.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "timeline/saved_report.h"

namespace stagecoach {

// One phase of one run, as comparisons show it.
struct PhaseFigures {
  std::int64_t tokens = 0;  // of a pass
  double ms = 0, tokens_per_second = 0;
  double layer_ms = 0;  // median over layers
};
std::optional<PhaseFigures> phase_figures(const SavedReport& report, Phase phase);

// What a reader must know of the run before its figures (layers that share slabs); mostly empty.
std::string note_of(const SavedReport& report);

// How `other` differs most from `base`, in words: the phase whose speed differs by the largest
// factor, and the layer that contributes most to it. Passes of different lengths are compared by
// tokens per second. For runs without a phase in common, that.
std::string biggest_difference(const SavedReport& base, const SavedReport& other);

// A table for people, a line a run, and a sentence for each run after the first. Ends with a
// newline.
std::string comparison_table(const std::vector<SavedReport>& reports);
// One object per run, in order, with the same figures. `difference` is null for the first.
std::vector<nlohmann::ordered_json> comparison_json(const std::vector<SavedReport>& reports);
// The same as a page, with a bar for each layer of each run.
std::string comparison_page(const std::vector<SavedReport>& reports);

}  // namespace stagecoach
