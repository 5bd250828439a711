// One connection to an agent, from a peer that has shown the key: requests, one after the other.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "base/clock.h"
#include "launcher/agent.h"
#include "launcher/processes.h"
#include "launcher/rate_limit.h"
#include "launcher/slab_pull.h"
#include "launcher/store_files.h"

namespace stagecoach {

struct AgentContext {
  explicit AgentContext(AgentConfig config_in)
      : config(std::move(config_in)), limit(config.bytes_per_second) {}

  AgentConfig config;
  RateLimit limit;
};

class AgentSession {
 public:
  AgentSession(AgentContext& context, Channel& channel) : context_(context), channel_(channel) {}
  ~AgentSession();

  // Until the peer closes or falls silent, which throws kPeerLost.
  void run();

 private:
  // A reply {"ok": true, …}, or what was wrong; the connection goes on.
  void answer(const Json& request);
  void dispatch(const std::string& name, const JsonObject& request);

  void facts(const JsonObject& request);
  void store(const JsonObject& request);
  void verify(const JsonObject& request);
  void disk_rate(const JsonObject& request);
  void read(const JsonObject& request);
  void put(const JsonObject& request);
  void pull(const JsonObject& request);
  void commit(const JsonObject& request);
  void link(const JsonObject& request);
  void sink(const JsonObject& request);
  void install(const JsonObject& request);
  void probe(const JsonObject& request);
  void start(const JsonObject& request);
  void attend(Child& child);
  void hold(const JsonObject& request);
  void end(const JsonObject& request);
  void ranks(const JsonObject& request);
  void job_folder(const JsonObject& request);
  void job_files(const JsonObject& request);
  void read_job(const JsonObject& request);
  void put_job(const JsonObject& request);
  void forget_job(const JsonObject& request);

  void ping();
  // Whether nobody waits for the answer any more.
  Interrupted abandoned() const;
  void ok(Json reply = Json::object());
  std::filesystem::path store_of(const JsonObject& request) const;
  std::filesystem::path folder_of_job(const JsonObject& request) const;
  // Bytes that follow a request, in frames.
  void receive_content(std::int64_t bytes,
                       const std::function<void(std::span<const std::byte>)>& take);
  std::string receive_text(const JsonObject& request);  // "bytes" of it
  void send_file(const File& file, std::int64_t offset, std::int64_t bytes);

  AgentContext& context_;
  Channel& channel_;
  std::vector<std::byte> buffer_;  // of content on its way
  std::string held_job_;           // whose processes end with this connection
  std::filesystem::path held_folder_;
  Clock::time_point touched_{};
};

// Throws usage_error unless it can be the name of a launched job.
void check_job_name(const std::string& job);

}  // namespace stagecoach
