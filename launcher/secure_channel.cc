#include "launcher/secure_channel.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <list>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "launcher/addresses.h"

namespace stagecoach {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

constexpr const char* kIdentity = "stagecoach";
constexpr const char* kCipher = "TLS_AES_128_GCM_SHA256";
constexpr std::array<unsigned char, 2> kCipherId{0x13, 0x01};
// Whoever comes then takes the place of who has waited longest: a handshake takes milliseconds.
constexpr int kMostHandshakes = 128;
constexpr int kMostSessions = 256;
// Of a frame: so long the other end may take to make room for it.
constexpr Seconds kSendPatience{20};

// Asio keeps pointers of its own in a context's application data, so the key has an index.
int key_index() {
  static const int index = SSL_CTX_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
  return index;
}

SSL_SESSION* make_session(SSL* ssl) {
  const auto* key = static_cast<const Key*>(SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), key_index()));
  const SSL_CIPHER* cipher = SSL_CIPHER_find(ssl, kCipherId.data());
  SSL_SESSION* session = SSL_SESSION_new();
  if (session == nullptr || cipher == nullptr ||
      SSL_SESSION_set1_master_key(session, key->bytes.data(), key->bytes.size()) != 1 ||
      SSL_SESSION_set_cipher(session, cipher) != 1 ||
      SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) != 1) {
    SSL_SESSION_free(session);
    return nullptr;
  }
  return session;
}

int use_session(SSL* ssl, const EVP_MD*, const unsigned char** id, std::size_t* id_bytes,
                SSL_SESSION** session) {
  *session = make_session(ssl);
  *id = reinterpret_cast<const unsigned char*>(kIdentity);
  *id_bytes = std::string_view(kIdentity).size();
  return *session != nullptr ? 1 : 0;
}

int find_session(SSL* ssl, const unsigned char* id, std::size_t id_bytes, SSL_SESSION** session) {
  const std::string_view identity(reinterpret_cast<const char*>(id), id_bytes);
  *session = identity == kIdentity ? make_session(ssl) : nullptr;
  return 1;  // without a session the handshake fails for want of a certificate
}

// Nobody has a certificate: the key is the proof. It must outlive the context.
asio::ssl::context tls_context(const Key& key) {
  asio::ssl::context context(asio::ssl::context::tlsv13);
  SSL_CTX* const native = context.native_handle();
  SSL_CTX_set_min_proto_version(native, TLS1_3_VERSION);
  SSL_CTX_set_num_tickets(native, 0);
  SSL_CTX_set_psk_use_session_callback(native, use_session);
  SSL_CTX_set_psk_find_session_callback(native, find_session);
  if (SSL_CTX_set_ciphersuites(native, kCipher) != 1 ||
      SSL_CTX_set_ex_data(native, key_index(), const_cast<Key*>(&key)) != 1)
    throw resource_error("OpenSSL offers no TLS 1.3 with AES-128-GCM");
  return context;
}

// A peer that vanishes with its power must not leave a connection that looks alive.
void set_options(tcp::socket& socket) {
  socket.set_option(tcp::no_delay(true));
  socket.set_option(asio::socket_base::keep_alive(true));
  const int fd = socket.native_handle();
  const auto milliseconds = static_cast<unsigned>(
      std::chrono::duration_cast<std::chrono::milliseconds>(kSilence + Seconds(2)).count());
  const int idle = 2, interval = 1, count = 4;
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof(milliseconds));
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
}

Error peer_lost(const std::string& peer, const std::string& problem, std::string hint = {}) {
  return {ErrorKind::kPeerLost, fmt::format("{}: {}", peer, problem), std::move(hint)};
}

}  // namespace

std::string Endpoint::text() const {
  return address.find(':') != std::string::npos ? fmt::format("[{}]:{}", address, port)
                                                : fmt::format("{}:{}", address, port);
}

// One thread uses a connection at a time: operations are started and waited for.
struct SecureChannel::Connection {
  Connection(std::string peer_in, const Key& key_in, Interrupted interrupted_in = {})
      : peer(std::move(peer_in)),
        key(key_in),
        context(tls_context(key)),
        stream(io, context),
        interrupted(std::move(interrupted_in)) {}

  // Starts an operation and runs it to its end or the deadline, whose end closes the socket, as an
  // interrupt does, which is thrown.
  template <typename Start>
  ErrorCode run(Seconds patience, const Start& start) {
    constexpr Clock::duration kLook = std::chrono::milliseconds(100);
    if (interrupted && interrupted()) stop();
    std::optional<ErrorCode> result;
    start([&result](const ErrorCode& error, const auto&...) { result = error; });
    const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(patience);
    bool asked_to_stop = false;
    while (!result && !asked_to_stop && Clock::now() < deadline) {
      io.restart();
      io.run_for(interrupted ? std::min(deadline - Clock::now(), kLook) : deadline - Clock::now());
      asked_to_stop = !result && interrupted && interrupted();
    }
    if (result) return *result;
    if (asked_to_stop) stop();
    close();
    return asio::error::timed_out;
  }

  // Whoever is at the other end notices.
  [[noreturn]] void stop() {
    close();
    broken = true;
    throw Error(ErrorKind::kInterrupted, "interrupted");
  }

  void close() {
    ErrorCode ignored;
    stream.lowest_layer().close(ignored);
    io.restart();
    io.run();
  }

  bool broken = false;
  std::string peer;
  const Key key;
  asio::io_context io;
  asio::ssl::context context;
  asio::ssl::stream<tcp::socket> stream;
  const Interrupted interrupted;
};

SecureChannel::SecureChannel(std::unique_ptr<Connection> connection)
    : connection_(std::move(connection)) {}
SecureChannel::SecureChannel(SecureChannel&&) noexcept = default;
SecureChannel& SecureChannel::operator=(SecureChannel&&) noexcept = default;
SecureChannel::~SecureChannel() = default;

const std::string& SecureChannel::peer() const {
  return connection_->peer;
}

bool SecureChannel::broken() const {
  return connection_->broken;
}

int SecureChannel::descriptor() const {
  return connection_->stream.lowest_layer().native_handle();
}

SecureChannel SecureChannel::connect(const Endpoint& endpoint, const Key& key,
                                     const std::string& name, const Interrupted& interrupted) {
  const std::string peer = name.empty() || name == endpoint.text()
                               ? endpoint.text()
                               : fmt::format("{} ({})", name, endpoint.text());
  const Lookup found = addresses_of(endpoint.address, kConnectPatience, interrupted);
  if (found.addresses.empty())
    throw peer_lost(peer, fmt::format("this name has no address: {}", found.problem),
                    "check `address` in [nodes]");
  std::vector<tcp::endpoint> places;
  for (const std::string& address : found.addresses)
    places.emplace_back(asio::ip::make_address(address), endpoint.port);
  auto connection = std::make_unique<Connection>(peer, key, interrupted);
  ErrorCode error = connection->run(kConnectPatience, [&](auto done) {
    asio::async_connect(connection->stream.lowest_layer(), places, done);
  });
  if (error)
    throw peer_lost(peer, fmt::format("no agent answers: {}", error.message()),
                    "on that PC: systemctl start stagecoach-agent, or stagecoach agent");
  set_options(connection->stream.next_layer());
  error = connection->run(kConnectPatience, [&](auto done) {
    connection->stream.async_handshake(asio::ssl::stream_base::client, done);
  });
  if (error == asio::error::timed_out)
    throw peer_lost(peer, "something listens there, but does not answer as an agent does");
  if (error == asio::error::eof || error == asio::ssl::error::stream_truncated)
    throw peer_lost(peer, "it closed the connection before the handshake: it is busy, or no agent");
  if (error)
    throw resource_error(
        fmt::format("{}: the agent there has another key, or this is no agent ({})", peer,
                    error.message()),
        "copy one key file to every PC: stagecoach agent --new-key FILE makes it");
  // A server may choose to show a certificate instead, and anybody has one.
  if (SSL_session_reused(connection->stream.native_handle()) != 1)
    throw resource_error(fmt::format("{}: what listens there does not have the key", peer),
                         "somebody may stand between you and that PC");
  return SecureChannel(std::move(connection));
}

void SecureChannel::send_frame(FrameKind kind, std::span<const std::byte> payload) {
  const auto header = frame_header(kind, payload.size());
  const std::array<asio::const_buffer, 2> buffers{asio::buffer(header),
                                                  asio::buffer(payload.data(), payload.size())};
  const ErrorCode error = connection_->run(
      kSendPatience, [&](auto done) { asio::async_write(connection_->stream, buffers, done); });
  if (!error) return;
  connection_->broken = true;
  throw peer_lost(peer(), fmt::format("the connection broke: {}", error.message()));
}

void SecureChannel::send(const Json& message) {
  const std::vector<std::byte> payload = message_payload(message);
  if (payload.size() > kMaxMessage)
    throw data_error(fmt::format("{}: a message of {} bytes is too long", peer(), payload.size()));
  send_frame(FrameKind::kMessage, payload);
}

void SecureChannel::send_data(std::span<const std::byte> data) {
  send_frame(FrameKind::kData, data);
}

void SecureChannel::read(std::span<std::byte> bytes, Seconds patience) {
  const ErrorCode error = connection_->run(patience, [&](auto done) {
    asio::async_read(connection_->stream, asio::buffer(bytes.data(), bytes.size()), done);
  });
  if (!error) return;
  connection_->broken = true;
  if (error == asio::error::timed_out)
    throw peer_lost(peer(), fmt::format("silent for {:.0f} s", patience.count()));
  if (error == asio::error::eof || error == asio::ssl::error::stream_truncated)
    throw peer_lost(peer(), "the connection was closed");
  throw peer_lost(peer(), fmt::format("the connection broke: {}", error.message()));
}

FrameStart SecureChannel::read_header(Seconds patience) {
  std::array<std::byte, kFrameHeader> header;
  read(header, patience);
  return parse_frame_header(header);
}

Frame SecureChannel::receive(Seconds patience) {
  const FrameStart start = read_header(patience);
  Frame frame{.kind = start.kind, .payload = std::vector<std::byte>(start.bytes)};
  if (start.bytes > 0) read(frame.payload, patience);
  return frame;
}

std::size_t SecureChannel::receive_data(std::span<std::byte> into, Seconds patience) {
  const FrameStart start = read_header(patience);
  if (start.kind != FrameKind::kData || start.bytes == 0 || start.bytes > into.size())
    throw FrameError(fmt::format("{}: expected 1 to {} bytes of data, found {} of {} bytes", peer(),
                                 into.size(), start.kind == FrameKind::kData ? "data" : "a message",
                                 start.bytes));
  read(into.first(start.bytes), patience);
  return start.bytes;
}

// A close amid what comes would have the system take back what was sent last.
void SecureChannel::close_gently() {
  constexpr Seconds kPatience{1};
  const int socket = descriptor();
  ::shutdown(socket, SHUT_WR);
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  std::array<std::byte, 65536> thrown_away;
  while (std::chrono::steady_clock::now() < deadline) {
    pollfd file{socket, POLLIN, 0};
    if (::poll(&file, 1, 100) > 0 &&
        ::recv(socket, thrown_away.data(), thrown_away.size(), MSG_DONTWAIT) <= 0)
      break;
  }
  connection_->broken = true;
}

// ---- Listening ----

struct SecureListener::State {
  explicit State(const Key& key_in) : key(key_in), acceptor(io) {}

  struct Running {
    std::thread thread;
    int descriptor = -1;  // a duplicate: the connection's own is closed by its thread
    std::atomic<bool> ended{false};
    std::atomic<bool> shaking{true};
  };

  std::unique_ptr<SecureChannel::Connection> shake_hands(tcp::socket::native_handle_type descriptor,
                                                         const std::string& peer);
  void serve(Running& running, tcp::socket::native_handle_type descriptor, const std::string& peer,
             const Session& session);
  void begin(tcp::socket socket, const tcp::endpoint& remote, const Session& session);
  void drop_longest_handshake();
  void join_ended();

  const Key key;
  asio::io_context io;
  tcp::acceptor acceptor;
  std::list<Running> sessions;
  std::atomic<int> handshakes{0};
  bool v6 = false;
};

SecureListener::SecureListener(const Endpoint& endpoint, const Key& key)
    : state_(std::make_unique<State>(key)) {
  ErrorCode error;
  const asio::ip::address address = asio::ip::make_address(endpoint.address, error);
  if (error)
    throw usage_error(fmt::format(
        "expected an address of this PC to listen on, like 0.0.0.0, found '{}'", endpoint.address));
  state_->v6 = address.is_v6();
  const tcp::endpoint place(address, endpoint.port);
  tcp::acceptor& acceptor = state_->acceptor;
  acceptor.open(place.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(place, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error)
    throw resource_error(fmt::format("cannot listen on {}: {}", endpoint.text(), error.message()),
                         "another agent may be running; --port takes another port");
}

SecureListener::~SecureListener() = default;

std::uint16_t SecureListener::port() const {
  return state_->acceptor.local_endpoint().port();
}

std::unique_ptr<SecureChannel::Connection> SecureListener::State::shake_hands(
    tcp::socket::native_handle_type descriptor, const std::string& peer) {
  std::unique_ptr<SecureChannel::Connection> connection;
  try {
    connection = std::make_unique<SecureChannel::Connection>(peer, key);
  } catch (const std::exception&) {
    ::close(descriptor);
    throw;
  }
  connection->stream.lowest_layer().assign(v6 ? tcp::v6() : tcp::v4(), descriptor);
  set_options(connection->stream.next_layer());
  const ErrorCode error = connection->run(kConnectPatience, [&](auto done) {
    connection->stream.async_handshake(asio::ssl::stream_base::server, done);
  });
  if (!error && SSL_session_reused(connection->stream.native_handle()) == 1) return connection;
  spdlog::warn("{}: turned away, it does not have the key ({})", peer, error.message());
  return nullptr;
}

void SecureListener::State::serve(Running& running, tcp::socket::native_handle_type descriptor,
                                  const std::string& peer, const Session& session) {
  std::unique_ptr<SecureChannel::Connection> connection;
  try {
    connection = shake_hands(descriptor, peer);
  } catch (const std::exception& exception) {
    spdlog::debug("{}: {}", peer, exception.what());
  }
  --handshakes;
  running.shaking = false;
  if (connection) try {
      SecureChannel channel(std::move(connection));
      session(channel);
    } catch (const std::exception& exception) {
      spdlog::debug("{}: {}", peer, exception.what());
    }
  running.ended = true;
}

void SecureListener::State::drop_longest_handshake() {
  const auto longest = std::find_if(sessions.begin(), sessions.end(),
                                    [](const Running& running) { return running.shaking.load(); });
  if (longest != sessions.end()) ::shutdown(longest->descriptor, SHUT_RDWR);
}

void SecureListener::State::begin(tcp::socket socket, const tcp::endpoint& remote,
                                  const Session& session) {
  const Endpoint peer{remote.address().to_string(), remote.port()};
  Running& running = sessions.emplace_back();
  const int descriptor = socket.release();
  running.descriptor = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 3);
  ++handshakes;
  try {
    running.thread = std::thread([this, &running, descriptor, name = peer.text(), &session] {
      serve(running, descriptor, name, session);
    });
  } catch (const std::system_error& error) {  // no more threads: this one goes away, others stay
    spdlog::warn("{}: {}", peer.text(), error.what());
    --handshakes;
    ::close(descriptor);
    ::close(running.descriptor);
    sessions.pop_back();
  }
}

void SecureListener::State::join_ended() {
  for (auto running = sessions.begin(); running != sessions.end();) {
    if (!running->ended) {
      ++running;
      continue;
    }
    running->thread.join();
    ::close(running->descriptor);
    running = sessions.erase(running);
  }
}

void SecureListener::run(const Session& session, const std::function<bool()>& stop) {
  State& state = *state_;
  while (!stop()) {
    std::optional<ErrorCode> result;
    tcp::socket socket(state.io);
    tcp::endpoint remote;
    state.acceptor.async_accept(socket, remote, [&](const ErrorCode& error) { result = error; });
    while (!result && !stop()) {
      state.io.restart();
      state.io.run_for(std::chrono::milliseconds(200));
      state.join_ended();
    }
    if (!result) {
      ErrorCode ignored;
      state.acceptor.cancel(ignored);
      state.io.restart();
      state.io.run();
      break;
    }
    if (*result) {  // out of descriptors, or the caller went away: no reason to end
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      continue;
    }
    if (state.sessions.size() >= kMostSessions + kMostHandshakes) continue;
    if (state.handshakes >= kMostHandshakes) state.drop_longest_handshake();
    state.begin(std::move(socket), remote, session);
  }
  for (State::Running& running : state.sessions) ::shutdown(running.descriptor, SHUT_RDWR);
  for (State::Running& running : state.sessions) {
    running.thread.join();
    ::close(running.descriptor);
  }
  state.sessions.clear();
}

}  // namespace stagecoach
