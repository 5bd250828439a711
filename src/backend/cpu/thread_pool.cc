#include "backend/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "base/error.h"

namespace stagecoach {
namespace {

// About 20 to 50 µs: the gap between two ops of a pass, well below what waking a thread costs.
constexpr int kSpins = 1000;

// Of this thread; a system that refuses leaves it free.
void keep_to(int cpu) {
#if defined(__linux__)
  const auto cpus = static_cast<std::size_t>(cpu) + 1;
  cpu_set_t* const mask = CPU_ALLOC(cpus);
  if (mask == nullptr) return;
  const std::size_t size = CPU_ALLOC_SIZE(cpus);
  CPU_ZERO_S(size, mask);
  CPU_SET_S(static_cast<std::size_t>(cpu), size, mask);
  pthread_setaffinity_np(pthread_self(), size, mask);
  CPU_FREE(mask);
#endif
}

void pause_spin() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// Whether `done()` became true within so many spins.
template <typename Done>
bool spin_until(const Done& done) {
  for (int i = 0; i < kSpins; ++i) {
    if (done()) return true;
    pause_spin();
  }
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads, std::vector<int> cpus) {
  try {
    for (int i = 1; i < threads; ++i) {
      const auto place = static_cast<std::size_t>(i);
      workers_.emplace_back([this, cpu = place < cpus.size() ? cpus[place] : -1] {
        if (cpu >= 0) keep_to(cpu);
        worker_loop();
      });
    }
  } catch (const std::exception& error) {
    // Those that did start wait for jobs; no destructor will run to end them.
    stop();
    throw resource_error(fmt::format("cannot start {} threads: {}", threads, error.what()),
                         "a smaller --threads");
  }
}

ThreadPool::~ThreadPool() {
  stop();
}

void ThreadPool::stop() {
  stop_.store(true);
  post(nullptr);
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_chunks(Job& job) {
  try {
    while (true) {
      const std::int64_t begin = job.next.fetch_add(job.chunk, std::memory_order_relaxed);
      if (begin >= job.count) return;
      job.function(job.context, begin, std::min(begin + job.chunk, job.count));
    }
  } catch (...) {
    job.next.store(job.count, std::memory_order_relaxed);
    const std::lock_guard lock(job.error_mutex);
    if (!job.error) job.error = std::current_exception();
  }
}

void ThreadPool::post(Job* job) {
  job_.store(job);
  posted_.fetch_add(1);
  if (sleeping_.load() == 0) return;
  { const std::lock_guard lock(mutex_); }  // who is about to sleep has either seen this or sleeps
  job_posted_.notify_all();
}

// No chunk is left: workers that have not come yet need not, those inside must leave before the job
// dies.
void ThreadPool::wait_until_left() {
  job_.store(nullptr);
  const auto left = [this] { return inside_.load() == 0; };
  if (spin_until(left)) return;
  waiting_.store(true);
  std::unique_lock lock(mutex_);
  workers_left_.wait(lock, left);
  waiting_.store(false);
}

void ThreadPool::run(Job& job) {
  post(&job);
  run_chunks(job);
  wait_until_left();
  if (job.error) std::rethrow_exception(job.error);
}

void ThreadPool::wait_for_job(std::uint64_t seen) {
  const auto posted = [&] { return posted_.load() != seen; };
  if (spin_until(posted)) return;
  std::unique_lock lock(mutex_);
  sleeping_.fetch_add(1);
  job_posted_.wait(lock, posted);
  sleeping_.fetch_sub(1);
}

void ThreadPool::worker_loop() {
  std::uint64_t seen = 0;
  while (true) {
    wait_for_job(seen);
    seen = posted_.load();
    if (stop_.load()) return;
    inside_.fetch_add(1);
    if (Job* const job = job_.load()) run_chunks(*job);
    if (inside_.fetch_sub(1) == 1 && waiting_.load()) {
      { const std::lock_guard lock(mutex_); }
      workers_left_.notify_one();
    }
  }
}

}  // namespace stagecoach
