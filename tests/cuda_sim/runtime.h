// The simulated machine: one lock, one generator, its devices, and what every call of the API does
// before and after its own work. The calling thread holds the lock throughout and runs the ops
// itself.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cuda_sim.h"
#include "fault_list.h"
#include "memory.h"
#include "random.h"
#include "stream.h"

namespace cuda_sim {

struct Device {
  Device(int number, const Config& config)
      : memory(number, config.memory, config.piece, config.protect), legacy(number) {}

  DeviceMemory memory;
  // Ops of cudaMemset, which returns before it is done; non-blocking streams are not ordered by it.
  CUstream_st legacy;
  cudaError_t failed = cudaSuccess;  // an op failed: the rest are dropped
  cudaError_t sticky = cudaSuccess;  // … and a synchronising call has told the program
};

// What a call may do while a stream is captured, and whether it reports errors of ops.
enum class CallKind {
  kFree,    // needs neither a device nor a context
  kAsync,   // queues, creates, asks
  kUnsafe,  // not while this thread captures, unless in relaxed mode
  kSync,    // neither, and tells what ops did
};

struct Runtime {
  std::mutex mutex;
  bool configured = false;
  Config config;
  Random random;
  Statistics stats;
  FaultList faults;
  std::vector<std::unique_ptr<Device>> devices;
  PinnedMemory pinned;
  std::vector<std::unique_ptr<CUstream_st>> streams;
  std::vector<std::unique_ptr<CUevent_st>> events;
  std::vector<std::unique_ptr<CUgraph_st>> graphs;
  std::vector<std::unique_ptr<CUgraphExec_st>> execs;
  std::vector<std::shared_ptr<Capture>> captures;
  std::map<const void*, int> shared_limits;  // by kernel, where cudaFuncSetAttribute raised it
  std::string last_message;
  std::set<const void*> cublas_handles;
  int injected_status = 0;                   // a cuBLAS status for the running call
  cudaError_t injected_later = cudaSuccess;  // by the op that the running call queues, when it runs
  enum class Mood { kLate, kMixed, kEager } mood = Mood::kMixed;
  unsigned mood_left = 0;  // calls until the next

  void configure(const Config& config);
  Device& device(int number) { return *devices[static_cast<std::size_t>(number)]; }
  Device& current();
  DeviceMemory* memory_of(const void* address);  // nullptr: not device memory

  // Writes one line and remembers it.
  void say(const std::string& line);
  // An op failed: its device runs nothing any more.
  void fail(int device, cudaError_t error, const std::string& line);
  void close_memory();
};

Runtime& runtime();
bool is_sticky(cudaError_t error);

// Per OS thread.
struct ThreadState {
  int device = 0;
  cudaError_t last_error = cudaSuccess;
  std::thread::id id = std::this_thread::get_id();
};
ThreadState& thread_state();

// What a call finds before its own work: an error that ends it, or success.
cudaError_t begin_call(const char* function, CallKind kind);
void end_call(CallKind kind, cudaError_t& result);

// Every function of the API is call(name, kind, its own work).
template <class Body>
cudaError_t call(const char* function, CallKind kind, Body&& body) {
  const std::lock_guard lock(runtime().mutex);
  cudaError_t result = begin_call(function, kind);
  if (result == cudaSuccess) result = body(runtime());
  end_call(kind, result);
  return result;
}

}  // namespace cuda_sim
