// What a SIGSEGV means here: an op's first touch of closed device memory, a wrong access of a
// kernel or a copy (the device fails, the process goes on), or host code that touches device memory
// (it dies, after one line).
#pragma once

namespace cuda_sim {

void install_fault_handler();

}  // namespace cuda_sim
