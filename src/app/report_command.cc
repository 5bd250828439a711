// report: runs that have been measured, side by side.
#include <memory>

#include "app/command.h"
#include "app/output.h"
#include "base/error.h"
#include "base/file.h"
#include "timeline/comparison.h"

namespace stagecoach {
namespace {

struct ReportFlags {
  std::vector<std::string> folders;
  std::string html;
  bool json = false;
};

int run_report(const ReportFlags& flags) {
  std::vector<SavedReport> reports;
  for (const std::string& folder : flags.folders) reports.push_back(read_report(folder));
  if (!flags.html.empty()) write_output(flags.html, comparison_page(reports));
  if (flags.json) {
    for (const auto& object : comparison_json(reports))
      print(object.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  } else {
    print(comparison_table(reports));
  }
  return 0;
}

}  // namespace

Command report_command(CLI::App& parent) {
  auto flags = std::make_shared<ReportFlags>();
  CLI::App* app =
      parent.add_subcommand("report", "Compare runs by the folders that --report DIR wrote");
  app->add_option("DIR", flags->folders, "Report folders; the first is what others are compared to")
      ->required()
      ->type_name("");
  app->add_option("--html", flags->html, "Also write a page with all of them")->type_name("FILE");
  app->add_flag("--json", flags->json, "One object a run");
  return {app, [flags] { return run_report(*flags); }};
}

}  // namespace stagecoach
