#include "kernels/probe/probe.h"

#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstring>
#include <ctime>
#include <new>
#include <thread>
#include <vector>

#include "kernels/probe/dot_loops.h"

namespace stagecoach {

std::atomic<float> g_probe_source{1.0f}, g_probe_sink{0.0f};

namespace {

using Clock = std::chrono::steady_clock;

// What one thread did in one window.
struct Share {
  double amount = 0, processor_seconds = 0;
  Clock::time_point begin, end;
};
using Window = std::vector<Share>;  // by thread

// Runs `work(thread)`, which returns an amount, over and over on all threads. They begin each
// window together: of many short ones some pass without anybody in the way.
template <typename Work>
std::vector<Window> measure(const ProbeEffort& effort, const Work& work) {
  std::vector<Window> windows(static_cast<std::size_t>(effort.windows),
                              Window(static_cast<std::size_t>(effort.threads)));
  const auto length = std::chrono::duration<double>(effort.window_seconds);
  std::barrier<> together(effort.threads);
  const auto take_part = [&](int thread) {
    for (Window& window : windows) {
      together.arrive_and_wait();
      Share share;
      share.begin = Clock::now();
      const double begin_seconds = thread_seconds();
      do {
        share.amount += work(thread);
        share.end = Clock::now();
      } while (share.end - share.begin < length);
      share.processor_seconds = thread_seconds() - begin_seconds;
      window[static_cast<std::size_t>(thread)] = share;
    }
  };
  std::vector<std::jthread> threads;
  for (int t = 1; t < effort.threads; ++t) threads.emplace_back(take_part, t);
  take_part(0);
  threads.clear();  // waits
  return windows;
}

// Each thread by its own processor time.
double processor_rate(const Window& window) {
  double rate = 0;
  for (const Share& share : window) rate += share.amount / share.processor_seconds;
  return rate;
}

// All of them by the time of day, from the first begin to the last end.
double wall_rate(const Window& window) {
  double amount = 0;
  Clock::time_point begin = window[0].begin, end = window[0].end;
  for (const Share& share : window) {
    amount += share.amount;
    begin = std::min(begin, share.begin);
    end = std::max(end, share.end);
  }
  return amount / std::chrono::duration<double>(end - begin).count();
}

double best_rate(const std::vector<Window>& windows, double (*rate)(const Window&)) {
  double best = 0;
  for (const Window& window : windows) best = std::max(best, rate(window));
  return best;
}

double dot_rate(double (*run)(), const ProbeEffort& effort) {
  return best_rate(measure(effort, [run](int) { return run(); }), processor_rate);
}

constexpr int kChains = 12;

// Baseline instructions: four lanes of a multiplication, then an addition.
double f32_baseline() {
  using Four = float __attribute__((vector_size(16)));
  Four sum[kChains];
  for (Four& s : sum) s = Four{} + probe_value();
  const Four a = Four{} + probe_value(), b = a * 0.5f;
  for (int i = 0; i < kDotRounds; ++i)
#pragma GCC unroll 16
    for (Four& s : sum) s = s * b + a;
  for (const Four& s : sum) keep_probe_value(s[0]);
  return 2.0 * 4 * kChains * kDotRounds;
}

// One product at a time. Unsigned, since sums wrap.
double int8_baseline() {
  std::uint32_t sum[kChains];
  for (std::uint32_t& s : sum) s = static_cast<std::uint32_t>(probe_value());
  const auto b = static_cast<std::uint32_t>(probe_value()) + 2;
  for (int i = 0; i < kDotRounds; ++i)
#pragma GCC unroll 16
    for (std::uint32_t& s : sum) {
      asm volatile("" : "+r"(s));  // or the compiler would solve the recurrence
      s = s * b + b;
    }
  for (const std::uint32_t s : sum) keep_probe_value(static_cast<float>(s));
  return 2.0 * kChains * kDotRounds;
}

// The first loop for `type` that runs here and that `fits`.
template <typename Fits>
const DotLoop* best_loop(DotType type, const Fits& fits) {
  for (const DotLoop& loop : x86_dot_loops())
    if (loop.type == type && loop.runs_here() && fits(loop)) return &loop;
  return nullptr;
}

bool any_loop(const DotLoop&) {
  return true;
}

template <typename Fits>
DotPeak peak(DotType type, const ProbeEffort& effort, const Fits& fits) {
  if (const DotLoop* loop = best_loop(type, fits))
    return {dot_rate(loop->run, effort), loop->instructions};
  switch (type) {
    case DotType::kF32:
      return {dot_rate(f32_baseline, effort), "multiply, then add"};
    case DotType::kBF16:
      return {peak(DotType::kF32, effort, fits).ops_per_second, "as f32"};
    case DotType::kInt8:
      return {dot_rate(int8_baseline, effort), "scalar"};
  }
  return {};
}

// Memory that no thread has touched yet: each touches its own part, which places it near.
class Pages {
 public:
  explicit Pages(std::size_t bytes) : bytes_(bytes) {
    void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    // As the backend asks for its weights. Only advice, so no check.
    ::madvise(data, bytes, MADV_HUGEPAGE);
    data_ = static_cast<std::byte*>(data);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { ::munmap(data_, bytes_); }
  std::byte* data() const { return data_; }

 private:
  std::byte* data_;
  std::size_t bytes_;
};

using Words = std::uint64_t __attribute__((vector_size(16)));
constexpr std::size_t kLine = 4;                           // words of a cache line
constexpr std::size_t kBlockBytes = std::size_t{1} << 18;  // read between two looks at the clock

// Reads `count` words in kStreams runs side by side; returns the bytes. How many are fastest
// depends on the prefetchers.
template <std::size_t kStreams>
double read_words(const Words* data, std::size_t count) {
  Words sum[kStreams] = {};
  const std::size_t run = count / kStreams;
  for (std::size_t i = 0; i + kLine <= run; i += kLine)
    for (std::size_t s = 0; s < kStreams; ++s)
      for (std::size_t k = 0; k < kLine; ++k) sum[s] += data[s * run + i + k];
  for (std::size_t s = 1; s < kStreams; ++s) sum[0] += sum[s];
  keep_probe_value(static_cast<float>(sum[0][0]));
  return static_cast<double>(count * sizeof(Words));
}

// Which block a thread reads next, on a cache line of its own.
struct alignas(64) Cursor {
  std::size_t next = 0;
};

}  // namespace

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

bool has_dot(DotType type) {
  return best_loop(type, any_loop) != nullptr;
}

DotPeak probe_dot(DotType type, const ProbeEffort& effort) {
  return peak(type, effort, any_loop);
}

DotPeak probe_dot_of(const std::string& isa, DotType type, const ProbeEffort& effort) {
  return peak(type, effort, [&isa](const DotLoop& loop) { return isa.starts_with(loop.isa); });
}

double probe_memory_read(std::size_t bytes, const ProbeEffort& effort) {
  const auto threads = static_cast<std::size_t>(effort.threads);
  const std::size_t blocks = std::max(bytes / threads / kBlockBytes, std::size_t{1});
  const Pages pages(blocks * kBlockBytes * threads);
  const auto block_of = [&](int thread, std::size_t block) {
    return pages.data() + (static_cast<std::size_t>(thread) * blocks + block) * kBlockBytes;
  };
  measure({.threads = effort.threads, .windows = 1, .window_seconds = 0}, [&](int thread) {
    std::memset(block_of(thread, 0), 1, blocks * kBlockBytes);
    return 1.0;
  });
  constexpr double (*kReaders[])(const Words*, std::size_t) = {read_words<1>, read_words<2>,
                                                               read_words<4>};
  std::vector<Cursor> cursors(threads);
  double best = 0;
  for (const auto read : kReaders) {
    const std::vector<Window> windows = measure(effort, [&](int thread) {
      std::size_t& next = cursors[static_cast<std::size_t>(thread)].next;
      const std::byte* block = block_of(thread, next);
      next = (next + 1) % blocks;
      return read(reinterpret_cast<const Words*>(block), kBlockBytes / sizeof(Words));
    });
    best = std::max(best, best_rate(windows, threads == 1 ? processor_rate : wall_rate));
  }
  return best;
}

}  // namespace stagecoach
