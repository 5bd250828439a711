#include "transport/mpi/progress.h"

#include <algorithm>
#include <new>
#include <utility>

#include "transport/mpi/mpi_error.h"

namespace stagecoach {
namespace {

int frame_tag(Channel channel) {
  return static_cast<int>(channel);
}
int chunk_tag(Channel channel) {
  return kChannels + static_cast<int>(channel);
}

std::size_t flow_index(int peer, Channel channel) {
  return static_cast<std::size_t>(peer) * kChannels + static_cast<std::size_t>(channel);
}

// Of the chunk that begins after `posted` bytes of the payload: both ends must come to the same.
std::size_t chunk_bytes(const WireHeader& header, std::size_t posted) {
  const std::size_t end = posted < header.host_bytes() ? header.host_bytes() : header.payload_bytes;
  return std::min(kChunkBytes, end - posted);
}
bool is_inline(const WireHeader& header) {
  return header.host_bytes() <= kInlineBytes;
}

}  // namespace

Progress::Progress(int rank, const std::vector<std::string>& hosts, Inbox& inbox, Outbox& outbox,
                   DeviceAccess& device)
    : rank_(rank), hosts_(hosts), inbox_(inbox), outbox_(outbox), device_(device) {
  for (int peer = 0; peer < static_cast<int>(hosts.size()); ++peer) {
    for (int c = 0; c < kChannels; ++c) {
      const auto channel = static_cast<Channel>(c);
      in_.push_back(std::make_unique<InFlow>(InFlow{.peer = peer, .channel = channel}));
      out_.push_back(std::make_unique<OutFlow>(OutFlow{.peer = peer, .channel = channel}));
      if (peer != rank) post_frame(*in_.back());
    }
  }
}

void Progress::post_frame(InFlow& flow) {
  MPI_Request request = MPI_REQUEST_NULL;
  const int code = MPI_Irecv(flow.frame.data(), kFrameBytes, MPI_BYTE, flow.peer,
                             frame_tag(flow.channel), MPI_COMM_WORLD, &request);
  track(code, request, {.in = &flow});
}

// Where the next `bytes` of a payload are to be.
std::byte* Progress::place_of(InFlow& flow, std::size_t bytes) {
  if (flow.device_end.data != nullptr && flow.posted >= flow.header.host_bytes()) {
    device_.use_device();
    return flow.device_end.data.get() + (flow.posted - flow.header.host_bytes());
  }
  // Within what frame_arrived reserved, so nothing moves; the page faults of a long payload are
  // spread over its arrival.
  flow.payload.resize(flow.posted + bytes);
  return flow.payload.data() + flow.posted;
}

void Progress::post_chunks(InFlow& flow) {
  while (flow.chunks < kChunksUnderWay && flow.posted < flow.header.payload_bytes) {
    const std::size_t bytes = chunk_bytes(flow.header, flow.posted);
    MPI_Request request = MPI_REQUEST_NULL;
    const int code = MPI_Irecv(place_of(flow, bytes), static_cast<int>(bytes), MPI_BYTE, flow.peer,
                               chunk_tag(flow.channel), MPI_COMM_WORLD, &request);
    track(code, request, {.in = &flow, .piece = Piece::kChunk});
    flow.posted += bytes;
    ++flow.chunks;
    ++chunks_under_way_;
  }
}

void Progress::post_chunks(OutFlow& flow) {
  const Outgoing& message = flow.waiting.front();
  const std::size_t on_host = message.header.host_bytes();
  while (flow.chunks < kChunksUnderWay && flow.posted < message.header.payload_bytes) {
    const std::size_t bytes = chunk_bytes(message.header, flow.posted);
    const bool on_device = flow.posted >= on_host;
    if (on_device) device_.use_device();
    const std::byte* const from = on_device
                                      ? message.device_end.data.get() + (flow.posted - on_host)
                                      : message.payload.data() + flow.posted;
    MPI_Request request = MPI_REQUEST_NULL;
    const int code = MPI_Isend(from, static_cast<int>(bytes), MPI_BYTE, flow.peer,
                               chunk_tag(flow.channel), MPI_COMM_WORLD, &request);
    track(code, request, {.out = &flow, .piece = Piece::kChunk});
    flow.posted += bytes;
    ++flow.chunks;
    ++chunks_under_way_;
  }
}

void Progress::start(Outgoing message) {
  OutFlow& flow = *out_[flow_index(message.to, message.header.channel)];
  flow.waiting.push_back(std::move(message));
  if (!flow.busy) start_next(flow);
}

void Progress::start_next(OutFlow& flow) {
  if (flow.waiting.empty()) return;
  const Outgoing& message = flow.waiting.front();
  const auto header = encode_wire_header(message.header);
  auto end = std::copy(header.begin(), header.end(), flow.frame.begin());
  if (is_inline(message.header))
    end = std::copy(message.payload.begin(), message.payload.end(), end);

  flow.busy = true;
  flow.frame_left = false;
  flow.posted = is_inline(message.header) ? message.payload.size() : 0;
  ++busy_out_;
  MPI_Request request = MPI_REQUEST_NULL;
  const int code =
      MPI_Isend(flow.frame.data(), static_cast<int>(end - flow.frame.begin()), MPI_BYTE, flow.peer,
                frame_tag(flow.channel), MPI_COMM_WORLD, &request);
  track(code, request, {.out = &flow});
  post_chunks(flow);
}

bool Progress::poll() {
  if (requests_.empty()) return false;
  indices_.resize(requests_.size());
  statuses_.resize(requests_.size());
  int completed = 0;
  const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &completed,
                                indices_.data(), statuses_.data());
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) check_mpi(code, "MPI_Testsome");
  if (completed == MPI_UNDEFINED || completed == 0) return false;

  // Handling posts new requests, so first put the finished ones aside.
  std::vector<std::pair<Ticket, MPI_Status>> done;
  for (int i = 0; i < completed; ++i) {
    const auto& ticket = tickets_[static_cast<std::size_t>(indices_[static_cast<std::size_t>(i)])];
    const auto& status = statuses_[static_cast<std::size_t>(i)];
    if (code == MPI_ERR_IN_STATUS)
      check_peer(status.MPI_ERROR, ticket.in != nullptr ? ticket.in->peer : ticket.out->peer);
    done.emplace_back(ticket, status);
  }
  forget_completed();
  for (const auto& [ticket, status] : done) handle(ticket, status);
  return true;
}

void Progress::handle(const Ticket& ticket, const MPI_Status& status) {
  if (ticket.in != nullptr) {
    InFlow& flow = *ticket.in;
    if (ticket.piece == Piece::kFrame) return frame_arrived(flow, status);
    --flow.chunks;
    --chunks_under_way_;
    post_chunks(flow);
    if (flow.chunks == 0) deliver(flow);
    return;
  }
  OutFlow& flow = *ticket.out;
  if (ticket.piece == Piece::kFrame) {
    flow.frame_left = true;
  } else {
    --flow.chunks;
    --chunks_under_way_;
    post_chunks(flow);
  }
  finish_if_left(flow);
}

void Progress::frame_arrived(InFlow& flow, const MPI_Status& status) {
  int received = 0;
  check_mpi(MPI_Get_count(&status, MPI_BYTE, &received), "MPI_Get_count");
  const auto frame =
      std::span<const std::byte>(flow.frame).first(static_cast<std::size_t>(received));
  flow.header = decode_wire_header(frame);
  const auto rest = frame.subspan(kWireHeaderBytes);
  if (flow.header.source != static_cast<std::uint32_t>(flow.peer) ||
      flow.header.channel != flow.channel ||
      rest.size() != (is_inline(flow.header) ? flow.header.host_bytes() : 0))
    throw Error(ErrorKind::kInternal,
                fmt::format("corrupt message from rank {} on {}: its header does not fit its frame",
                            flow.peer, hosts_[static_cast<std::size_t>(flow.peer)]));
  std::size_t on_host = flow.header.payload_bytes;
  if (flow.header.device_bytes > 0) {
    device_.use_device();
    if (auto memory = device_.take(flow.header.device_bytes)) {
      flow.device_end = {std::move(memory), flow.header.device_bytes};
      on_host = flow.header.host_bytes();
    }
  }
  // The size is safe to allocate: the header's checksum held, and kMaxPayloadBytes bounds it.
  try {
    flow.payload.reserve(on_host);
  } catch (const std::bad_alloc&) {
    throw resource_error(fmt::format("rank {} has no memory for a message of {} bytes from rank {}",
                                     rank_, on_host, flow.peer),
                         "use smaller micro-batches (--micro-batch)");
  }
  flow.payload.assign(rest.begin(), rest.end());
  flow.posted = rest.size();
  if (flow.posted == flow.header.payload_bytes) return deliver(flow);
  post_chunks(flow);
}

void Progress::deliver(InFlow& flow) {
  inbox_.push(flow.header, std::exchange(flow.payload, {}), std::exchange(flow.device_end, {}));
  post_frame(flow);
}

void Progress::finish_if_left(OutFlow& flow) {
  if (!flow.frame_left || flow.chunks > 0) return;
  flow.waiting.pop_front();
  flow.busy = false;
  --busy_out_;
  outbox_.mark_left();
  start_next(flow);
}

void Progress::cancel_receives() {
  for (auto& request : requests_) check_mpi(MPI_Cancel(&request), "MPI_Cancel");
  while (!requests_.empty()) {
    indices_.resize(requests_.size());
    int completed = 0;
    check_mpi(MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &completed,
                           indices_.data(), MPI_STATUSES_IGNORE),
              "MPI_Testsome");
    forget_completed();
  }
}

void Progress::track(int code, MPI_Request request, Ticket ticket) {
  check_peer(code, ticket.in != nullptr ? ticket.in->peer : ticket.out->peer);
  requests_.push_back(request);
  tickets_.push_back(ticket);
}

void Progress::forget_completed() {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL) continue;
    requests_[kept] = requests_[i];
    tickets_[kept++] = tickets_[i];
  }
  requests_.resize(kept);
  tickets_.resize(kept);
}

void Progress::check_peer(int code, int peer) const {
  if (code != MPI_SUCCESS)
    throw Error(ErrorKind::kPeerLost,
                fmt::format("rank {} on {} lost rank {} on {}: {}", rank_,
                            hosts_[static_cast<std::size_t>(rank_)], peer,
                            hosts_[static_cast<std::size_t>(peer)], mpi_error_text(code)));
}

}  // namespace stagecoach
