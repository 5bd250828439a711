#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/registry.h"

namespace stagecoach {

// Threads: options.threads workers in all, the caller being one of them. ISA: options.isa, else
// STAGECOACH_ISA, else the best. Throws usage_error when the forced one cannot run here.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

// Processors that this process may use (affinity mask and cgroup quota), at least 1.
int allowed_cpus();

}  // namespace stagecoach
