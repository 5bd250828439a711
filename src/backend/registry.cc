#include "backend/registry.h"

#include "base/error.h"

namespace stagecoach {

void BackendRegistry::add(std::string name, Factory factory) {
  factories_.emplace_back(std::move(name), std::move(factory));
}

std::unique_ptr<Backend> BackendRegistry::create(const std::string& name,
                                                 const BackendOptions& options) const {
  std::string known;
  for (const auto& [candidate, factory] : factories_) {
    if (candidate == name) return factory(options);
    known += (known.empty() ? "" : ", ") + candidate;
  }
  throw usage_error(fmt::format("device '{}' is not built in; this build has: {}", name, known));
}

}  // namespace stagecoach
