// Transport over MPI. One thread talks MPI, from MPI_Init to MPI_Finalize, because Open MPI has no
// progress thread of its own and its thread-multiple mode a long record of hangs over TCP: while
// compute threads work, this one keeps polling, and sleeps between polls when nothing moves.
#pragma once

#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "transport/inbox.h"
#include "transport/mpi/device_access.h"
#include "transport/mpi/outbox.h"
#include "transport/mpi/progress.h"
#include "transport/transport.h"

namespace stagecoach {

class MpiTransport final : public Transport, private DeviceMessages {
 public:
  MpiTransport();
  // Without finalize before it, leaves MPI unfinalized: the launcher then ends the job once this
  // process has ended, as it does for a crash.
  ~MpiTransport() override;

  int rank() const override { return topology_.rank; }
  int size() const override { return static_cast<int>(topology_.hosts.size()); }
  const std::string& host(int rank) const override;

  // After a failure messages are discarded; every reader learns of it.
  void send(int to, Channel channel, std::vector<std::byte> payload) override;
  std::optional<Message> receive(Channel channel, Deadline deadline) override;
  DeviceMessages* device_messages() override { return knows_devices_ ? this : nullptr; }
  bool flush(Deadline deadline) override;
  [[noreturn]] void abort(int code) override;
  // Throws Error(kPeerLost) when a rank has not come to its end kFinalizeLimit later.
  void finalize() override;

 private:
  void lend(DeviceMemory memory) override { device_.lend(std::move(memory)); }
  void send_from_device(int to, Channel channel, std::vector<std::byte> payload,
                        DeviceBytes end) override;
  void submit(int to, Channel channel, std::vector<std::byte> payload, DeviceBytes end);

  struct Topology {
    int rank = 0;
    std::vector<std::string> hosts;  // by rank
  };

  static Topology start_mpi();
  static std::vector<std::string> exchange_hosts(int size);
  void run(std::promise<void> started);
  void move_messages();
  bool move_once();
  bool called_back() const { return outbox_->stop_requested() || outbox_->abort_requested(); }

  Topology topology_;
  bool knows_devices_ = false;
  DeviceAccess device_;
  std::unique_ptr<Inbox> inbox_;
  std::unique_ptr<Outbox> outbox_;
  std::unique_ptr<Progress> progress_;  // the comm thread's
  std::promise<void> ended_;
  std::thread comm_thread_;
};

}  // namespace stagecoach
