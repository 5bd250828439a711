// Messages as MPI sees them. Used by the comm thread alone.
//
// A flow is one channel between this rank and one peer; its messages travel one after the other,
// the flows side by side, so that a heartbeat never waits for a hidden state. A message is a frame
// (wire header, and the payload where it is short) followed by the chunks of a longer payload; what
// comes from a device is in chunks of its own. Each flow has a tag for frames and one for chunks,
// and MPI keeps the order of messages with equal tag.
#pragma once

#include <array>
#include <cstddef>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "transport/inbox.h"
#include "transport/mpi/device_access.h"
#include "transport/mpi/mpi_api.h"
#include "transport/mpi/outbox.h"
#include "transport/wire_header.h"

namespace stagecoach {

// Open MPI sends up to 4 KiB through shared memory and 64 KiB through TCP without asking the
// receiver.
inline constexpr std::size_t kFrameBytes = 2048;
inline constexpr std::size_t kInlineBytes = kFrameBytes - kWireHeaderBytes;
// Two chunks under way keep a link busy, and at most 16 MiB a flow stand before a heartbeat in a
// socket: 1.6 s on a slow radio link of 10 MB/s, far from the 6 s after which a peer counts as
// dead.
inline constexpr std::size_t kChunkBytes = std::size_t{8} << 20;
inline constexpr int kChunksUnderWay = 2;

class Progress {
 public:
  // Posts a receive for the next frame of every flow. `hosts` names ranks in errors.
  Progress(int rank, const std::vector<std::string>& hosts, Inbox& inbox, Outbox& outbox,
           DeviceAccess& device);

  // Queues `message` on its flow. As poll, throws Error(kPeerLost) naming the peer when MPI reports
  // a lost one, and kInternal on a corrupt header; nothing can be done with MPI after either but to
  // abort.
  void start(Outgoing message);

  // Moves everything that can move, without waiting. Returns whether anything completed.
  bool poll();

  bool sends_done() const { return busy_out_ == 0; }
  // Whether poll has payload to push, because MPI moves bytes only while it is called.
  bool bulk_under_way() const { return chunks_under_way_ > 0; }

  // For the orderly end, when no peer sends any more.
  void cancel_receives();

 private:
  struct InFlow {
    int peer = 0;
    Channel channel = Channel::kControl;
    std::array<std::byte, kFrameBytes> frame{};
    WireHeader header{};
    std::vector<std::byte> payload{};
    DeviceBytes device_end{};  // without data: it comes into payload, too
    std::size_t posted = 0;    // bytes of both
    int chunks = 0;            // under way
  };
  struct OutFlow {
    int peer = 0;
    Channel channel = Channel::kControl;
    std::deque<Outgoing> waiting{};  // the first one is on its way when busy
    std::array<std::byte, kFrameBytes> frame{};
    std::size_t posted = 0;
    int chunks = 0;
    bool frame_left = false;
    bool busy = false;
  };
  enum class Piece { kFrame, kChunk };
  struct Ticket {
    InFlow* in = nullptr;  // either in or out
    OutFlow* out = nullptr;
    Piece piece = Piece::kFrame;
  };

  void post_frame(InFlow& flow);
  void post_chunks(InFlow& flow);
  void post_chunks(OutFlow& flow);
  std::byte* place_of(InFlow& flow, std::size_t bytes);
  void start_next(OutFlow& flow);
  void handle(const Ticket& ticket, const MPI_Status& status);
  void frame_arrived(InFlow& flow, const MPI_Status& status);
  void deliver(InFlow& flow);
  void finish_if_left(OutFlow& flow);
  void track(int code, MPI_Request request, Ticket ticket);
  void forget_completed();
  void check_peer(int code, int peer) const;

  const int rank_;
  const std::vector<std::string>& hosts_;
  Inbox& inbox_;
  Outbox& outbox_;
  DeviceAccess& device_;
  // By peer × channel; flows stay where they are, since MPI writes into their frames.
  std::vector<std::unique_ptr<InFlow>> in_;
  std::vector<std::unique_ptr<OutFlow>> out_;
  // Parallel: what MPI_Testsome wants, and what each request is.
  std::vector<MPI_Request> requests_;
  std::vector<Ticket> tickets_;
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
  int busy_out_ = 0;
  int chunks_under_way_ = 0;
};

}  // namespace stagecoach
