#include "transport/mpi/outbox.h"

#include <utility>

namespace stagecoach {

void Outbox::submit(Outgoing message) {
  {
    const std::lock_guard lock(mutex_);
    message.header.sequence = sequences_.next(message.to, message.header.channel);
    if (discarding_) return;
    queue_.push_back(std::move(message));
    ++under_way_;
    work_waits_ = true;
  }
  work_.notify_one();
}

bool Outbox::wait_until_left(Deadline deadline) {
  std::unique_lock lock(mutex_);
  return left_.wait_until(lock, deadline, [&] { return under_way_ == 0 || discarding_; }) &&
         !discarding_;
}

void Outbox::wake() {
  {
    const std::lock_guard lock(mutex_);
    work_waits_ = true;
  }
  work_.notify_one();
}

void Outbox::request_end() {
  end_ = true;
  wake();
}

void Outbox::request_stop() {
  stop_ = true;
  wake();
}

void Outbox::request_abort(int code) {
  abort_code_ = code;
  abort_ = true;
  wake();
}

std::optional<int> Outbox::abort_requested() const {
  if (!abort_) return std::nullopt;
  return abort_code_.load();
}

std::vector<Outgoing> Outbox::take() {
  if (!work_waits_) return {};
  const std::lock_guard lock(mutex_);
  work_waits_ = false;
  return std::exchange(queue_, {});
}

void Outbox::mark_left() {
  const std::lock_guard lock(mutex_);
  if (--under_way_ == 0) left_.notify_all();
}

void Outbox::discard() {
  const std::lock_guard lock(mutex_);
  discarding_ = true;
  work_waits_ = false;  // nobody will take work any more, and a waiter must not spin on it
  queue_.clear();
  left_.notify_all();
}

void Outbox::wait_for_work(std::chrono::nanoseconds at_most) {
  std::unique_lock lock(mutex_);
  work_.wait_for(lock, at_most, [&] { return work_waits_.load(); });
}

}  // namespace stagecoach
