#include "app/sweep.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "timeline/csv.h"

namespace stagecoach {
namespace {

constexpr std::string_view kPlaceholder = "{weights}";

template <typename T>
void refuse_duplicates(const char* flag, const std::vector<T>& values) {
  for (auto value = values.begin(); value != values.end(); ++value)
    if (std::find(values.begin(), value, *value) != value)
      throw usage_error(fmt::format("{} has {} twice", flag, *value), "give each value once");
}

void check(const SweepAxes& axes) {
  refuse_duplicates("--store", axes.stores);
  refuse_duplicates("--weights", axes.weights);
  refuse_duplicates("--windows", axes.windows);
  refuse_duplicates("--threads", axes.threads);
  refuse_duplicates("--micro-batch", axes.micro_batches);
  refuse_duplicates("--tokens", axes.tokens);
  refuse_duplicates("--batch", axes.batches);
  for (const std::string& store : axes.stores) {
    const bool open = store.find(kPlaceholder) != std::string::npos;
    if (open != axes.weights.empty()) continue;
    throw open
        ? usage_error(
              fmt::format("--store {} has a place for --weights, which is not given", store),
              "--weights f16,f32")
        : usage_error(fmt::format("--weights needs {} in --store, found {}", kPlaceholder, store),
                      "--store \"MODEL-{weights}\"");
  }
}

std::string with_weights(std::string store, const std::string& weights) {
  for (std::size_t at = store.find(kPlaceholder); at != std::string::npos;
       at = store.find(kPlaceholder, at + weights.size()))
    store.replace(at, kPlaceholder.size(), weights);
  return store;
}

// Calls `use` for every value of an axis, or once with its default.
template <typename T, typename Use>
void each_value(const std::vector<T>& values, const T& fallback, const Use& use) {
  if (values.empty()) return use(fallback);
  for (const T& value : values) use(value);
}

std::string name_of(const SweepAxes& axes, const Combination& c) {
  std::string name;
  const auto add = [&name](const char* what, const auto& values, const auto& value) {
    if (values.size() > 1) name += fmt::format("{}{} {}", name.empty() ? "" : ", ", what, value);
  };
  add("store", axes.stores, c.store);
  // A store that is named already says which.
  if (axes.stores.size() <= 1) add("weights", axes.weights, c.weights);
  add("windows", axes.windows, c.windows);
  add("threads", axes.threads, c.threads);
  add("micro-batch", axes.micro_batches, c.micro_batch);
  add("tokens", axes.tokens, c.tokens);
  add("batch", axes.batches, c.batch);
  return name;
}

// The one list of columns: header and values come from here. What only a whole pass or only a layer
// has is empty in the other's rows.
template <typename Visitor>
void for_each_column(const SweepResult& r, const PhaseResult& phase, const LayerRow* layer,
                     Visitor&& visit) {
  const Combination& c = r.combination;
  const auto of_layer = [&](auto&& value) {
    return layer ? std::optional(value(*layer)) : std::nullopt;
  };
  const auto rate = [&](double ms) {
    return !layer && ms > 0 ? std::optional(static_cast<double>(phase.tokens) / ms * 1e3)
                            : std::nullopt;
  };
  visit("combination", csv_field(c.number));
  visit("store", csv_field(c.store));
  visit("weights", csv_field(r.weights));
  visit("ranks", csv_field(r.ranks));
  visit("windows", csv_field(r.windows));
  visit("threads", csv_field(r.threads));
  visit("micro_batch", csv_field(c.micro_batch));
  visit("tokens", csv_field(c.tokens));
  visit("batch", csv_field(c.batch));
  visit("phase", csv_field(phase_name(phase.phase)));
  visit("layer", csv_field(of_layer([](const LayerRow& row) { return row.layer; })));
  visit("rank", csv_field(of_layer([](const LayerRow& row) { return row.rank; })));
  visit("host", layer ? csv_field(layer->host) : std::string());
  visit("passes", csv_field(layer ? layer->passes : phase.passes));
  visit("ms", csv_field(layer ? layer->ms : phase.ms));
  visit("ms_q1", csv_field(layer ? layer->ms_q1 : phase.ms_q1));
  visit("ms_q3", csv_field(layer ? layer->ms_q3 : phase.ms_q3));
  visit("tokens_per_second", csv_field(rate(phase.ms)));
  // The slow quarter of the passes is the low quartile of the rate.
  visit("tokens_per_second_q1", csv_field(rate(phase.ms_q3)));
  visit("tokens_per_second_q3", csv_field(rate(phase.ms_q1)));
  visit("read_ms", csv_field(of_layer([](const LayerRow& row) { return row.read_ms; })));
  visit("wait_ms", csv_field(of_layer([](const LayerRow& row) { return row.wait_ms; })));
  visit("compute_ms", csv_field(of_layer([](const LayerRow& row) { return row.compute_ms; })));
  visit("bytes", csv_field(of_layer([](const LayerRow& row) { return row.bytes; })));
  visit("flops", csv_field(of_layer([](const LayerRow& row) { return row.flops; })));
  visit("gb_per_s", csv_field(of_layer([](const LayerRow& row) { return row.gb_per_s(); })));
  visit("gflop_per_s", csv_field(of_layer([](const LayerRow& row) { return row.gflop_per_s(); })));
  visit("share_of_limit", layer ? csv_field(layer->share_of_limit) : std::string());
}

}  // namespace

std::vector<Combination> combinations(const SweepAxes& axes) {
  check(axes);
  std::vector<Combination> all;
  Combination c;
  const auto add = [&] {
    Combination& added = all.emplace_back(c);
    added.number = static_cast<int>(all.size());
    added.name = name_of(axes, added);
  };
  // One loop an axis, from the outermost to the innermost.
  each_value(axes.stores, {}, [&](const std::string& store) {
    each_value(axes.weights, {}, [&](const std::string& weights) {
      c.store = with_weights(store, weights);
      c.weights = weights;
      each_value(axes.windows, {}, [&](const std::string& windows) {
        c.windows = windows;
        each_value(axes.threads, 0, [&](int threads) {
          c.threads = threads;
          each_value(axes.micro_batches, std::int64_t{0}, [&](std::int64_t micro_batch) {
            c.micro_batch = micro_batch;
            each_value(axes.tokens, std::int64_t{0}, [&](std::int64_t tokens) {
              c.tokens = tokens;
              each_value(axes.batches, std::int64_t{0}, [&](std::int64_t batch) {
                c.batch = batch;
                add();
              });
            });
          });
        });
      });
    });
  });
  return all;
}

std::string sweep_csv(const std::vector<SweepResult>& results) {
  std::string csv, separator;
  for_each_column({}, {}, nullptr, [&](const char* name, const std::string&) {
    csv += std::exchange(separator, ",") + name;
  });
  csv += '\n';
  const auto line = [&csv](const SweepResult& result, const PhaseResult& phase,
                           const LayerRow* layer) {
    std::string between;
    for_each_column(result, phase, layer, [&](const char*, const std::string& field) {
      csv += std::exchange(between, ",") + field;
    });
    csv += '\n';
  };
  for (const SweepResult& result : results)
    for (const PhaseResult& phase : result.phases) {
      line(result, phase, nullptr);
      for (const LayerRow& row : result.rows)
        if (row.phase == phase.phase) line(result, phase, &row);
    }
  return csv;
}

}  // namespace stagecoach
