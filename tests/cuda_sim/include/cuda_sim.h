// How a test controls the simulated devices: what they are, which seed orders them, what fails, and
// what they did. Without reset() the first call configures the process from the environment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace cuda_sim {

struct Config {
  std::uint64_t seed = 1;  // STAGECOACH_CUDA_SIM_SEED
  std::size_t memory = std::size_t{1}
                       << 30;  // bytes of each device; …_MEMORY: 1073741824 or 512MiB
  // …_PIECE: what memory is counted in. Drivers map 2 MiB at once; plans do not count so, and would
  // not fit into what they ask for.
  std::size_t piece = 256;
  int devices = 1;             // …_DEVICES; 0: no device
  int driver = 13000;          // …_DRIVER: CUDA version it can serve; 0: no driver
  int capability = 86;         // …_CAPABILITY; what a block may share follows from it
  int lowest_capability = 75;  // below it, launches find no kernel image
  int multiprocessors = 8;
  std::size_t shared_per_block = 48 * 1024;
  // Tensor cores add products k in the order k ^ tensor_sums. From the environment: the seed.
  std::uint64_t tensor_sums = 0;
  std::size_t l2_cache = 4 << 20;
  bool integrated = false;
  // Host code that touches device memory crashes (costs about 10 µs an op).
  bool protect = true;
  // …_FAULTS: FUNCTION:N:ERROR,… The Nth call of a function of the API from now on fails so.
  // FUNCTION may be "launch" or "any", and is else one that is counted; ERROR any cudaError… or,
  // for cuBLAS, CUBLAS_STATUS_….
  std::string faults = {};
};

// STAGECOACH_CUDA_SIM_… over the defaults. Ends the process on values that it does not understand.
Config config_from_environment();

// Starts over with empty devices and statistics. Returns what the program before leaked, one line
// each, or nothing (so, too, if a device failed); no handle and no pointer of before is valid
// after. No other thread may be in the API.
std::string reset(const Config& config);

// What is allocated or created and not freed now, in the same form.
std::string leaks();

struct Statistics {
  std::uint64_t operations = 0;      // executed on streams, those of graphs included
  std::uint64_t graph_launches = 0;  // executed
  std::uint64_t blocks = 0;
  std::uint64_t switches = 0;                     // from one thread of a block to another
  std::map<std::string, std::uint64_t> launches;  // by kernel, when executed; cuBLAS by function
  std::map<std::string, std::uint64_t> calls;     // by function of the API
  std::uint64_t host_to_device = 0;               // bytes
  std::uint64_t device_to_host = 0;
  std::uint64_t device_to_device = 0;
  std::uint64_t filled = 0;
  std::size_t memory = 0;       // allocated now, all devices, in pieces
  std::size_t peak_memory = 0;  // of one device
  std::size_t pinned = 0;
};
Statistics statistics();

// The last line that the simulator wrote to stderr, or nothing.
std::string last_message();

}  // namespace cuda_sim
