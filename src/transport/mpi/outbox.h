// What the callers' threads hand to the thread that talks MPI.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "transport/inbox.h"
#include "transport/wire_header.h"

namespace stagecoach {

struct Outgoing {
  int to = 0;
  WireHeader header{};
  std::vector<std::byte> payload{};
  DeviceBytes device_end{};
};

// No lock is held across an MPI call, so that an abort gets through to its watchdog whatever state
// MPI is in.
class Outbox {
 public:
  explicit Outbox(int size) : sequences_(size) {}

  // Callers' side. submit numbers the message.
  void submit(Outgoing message);
  bool wait_until_left(Deadline deadline);  // whether everything submitted has left
  void request_end();                       // orderly: once everything has left
  void request_stop();                      // at once
  void request_abort(int code);

  // Comm thread's side.
  std::vector<Outgoing> take();
  void mark_left();  // one message is out of our hands
  void discard();    // nothing will ever leave again: frees flush and forgets what is queued
  void wait_for_work(std::chrono::nanoseconds at_most);
  bool end_requested() const { return end_; }
  bool stop_requested() const { return stop_; }
  std::optional<int> abort_requested() const;

 private:
  void wake();

  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable left_;
  SequenceNumbers sequences_;
  std::vector<Outgoing> queue_;
  std::size_t under_way_ = 0;  // submitted, not left
  bool discarding_ = false;
  // Outside the lock's protection, because the comm thread looks at them between any two polls.
  std::atomic<bool> work_waits_ = false;
  std::atomic<bool> end_ = false;
  std::atomic<bool> stop_ = false;
  std::atomic<bool> abort_ = false;
  std::atomic<int> abort_code_ = 0;
};

}  // namespace stagecoach
