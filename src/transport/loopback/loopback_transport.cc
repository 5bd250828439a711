#include "transport/loopback/loopback_transport.h"

#include <array>
#include <cstdlib>
#include <utility>

#include "base/hash.h"
#include "base/host.h"
#include "transport/inbox.h"

namespace stagecoach {
namespace {

// What the endpoints share. The last of them frees it.
struct Hub {
  Hub(int size, AbortHandler abort_handler)
      : host(host_name("localhost")), on_abort(std::move(abort_handler)), waiting_at_end(size) {
    for (int rank = 0; rank < size; ++rank) inboxes.push_back(std::make_unique<Inbox>(rank, size));
  }

  void fail_all(const Error& error) {
    for (auto& inbox : inboxes) inbox->fail(error);
    // The lock orders this after the predicate check of a rank about to wait in finalize.
    const std::lock_guard lock(mutex);
    everyone_finalized.notify_all();
  }

  const std::string host;
  const AbortHandler on_abort;
  std::vector<std::unique_ptr<Inbox>> inboxes;
  std::mutex mutex;
  std::condition_variable everyone_finalized;
  int waiting_at_end;  // ranks that have not called finalize yet
};

class LoopbackTransport final : public Transport {
 public:
  LoopbackTransport(std::shared_ptr<Hub> hub, int rank)
      : hub_(std::move(hub)), rank_(rank), sequences_(size()) {}

  ~LoopbackTransport() override {
    if (!finalized_)
      hub_->fail_all({ErrorKind::kPeerLost, fmt::format("lost rank {} on {}", rank_, hub_->host)});
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(hub_->inboxes.size()); }
  const std::string& host(int rank) const override {
    STAGECOACH_CHECK(0 <= rank && rank < size());
    return hub_->host;
  }

  void send(int to, Channel channel, std::vector<std::byte> payload) override {
    STAGECOACH_CHECK(0 <= to && to < size());
    WireHeader header{.channel = channel,
                      .source = static_cast<std::uint32_t>(rank_),
                      .destination = static_cast<std::uint32_t>(to),
                      .payload_bytes = payload.size(),
                      .payload_checksum = xxh3(payload)};
    const std::lock_guard lock(send_mutex_);
    header.sequence = sequences_.next(to, channel);
    hub_->inboxes[static_cast<std::size_t>(to)]->push(header, std::move(payload));
  }

  std::optional<Message> receive(Channel channel, Deadline deadline) override {
    return inbox().pop(channel, deadline);
  }

  bool flush(Deadline) override { return true; }

  [[noreturn]] void abort(int code) override {
    hub_->fail_all({ErrorKind::kPeerLost, fmt::format("rank {} on {} ended the job with code {}",
                                                      rank_, hub_->host, code)});
    if (hub_->on_abort) hub_->on_abort(rank_, code);
    std::_Exit(code);
  }

  void finalize() override {
    finalized_ = true;
    std::unique_lock lock(hub_->mutex);
    if (--hub_->waiting_at_end == 0) {
      hub_->everyone_finalized.notify_all();
      return;
    }
    hub_->everyone_finalized.wait(lock,
                                  [&] { return hub_->waiting_at_end == 0 || inbox().failed(); });
    if (hub_->waiting_at_end != 0) inbox().throw_if_failed();
  }

 private:
  Inbox& inbox() const { return *hub_->inboxes[static_cast<std::size_t>(rank_)]; }

  const std::shared_ptr<Hub> hub_;
  const int rank_;
  bool finalized_ = false;
  std::mutex send_mutex_;
  SequenceNumbers sequences_;
};

}  // namespace

std::vector<std::unique_ptr<Transport>> make_loopback(int size, AbortHandler on_abort) {
  STAGECOACH_CHECK(size > 0);
  const auto hub = std::make_shared<Hub>(size, std::move(on_abort));
  std::vector<std::unique_ptr<Transport>> endpoints;
  for (int rank = 0; rank < size; ++rank)
    endpoints.push_back(std::make_unique<LoopbackTransport>(hub, rank));
  return endpoints;
}

}  // namespace stagecoach
