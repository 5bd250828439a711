// The same from a file that is parsed already. Apart from cluster_spec.h, since toml++ is a large
// header.
#pragma once

#include <toml++/toml.h>

#include <string>

#include "plan/cluster_spec.h"

namespace stagecoach {

// Throws usage_error for a table that no job file has.
void check_job_tables(const std::string& file, const toml::table& root);

// Of `file`, whose contents are `root`. Throws as read_cluster does.
ClusterSpec cluster_of(const std::string& file, const toml::table& root);

}  // namespace stagecoach
