#include "launcher/slab_pull.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <future>
#include <memory>
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

  // Waits for all, calling `report` in between. What a failing source leaves goes to those that did
  // not fail; throws what the last one said.
  void run(const std::vector<SlabSource>& sources, const std::function<void()>& report) {
    std::vector<bool> failed(sources.size(), false);
    while (!open_.empty()) {
      std::vector<std::future<bool>> threads(sources.size());
      std::size_t started = 0;
      for (std::size_t i = 0; i < sources.size(); ++i) {
        if (failed[i]) continue;
        ++started;
        threads[i] =
            std::async(std::launch::async, [this, &sources, i] { return fetch_from(sources[i]); });
      }
      if (started == 0) std::rethrow_exception(failure_);
      wait_for(threads, report);
      for (std::size_t i = 0; i < threads.size(); ++i)
        if (threads[i].valid() && !threads[i].get()) failed[i] = true;
      if (fatal_) std::rethrow_exception(failure_);
    }
  }

 private:
  void wait_for(std::vector<std::future<bool>>& threads, const std::function<void()>& report) {
    const auto running = [](const std::future<bool>& thread) {
      return thread.valid() &&
             thread.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
    };
    try {
      for (std::future<bool>& thread : threads)
        while (running(thread)) {
          thread.wait_for(kReportEvery);
          report();
        }
    } catch (...) {
      stopped_ = true;
      for (std::future<bool>& thread : threads)
        if (thread.valid()) thread.wait();
      throw;
    }
  }

  using ChunkReader = std::function<void(std::int64_t offset, std::span<std::byte> into)>;
  ChunkReader reader_of(const SlabSource& source) const {
    const std::string& name = draft_.slab().file;
    if (source.agent.address.empty()) {
      auto file =
          std::make_shared<File>(File::open_read(std::filesystem::path(source.store) / name));
      return
          [file](std::int64_t offset, std::span<std::byte> into) { file->read_at(offset, into); };
    }
    auto agent = std::make_shared<AgentClient>(source.agent, key_, source.agent.text(),
                                               [this] { return stopped_.load(); });
    return [agent, store = source.store, &name](std::int64_t offset, std::span<std::byte> into) {
      agent->read_range(store, name, offset, into);
    };
  }

  // False when the source failed.
  bool fetch_from(const SlabSource& source) {
    std::optional<std::int64_t> chunk;
    try {
      const ChunkReader read = reader_of(source);
      std::vector<std::byte> buffer(SlabDraft::kChunk);
      while ((chunk = take())) {
        const std::span<std::byte> bytes =
            std::span(buffer).first(static_cast<std::size_t>(draft_.chunk_bytes(*chunk)));
        read(*chunk * SlabDraft::kChunk, bytes);
        write(*chunk, bytes);
        chunk.reset();
      }
      return true;
    } catch (const std::exception& exception) {
      spdlog::debug("{} from {}: {}", draft_.slab().file, source.agent.text(), exception.what());
      const std::lock_guard lock(mutex_);
      if (chunk) open_.push_front(*chunk);
      failure_ = std::current_exception();
      return false;
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

void fetch(SlabDraft& draft, const SlabOrder& order, const Key& key,
           std::atomic<std::int64_t>& done, const std::function<void()>& report) {
  done += order.slab->bytes - draft.missing_bytes();
  SlabTransfer(draft, key, done).run(order.sources, report);
}

}  // namespace

void pull_slabs(const std::filesystem::path& store, const std::vector<SlabOrder>& orders,
                const Key& key, const Report& report) {
  std::int64_t total = 0;
  for (const SlabOrder& order : orders) total += order.slab->bytes;
  std::atomic<std::int64_t> done{0};
  const std::function<void()> tell = [&] { report(done, total); };
  const SlabOrder* checked = nullptr;
  std::shared_ptr<SlabDraft> draft;
  std::future<void> checking;
  const auto end_check = [&] {
    if (!checking.valid()) return;
    while (checking.wait_for(kReportEvery) != std::future_status::ready) tell();
    try {
      checking.get();
    } catch (const Error& error) {
      // A power cut may leave the note of a chunk that the disk never got: once more, from nothing.
      if (error.kind() != ErrorKind::kData || !draft->resumed()) throw;
      done -= checked->slab->bytes;
      SlabDraft again(store, *checked->slab);
      fetch(again, *checked, key, done, tell);
      again.finish();
    }
  };
  for (const SlabOrder& order : orders) {
    STAGECOACH_CHECK(!order.sources.empty());
    auto next = std::make_shared<SlabDraft>(store, *order.slab);
    fetch(*next, order, key, done, tell);
    end_check();
    draft = std::move(next);
    checked = &order;
    checking = std::async(std::launch::async, [draft] { draft->finish(); });
  }
  end_check();
  tell();
}

}  // namespace stagecoach
