#include "backend/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

namespace stagecoach {
namespace {

TEST(ThreadPool, VisitsEveryIndexOnceWhateverTheChunk) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const std::int64_t count : {0, 1, 7, 1000})
      for (const std::int64_t chunk : {1, 3, 2000}) {
        std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
        pool.parallel_for(count, chunk, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
        });
        for (const std::atomic<int>& visit : visits) ASSERT_EQ(visit, 1);
      }
  }
}

TEST(ThreadPool, WorkersKeepToTheirProcessors) {
  cpu_set_t mask;
  ASSERT_EQ(sched_getaffinity(0, sizeof mask, &mask), 0);
  int last = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &mask)) last = cpu;
  ThreadPool pool(2, {0, last});
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<bool> seen = false;
  // Until the worker has taken part.
  for (int job = 0; job < 1000 && !seen; ++job)
    pool.parallel_for(2, 1, [&](std::int64_t, std::int64_t) {
      if (std::this_thread::get_id() == caller) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return;
      }
      cpu_set_t own;
      EXPECT_EQ(sched_getaffinity(0, sizeof own, &own), 0);
      EXPECT_EQ(CPU_COUNT(&own), 1);
      EXPECT_TRUE(CPU_ISSET(last, &own));
      seen = true;
    });
  EXPECT_TRUE(seen);
}

TEST(ThreadPool, ManySmallJobsInARow) {
  ThreadPool pool(4);
  std::atomic<std::int64_t> sum = 0;
  for (int job = 0; job < 5000; ++job)
    pool.parallel_for(8, 1, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
  EXPECT_EQ(sum, 40000);
}

TEST(ThreadPool, WakesWorkersThatWentToSleep) {
  ThreadPool pool(3);
  for (int job = 0; job < 3; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> chunks = 0;
    pool.parallel_for(64, 1, [&](std::int64_t, std::int64_t) { ++chunks; });
    EXPECT_EQ(chunks, 64);
  }
}

// Two chunks that wait for each other end only when two threads run them.
TEST(ThreadPool, WorkersReallyTakePart) {
  ThreadPool pool(2);
  std::atomic<int> arrived = 0;
  pool.parallel_for(2, 1, [&](std::int64_t, std::int64_t) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 2);
}

TEST(ThreadPool, RethrowsAndStaysUsable) {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    EXPECT_THROW(pool.parallel_for(100, 1,
                                   [](std::int64_t begin, std::int64_t) {
                                     if (begin == 0) throw std::runtime_error("first chunk");
                                   }),
                 std::runtime_error);
    std::atomic<std::int64_t> sum = 0;
    pool.parallel_for(100, 1, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
    EXPECT_EQ(sum, 100);
  }
}

}  // namespace
}  // namespace stagecoach
