// src/timeline/report.css and report.js, compiled in by scripts/embed_text.cmake: a report stands
// alone wherever it is copied to.
#pragma once

#include <string_view>

namespace stagecoach {

std::string_view report_css();
std::string_view report_js();

}  // namespace stagecoach
