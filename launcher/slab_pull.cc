#include "launcher/slab_pull.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <future>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "base/log.h"

namespace stagecoach {
namespace {

constexpr auto kReportEvery = std::chrono::milliseconds(250);

// The chunks of one slab, handed out to a thread for each source.
class SlabTransfer {
 public:
  SlabTransfer(SlabDraft& draft, const Key& key, std::atomic<std::int64_t>& done)
      : draft_(draft), key_(key), done_(done) {
    for (const std::int64_t chunk : draft.missing_chunks()) open_.push_back(chunk);
  }

  // Waits for all, calling `report` in between; throws what the last source said if chunks are
  // left.
  void run(const std::vector<SlabSource>& sources, const std::function<void()>& report) {
    std::vector<std::future<void>> threads;
    for (const SlabSource& source : sources)
      threads.push_back(std::async(std::launch::async, [this, &source] { fetch_from(source); }));
    const auto running = [&] {
      return std::any_of(threads.begin(), threads.end(), [](const std::future<void>& thread) {
        return thread.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
      });
    };
    try {
      while (running()) {
        threads.front().wait_for(kReportEvery);
        report();
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    } catch (...) {
      stopped_ = true;
      for (std::future<void>& thread : threads) thread.wait();
      throw;
    }
    if (failure_ && (fatal_ || !open_.empty())) std::rethrow_exception(failure_);
  }

 private:
  void fetch_from(const SlabSource& source) {
    std::optional<std::int64_t> chunk;
    try {
      AgentClient agent(source.agent, key_, source.agent.text());
      std::vector<std::byte> buffer(SlabDraft::kChunk);
      while ((chunk = take())) {
        const std::span<std::byte> bytes =
            std::span(buffer).first(static_cast<std::size_t>(draft_.chunk_bytes(*chunk)));
        agent.read_range(source.store, draft_.slab().file, *chunk * SlabDraft::kChunk, bytes);
        write(*chunk, bytes);
        chunk.reset();
      }
    } catch (const Error& error) {
      spdlog::debug("{} from {}: {}", draft_.slab().file, source.agent.text(), error.what());
      const std::lock_guard lock(mutex_);
      if (chunk) open_.push_front(*chunk);
      failure_ = std::current_exception();
    }
  }

  std::optional<std::int64_t> take() {
    const std::lock_guard lock(mutex_);
    if (stopped_ || fatal_ || open_.empty()) return std::nullopt;
    const std::int64_t chunk = open_.front();
    open_.pop_front();
    return chunk;
  }

  void write(std::int64_t chunk, std::span<const std::byte> bytes) {
    try {
      draft_.write(chunk, bytes);
      const std::lock_guard lock(mutex_);
      draft_.note(chunk);
    } catch (const Error&) {  // a full disk is no source's fault
      fatal_ = true;
      throw;
    }
    done_ += static_cast<std::int64_t>(bytes.size());
  }

  SlabDraft& draft_;
  const Key& key_;
  std::atomic<std::int64_t>& done_;
  std::mutex mutex_;
  std::deque<std::int64_t> open_;
  std::exception_ptr failure_;
  std::atomic<bool> stopped_{false}, fatal_{false};
};

}  // namespace

void pull_slabs(const std::filesystem::path& store, const std::vector<SlabOrder>& orders,
                const Key& key, const Report& report) {
  std::int64_t total = 0;
  for (const SlabOrder& order : orders) total += order.slab->bytes;
  std::atomic<std::int64_t> done{0};
  const auto tell = [&] { report(done, total); };
  std::future<void> checking;
  for (const SlabOrder& order : orders) {
    STAGECOACH_CHECK(!order.sources.empty());
    auto draft = std::make_shared<SlabDraft>(store, *order.slab);
    done += order.slab->bytes - draft->missing_bytes();
    SlabTransfer(*draft, key, done).run(order.sources, tell);
    if (checking.valid()) checking.get();
    checking = std::async(std::launch::async, [draft] { draft->finish(); });
  }
  while (checking.valid() && checking.wait_for(kReportEvery) != std::future_status::ready) tell();
  if (checking.valid()) checking.get();
  tell();
}

}  // namespace stagecoach
