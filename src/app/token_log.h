// What has been drawn so far, in a checkpoint folder: a run that was interrupted goes on after the
// last token. Rank 0's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "text/tokenizer.h"

namespace stagecoach {

class TokenLog {
 public:
  // `work`: hash of prompts and settings, whose tokens these are.
  TokenLog(const std::filesystem::path& folder, std::uint64_t work);

  // By prompt; nullopt when there is no log, or another work's. Throws data_error on a damaged one.
  std::optional<std::vector<std::vector<TokenId>>> load(std::size_t prompts) const;
  // Replaces the log. Throws resource_error.
  void save(const std::vector<const std::vector<TokenId>*>& tokens) const;

 private:
  std::filesystem::path file_;
  std::uint64_t work_;
};

}  // namespace stagecoach
