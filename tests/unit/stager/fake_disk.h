// A disk that lives in memory and misbehaves on purpose: reads finish in a seeded random order,
// late, short, wrong, with an error, or never.
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "stager/read_queue.h"

namespace stagecoach {

struct DiskScript {
  std::uint64_t seed = 1;
  std::chrono::microseconds delay{0};  // of each read
  // Strikes read number `fault_at` (from 0) and those after it.
  enum class Fault { kNone, kError, kShort, kFlip, kStall } fault = Fault::kNone;
  std::int64_t fault_at = 0;
};

class FakeDisk {
 public:
  // Descriptor 0 is this content.
  explicit FakeDisk(std::vector<std::byte> content) : content_(std::move(content)) {}

  std::unique_ptr<ReadQueue> queue(const DiskScript& script = {}, int depth = 4) {
    return std::make_unique<Queue>(*this, script, depth);
  }
  std::int64_t reads() const { return reads_; }
  std::int64_t bytes_read() const { return bytes_read_; }
  std::vector<std::byte>& content() { return content_; }

 private:
  class Queue final : public ReadQueue {
   public:
    Queue(FakeDisk& disk, const DiskScript& script, int depth)
        : disk_(disk), script_(script), depth_(depth), random_(script.seed) {}
    const char* name() const override { return "fake"; }
    int depth() const override { return depth_; }

    void submit(const ReadRequest& request) override {
      under_way_.push_back(request);
      most_ = std::max(most_, under_way_.size());
      if (under_way_.size() > static_cast<std::size_t>(depth_)) std::abort();
    }

    std::optional<ReadCompletion> wait(Deadline deadline) override {
      if (under_way_.empty()) return std::nullopt;
      std::this_thread::sleep_for(script_.delay);
      const std::size_t chosen = random_() % under_way_.size();
      const ReadRequest request = under_way_[chosen];
      const std::int64_t number = disk_.reads_++;
      const bool struck = number >= script_.fault_at;
      if (struck && script_.fault == DiskScript::Fault::kStall) {
        std::this_thread::sleep_until(deadline);
        return std::nullopt;
      }
      under_way_.erase(under_way_.begin() + static_cast<std::ptrdiff_t>(chosen));
      if (struck && script_.fault == DiskScript::Fault::kError)
        return ReadCompletion{.tag = request.tag, .bytes = 0, .error = EIO};
      auto bytes = static_cast<std::int64_t>(request.destination.size());
      if (struck && script_.fault == DiskScript::Fault::kShort) bytes /= 2;
      std::memcpy(request.destination.data(), disk_.content_.data() + request.offset,
                  static_cast<std::size_t>(bytes));
      if (struck && script_.fault == DiskScript::Fault::kFlip)
        request.destination[0] ^= std::byte{1};
      disk_.bytes_read_ += bytes;
      return ReadCompletion{.tag = request.tag, .bytes = bytes, .error = 0};
    }

   private:
    FakeDisk& disk_;
    DiskScript script_;
    int depth_;
    std::mt19937_64 random_;
    std::vector<ReadRequest> under_way_;
    std::size_t most_ = 0;
  };

  std::vector<std::byte> content_;
  std::atomic<std::int64_t> reads_{0}, bytes_read_{0};
};

}  // namespace stagecoach
