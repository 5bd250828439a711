// configs/presets.json and configs/models/*.json, compiled in by scripts/embed_configs.cmake: the
// one binary is enough on a PC.
#pragma once

#include <span>
#include <string_view>
#include <utility>

namespace stagecoach {

std::string_view embedded_presets();
// File name without folder and extension ("gptj") and content, sorted by name.
std::span<const std::pair<std::string_view, std::string_view>> embedded_models();

}  // namespace stagecoach
