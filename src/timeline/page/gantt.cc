// Draws a Gantt chart: SVG for what has an extent in time, HTML for words, which must not be
// stretched with it.
#include "timeline/page/gantt.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "timeline/page/html.h"

namespace stagecoach {
namespace {

// A thousand titled rectangles are about 150 kB of page; three figures stay under 2 MB.
constexpr std::size_t kMostSpans = 4000;
// Narrower than this part of the figure is under a tenth of a pixel.
constexpr std::int64_t kInvisiblePart = 20'000;
// Slices of a merged figure; more would be narrower than a pixel on most screens.
constexpr int kSlices = 600;

constexpr double kWidth = 10'000;  // of the drawing; the browser stretches it to the page
constexpr double kRowHeight = 30, kReadHeight = 12, kGap = 8;

// Position and size of a piece of a row, within the row's height of 1: what computes is tall, what
// waits is thin, so that colour is not all that tells them apart.
struct Band {
  double top, height;
};
Band band_of(Activity activity) {
  switch (activity) {
    case Activity::kWait:
      return {0.42, 0.16};
    case Activity::kWeightWait:
      return {0.3, 0.4};
    case Activity::kSend:
      return {0.15, 0.7};
    default:
      return {0, 1};
  }
}

class Drawing {
 public:
  explicit Drawing(const TimeRange& range) : range_(range) {}

  double x_of(std::int64_t ns) const {
    const std::int64_t inside = std::clamp(ns, range_.begin_ns, range_.end_ns) - range_.begin_ns;
    return kWidth * static_cast<double>(inside) / static_cast<double>(range_.length());
  }

  void add_span(const Span& span, double top, double height) {
    const Activity activity = activity_of(span.kind);
    const Band band = band_of(activity);
    const double x = x_of(span.begin_ns);
    svg_ += fmt::format(
        "<rect class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\">"
        "<title>{}</title></rect>\n",
        activity_key(activity), x, top + band.top * height, std::max(0.5, x_of(span.end_ns) - x),
        band.height * height, title_of(span));
  }

  // The slices of one row: activities stand on one another, in their order, from the bottom.
  void add_slices(const SlicedRow& row, double top, double height) {
    const double width = kWidth / kSlices;
    for (int a = 0; a < kActivities; ++a) {
      std::string path;
      for (int s = 0; s < kSlices; ++s) {
        const SlicedRow::Slice& slice = row.slices[static_cast<std::size_t>(s)];
        const double share = slice.share[a];
        if (share * height < 0.05) continue;
        double below = 0;
        for (int b = 0; b < a; ++b) below += slice.share[b];
        path += fmt::format("M{:.4g} {:.4g}h{:.4g}v{:.3g}h-{:.4g}z", s * width,
                            top + (1 - below - share) * height, width, share * height, width);
      }
      if (path.empty()) continue;
      const auto activity = static_cast<Activity>(a);
      svg_ += fmt::format("<path class=\"{}\" d=\"{}\"><title>{}</title></path>\n",
                          activity_key(activity), path, activity_label(activity));
    }
  }

  const std::string& svg() const { return svg_; }

 private:
  static std::string title_of(const Span& span) {
    std::string title(span_kind_name(span.kind));
    if (span.layer >= 0) title += fmt::format(", layer {}", span.layer);
    if (span.phase != Phase::kNone) title += fmt::format(", {}", phase_name(span.phase));
    if (measured(span)) title += fmt::format(" pass {}", span.pass);
    if (span.pass < 0) title += " warm-up";
    if (span.micro_batch >= 0) title += fmt::format(", micro-batch {}", span.micro_batch);
    if (span.tokens > 0) title += fmt::format(", {} tokens", span.tokens);
    return title + ": " + format_duration(span.end_ns - span.begin_ns);
  }

  TimeRange range_;
  std::string svg_;
};

// 1, 2 or 5 times a power of ten, so that about `count` of them fit.
std::int64_t tick_step(std::int64_t length, int count) {
  const double wanted = static_cast<double>(length) / count;
  const double power = std::pow(10, std::floor(std::log10(std::max(1.0, wanted))));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= wanted) return static_cast<std::int64_t>(factor * power);
  return static_cast<std::int64_t>(10 * power);
}

struct Axis {
  std::string labels;  // HTML, over the drawing
  std::string lines;   // SVG, in it
};

Axis draw_axis(const TimeRange& range, double height) {
  Axis axis;
  const std::int64_t step = tick_step(range.length(), 6);
  for (std::int64_t tick = 0; tick <= range.length(); tick += step) {
    const double part = static_cast<double>(tick) / static_cast<double>(range.length());
    // The last label would hang over the edge.
    const char* side = part > 0.94 ? " class=\"last\"" : "";
    axis.labels += fmt::format("<span{} style=\"left:{:.3f}%\">{}</span>", side, part * 100,
                               tick == 0 ? "0" : format_duration(tick));
    axis.lines += fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"0\" y2=\"{1:.0f}\"/>",
                              part * kWidth, height);
  }
  return axis;
}

// Of what is drawn, not of what is too short for it.
std::string legend(const std::vector<GanttRow>& rows, std::int64_t shortest) {
  bool seen[kActivities] = {};
  for (const GanttRow& row : rows)
    for (const Span& span : row.spans)
      if (span.end_ns - span.begin_ns >= shortest)
        seen[static_cast<int>(activity_of(span.kind))] = true;
  std::string html = "<ul class=\"legend\">";
  for (int a = 0; a < kActivities; ++a) {
    const auto activity = static_cast<Activity>(a);
    if (seen[a])
      html += fmt::format("<li><i class=\"{}\"></i>{}</li>", activity_key(activity),
                          activity_label(activity));
  }
  return html + "</ul>\n";
}

// Which spans are long enough to be seen.
struct Visibility {
  std::int64_t shortest_ns = 0;
  std::size_t shown = 0, hidden = 0;
  std::int64_t shown_ns = 0, hidden_ns = 0;

  // Many short spans together are work that a drawing must not leave out.
  bool must_merge() const { return shown > kMostSpans || hidden_ns > shown_ns / 100; }
};

Visibility visibility(const std::vector<GanttRow>& rows, const TimeRange& range) {
  Visibility v{.shortest_ns = range.length() / kInvisiblePart};
  for (const GanttRow& row : rows)
    for (const Span& span : row.spans) {
      const std::int64_t ns = span.end_ns - span.begin_ns;
      ++(ns >= v.shortest_ns ? v.shown : v.hidden);
      (ns >= v.shortest_ns ? v.shown_ns : v.hidden_ns) += ns;
    }
  return v;
}

std::string caption(const Visibility& v, bool merged, const TimeRange& range) {
  if (merged)
    return fmt::format(
        "{} spans, merged into {} slices of {}: the height of a colour is its share of a slice's "
        "time. trace.json has every span.",
        v.shown + v.hidden, kSlices, format_duration(range.length() / kSlices));
  if (v.hidden > 0)
    return fmt::format(
        "{} spans; {} more, shorter than {} each, are too short to be seen and left out here "
        "(trace.json has them).",
        v.shown, v.hidden, format_duration(v.shortest_ns));
  return fmt::format("{} spans, every one of this stretch.", v.shown);
}

}  // namespace

std::string gantt_figure(const std::vector<RankTimeline>& ranks, const TimeRange& range) {
  if (range.length() <= 0) return "<p>Nothing was recorded.</p>\n";
  const std::vector<GanttRow> rows = gantt_rows(ranks, range);
  const Visibility v = visibility(rows, range);
  const bool merged = v.must_merge();

  Drawing drawing(range);
  std::string names;
  double top = 0;
  for (const GanttRow& row : rows) {
    const double height = row.reads ? kReadHeight : kRowHeight;
    names += fmt::format("<span style=\"height:{:.0f}px\">{}</span>", height + kGap,
                         row.reads ? "disk" : fmt::format("rank {}", row.rank));
    if (merged) {
      drawing.add_slices(slice_row(row, range, kSlices), top, height);
    } else {
      for (const Span& span : row.spans)
        if (span.end_ns - span.begin_ns >= v.shortest_ns) drawing.add_span(span, top, height);
    }
    top += height + kGap;
  }
  const Axis axis = draw_axis(range, top);
  return fmt::format(
      "<figure class=\"gantt\">\n{legend}<div class=\"chart\"><div class=\"names\">{names}</div>"
      "<div class=\"scroll\" tabindex=\"0\"><div class=\"track\">"
      "<svg viewBox=\"0 0 {width:.0f} {height:.0f}\" height=\"{height:.0f}\" "
      "preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Activity of each rank over time\">\n"
      "<g class=\"grid\">{lines}</g>\n{shapes}</svg><div class=\"axis\">{labels}</div></div></div>"
      "</div>\n<figcaption>{caption}</figcaption>\n</figure>\n",
      fmt::arg("legend", legend(rows, merged ? 0 : v.shortest_ns)), fmt::arg("names", names),
      fmt::arg("width", kWidth), fmt::arg("height", top), fmt::arg("lines", axis.lines),
      fmt::arg("shapes", drawing.svg()), fmt::arg("labels", axis.labels),
      fmt::arg("caption", caption(v, merged, range)));
}

}  // namespace stagecoach
