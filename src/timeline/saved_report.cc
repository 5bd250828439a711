#include "timeline/saved_report.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

namespace stagecoach {
namespace {

// A model of 10,000 layers on 10 rounds would still fit.
constexpr std::int64_t kMaxFileBytes = 64 << 20;

Error bad_line(const std::string& source, std::size_t line, const std::string& problem) {
  return data_error(fmt::format("{}:{}: {}", source, line, problem), "run again with --report DIR");
}

// Foreign text in a message: quoted, short, without control characters.
std::string shown(std::string_view text, std::size_t longest = 60) {
  return Json(text.substr(0, longest)).dump(-1, ' ', true, Json::error_handler_t::replace);
}

// Splits CSV (RFC 4180) into records, whose fields may hold line ends.
class CsvReader {
 public:
  CsvReader(std::string_view text, const std::string& source) : rest_(text), source_(source) {}

  bool done() const { return rest_.empty(); }
  std::size_t line() const { return line_; }  // of the record read last, counted from 1

  std::vector<std::string> next() {
    line_ = next_line_;
    std::vector<std::string> fields;
    while (true) {
      fields.push_back(!rest_.empty() && rest_.front() == '"' ? quoted_field() : plain_field());
      if (rest_.empty())
        throw bad_line(source_, line_,
                       "expected a line end, found the end of the file: it was cut "
                       "off");
      const char end = rest_.front();
      rest_.remove_prefix(1);
      if (end == ',') continue;
      if (end != '\n')
        throw bad_line(
            source_, line_,
            fmt::format("expected a comma or a line end after {}", shown(fields.back())));
      ++next_line_;
      return fields;
    }
  }

 private:
  std::string plain_field() {
    const std::size_t end = std::min(rest_.find_first_of(",\n"), rest_.size());
    std::string field(rest_.substr(0, end));
    rest_.remove_prefix(end);
    return field;
  }

  std::string quoted_field() {
    std::string field;
    rest_.remove_prefix(1);
    while (true) {
      const std::size_t end = rest_.find('"');
      if (end == std::string_view::npos)
        throw bad_line(source_, line_, "a quoted field has no end");
      for (const char c : rest_.substr(0, end)) next_line_ += c == '\n' ? 1 : 0;
      field += rest_.substr(0, end);
      rest_.remove_prefix(end + 1);
      if (rest_.empty() || rest_.front() != '"') return field;
      field += '"';
      rest_.remove_prefix(1);
    }
  }

  std::string_view rest_;
  const std::string& source_;
  std::size_t line_ = 0, next_line_ = 1;
};

// One record's fields, by column name.
class Record {
 public:
  Record(const std::vector<std::string>& names, std::vector<std::string> fields,
         const std::string& source, std::size_t line)
      : names_(names), fields_(std::move(fields)), source_(source), line_(line) {
    if (fields_.size() != names.size())
      throw bad_line(source, line,
                     fmt::format("expected {} fields, found {}", names.size(), fields_.size()));
  }

  bool has(std::string_view name) const {
    return std::find(names_.begin(), names_.end(), name) != names_.end();
  }
  const std::string& text(std::string_view name) const {
    const auto at = std::find(names_.begin(), names_.end(), name);
    STAGECOACH_CHECK(at != names_.end());
    return fields_[static_cast<std::size_t>(at - names_.begin())];
  }

  template <typename Number>
  Number number(std::string_view name, const char* what) const {
    const std::string& field = text(name);
    Number value{};
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
    // Written so that nan fails; halves leave room for sums.
    if (error == std::errc{} && end == field.data() + field.size() && value >= 0 &&
        value <= std::numeric_limits<Number>::max() / 2)
      return value;
    throw bad(name, what);
  }
  double amount(std::string_view name) const { return number<double>(name, "a number from 0 on"); }
  std::int64_t count(std::string_view name) const {
    return number<std::int64_t>(name, "a whole number from 0 on");
  }

  Phase phase() const {
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode})
      if (text("phase") == phase_name(phase)) return phase;
    throw bad("phase", "prefill or decode");
  }

 private:
  Error bad(std::string_view name, const char* what) const {
    return bad_line(source_, line_,
                    fmt::format("{}: expected {}, found {}", name, what, shown(text(name))));
  }

  const std::vector<std::string>& names_;
  std::vector<std::string> fields_;
  const std::string& source_;
  std::size_t line_;
};

LayerRow row_of(const Record& record) {
  LayerRow row;
  row.layer = record.count("layer");
  row.rank = record.number<int>("rank", "a whole number from 0 on");
  row.host = record.text("host");
  row.phase = record.phase();
  row.ms = record.amount("ms");
  row.read_ms = record.amount("read_ms");
  row.wait_ms = record.amount("wait_ms");
  row.compute_ms = record.amount("compute_ms");
  row.bytes = record.count("bytes");
  row.flops = record.count("flops");
  // Quotients of the columns before them; read so that a broken one is noticed.
  record.amount("gb_per_s");
  record.amount("gflop_per_s");
  if (!record.text("share_of_limit").empty()) row.share_of_limit = record.amount("share_of_limit");
  if (record.has("device")) row.device = record.text("device");
  if (record.has("copy_ms")) row.copy_ms = record.amount("copy_ms");
  return row;
}

}  // namespace

std::vector<LayerRow> parse_layers_csv(std::string_view text, const std::string& source) {
  const std::string header = layers_csv({});
  const std::string columns = header.substr(0, header.size() - 1);
  // Of a job with a GPU; the last one had a version that did not say how long copies took.
  const bool known = text.starts_with(header) || text.starts_with(columns + ",device,copy_ms\n") ||
                     text.starts_with(columns + ",device\n");
  if (!known)
    throw bad_line(source, 1,
                   fmt::format("expected the columns {}, found {}: another version wrote it",
                               columns, shown(text.substr(0, text.find('\n')), 200)));
  CsvReader reader(text, source);
  const std::vector<std::string> names = reader.next();
  std::vector<LayerRow> rows;
  while (!reader.done()) {
    std::vector<std::string> fields = reader.next();
    rows.push_back(row_of(Record(names, std::move(fields), source, reader.line())));
  }
  return rows;
}

SavedReport read_report(const std::filesystem::path& directory) {
  std::error_code trouble;
  if (!std::filesystem::is_directory(directory, trouble))
    throw data_error(fmt::format("{} is not a folder{}", directory.string(),
                                 trouble ? ": " + trouble.message() : ""),
                     "give folders that a run wrote with --report DIR");
  const auto run = directory / "run.json", layers = directory / "layers.csv";
  SavedReport report;
  report.name = directory.string();
  if (!std::filesystem::exists(run, trouble))
    throw data_error(fmt::format("{} has no run.json", directory.string()),
                     "give folders that a run wrote with --report DIR");
  report.run = parse_run_json(read_text_file(run, kMaxFileBytes), run.string());
  report.rows = parse_layers_csv(read_text_file(layers, kMaxFileBytes), layers.string());
  return report;
}

}  // namespace stagecoach
