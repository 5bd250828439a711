// The same from a file that is parsed already. Apart from cluster_spec.h, since toml++ is a large
// header.
#pragma once

#include <toml++/toml.h>

#include <string>
#include <string_view>
#include <vector>

#include "plan/cluster_spec.h"

namespace stagecoach {

// Throws usage_error for a table that no job file has.
void check_job_tables(const std::string& file, const toml::table& root);

// Whether a key of [run] is a path, in which ~ is a home.
bool is_path_setting(std::string_view key);

// The values of a key of [run]: of one that is a path, with ~ as a shell has it.
std::vector<std::string> run_values(const std::string& file, std::string_view key,
                                    const toml::node& node);

// Of `file`, whose contents are `root`. Throws as read_cluster does.
ClusterSpec cluster_of(const std::string& file, const toml::table& root);

}  // namespace stagecoach
