// A connection between launcher and agent, or two agents: TLS 1.3 with the cluster's key as
// pre-shared key (RFC 8446, 2.2), both ends proven by it, frames inside. Every wait has a deadline.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "launcher/channel.h"
#include "launcher/interruption.h"
#include "launcher/key.h"

namespace stagecoach {

inline constexpr std::uint16_t kAgentPort = 7317;
inline constexpr Seconds kConnectPatience{4};

struct Endpoint {
  std::string address;
  std::uint16_t port = kAgentPort;

  std::string text() const;
};

class SecureChannel : public Channel {
 public:
  // Throws kPeerLost when nobody answers, resource_error when the other end has another key. `name`
  // is the other end's in messages; empty: its address. Whatever waits, now or later, throws
  // kInterrupted soon after `interrupted` says so, and is broken then.
  static SecureChannel connect(const Endpoint& endpoint, const Key& key,
                               const std::string& name = {}, const Interrupted& interrupted = {});
  SecureChannel(SecureChannel&&) noexcept;
  SecureChannel& operator=(SecureChannel&&) noexcept;
  ~SecureChannel() override;

  const std::string& peer() const override;
  void send(const Json& message) override;
  void send_data(std::span<const std::byte> data) override;
  Frame receive(Seconds patience) override;
  std::size_t receive_data(std::span<std::byte> into, Seconds patience) override;
  void close_gently() override;
  bool broken() const override;
  int descriptor() const override;

 private:
  friend class SecureListener;
  struct Connection;
  explicit SecureChannel(std::unique_ptr<Connection> connection);
  void read(std::span<std::byte> bytes, Seconds patience);
  FrameStart read_header(Seconds patience);
  void send_frame(FrameKind kind, std::span<const std::byte> payload);
  std::unique_ptr<Connection> connection_;
};

// Waits for connections, and gives each a thread once it has shown the key.
class SecureListener {
 public:
  using Session = std::function<void(Channel&)>;

  // Port 0: any that is free. Throws resource_error when the address cannot be had.
  SecureListener(const Endpoint& endpoint, const Key& key);
  ~SecureListener();  // after run() has returned

  std::uint16_t port() const;
  // Until `stop` says so, asked a few times a second; then sessions are cut off and joined. What a
  // session throws ends it alone, and is logged.
  void run(const Session& session, const std::function<bool()>& stop);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stagecoach
