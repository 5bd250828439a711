// Devices by the name that --device takes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace stagecoach {

struct BackendOptions {
  int threads = 1;
  std::string isa;  // force one ("avx2"); empty: the best that this processor runs
  std::vector<int> cpus =
      {};  // processors that threads keep to, one each; empty: as the system likes
};

class BackendRegistry {
 public:
  using Factory = std::function<std::unique_ptr<Backend>(const BackendOptions&)>;
  void add(std::string name, Factory factory);
  // Throws usage_error listing the names that exist.
  std::unique_ptr<Backend> create(const std::string& name, const BackendOptions& options) const;

 private:
  std::vector<std::pair<std::string, Factory>> factories_;
};

}  // namespace stagecoach
