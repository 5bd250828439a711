// Threads that share the index range of one op at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace stagecoach {

// Idle workers spin for some microseconds, since a forward pass asks for the next op at once, then
// sleep: several ranks may share a host, and Open MPI's own thread needs a core. While nobody
// sleeps a job begins and ends without a lock: an op of a small model takes less time than losing
// one.
//
// parallel_for is for one caller at a time. Which thread runs which chunk is not determined, so
// chunks must not depend on each other.
class ThreadPool {
 public:
  // `threads` in all, the caller of parallel_for being one; 1 starts none. cpus: processors, one
  // for each thread, to which the workers keep where the system lets them; the caller stays free,
  // since what it starts later would inherit its place.
  explicit ThreadPool(int threads, std::vector<int> cpus = {});
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // body(begin, end) over [0, count) in chunks of `chunk`. Returns when all are done; rethrows the
  // first exception, after which chunks not yet begun are left out.
  template <typename Body>
  void parallel_for(std::int64_t count, std::int64_t chunk, Body&& body) {
    if (count <= 0) return;
    if (workers_.empty() || count <= chunk) {
      body(std::int64_t{0}, count);
      return;
    }
    Job job(
        count, chunk,
        [](void* context, std::int64_t begin, std::int64_t end) {
          (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
    run(job);
  }

 private:
  struct Job {
    using Function = void (*)(void* context, std::int64_t begin, std::int64_t end);
    Job(std::int64_t count_in, std::int64_t chunk_in, Function function_in, void* context_in)
        : count(count_in), chunk(chunk_in), function(function_in), context(context_in) {}
    const std::int64_t count, chunk;
    const Function function;
    void* const context;
    std::atomic<std::int64_t> next{0};
    std::mutex error_mutex;
    std::exception_ptr error;
  };

  void stop();
  void run(Job& job);
  static void run_chunks(Job& job);
  void post(Job* job);
  void wait_until_left();
  void worker_loop();
  void wait_for_job(std::uint64_t seen);

  std::vector<std::thread> workers_;
  // A worker counts itself inside_ before it looks for the job, the caller takes the job away
  // before it looks inside_: one of them sees the other, all of this being in one order (seq_cst).
  // The same holds for who sleeps and what changed. Only sleeping takes the mutex.
  std::atomic<Job*> job_{nullptr};
  std::atomic<std::uint64_t> posted_{0};  // jobs so far
  std::atomic<int> inside_{0};            // workers that may hold the job
  std::atomic<int> sleeping_{0};          // workers that wait for job_posted_, or are about to
  std::atomic<bool> waiting_{false};      // the caller, for workers_left_
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable job_posted_;
  std::condition_variable workers_left_;
};

}  // namespace stagecoach
