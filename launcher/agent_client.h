// The launcher's side of a conversation with an agent.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "launcher/host_facts.h"
#include "launcher/secure_channel.h"
#include "launcher/store_files.h"

namespace stagecoach {

// A slab's file, as another host has it.
struct SlabSource {
  Endpoint agent;     // without an address: it lies on the same host, in another store
  std::string store;  // there
};
Json to_json(const SlabSource& source);
SlabSource source_from_json(const Json& json, const std::string& where);

// Where a job's files are on a host.
struct JobFolder {
  std::string path;
  std::optional<std::int64_t>
      free_bytes;  // of its file system; an agent of an older build has none
};
JobFolder job_folder_from_json(const Json& json, const std::string& where);

struct LinkRate {
  double latency = 0;  // seconds of a small message, one way
  double bytes_per_second = 0;
};

// Called with what is done of how much, a few times a second; throws to stop.
using Report = std::function<void(std::int64_t done, std::int64_t total)>;

// One connection; one thread at a time. Everything throws what the agent says went wrong, with its
// host's name in front, and kPeerLost when it falls silent.
class AgentClient {
 public:
  // `name` is the host's in messages. Throws also when the agent speaks another protocol; this and
  // whatever waits later throw kInterrupted soon after `interrupted` says so.
  AgentClient(const Endpoint& endpoint, const Key& key, std::string name,
              const Interrupted& interrupted = {});

  // `store` may be empty.
  HostFacts facts(const std::string& store);
  StoreContents store(const std::string& path);
  // Reads every slab. One line for each problem.
  std::vector<std::string> verify(const std::string& store, const Report& report);
  double disk_rate(const std::string& store);  // bytes a second, measured now; 0: cannot be
  LinkRate link_to(const Endpoint& other);     // from there, measured now
  LinkRate measure_link(int pings, std::int64_t bytes, Seconds time);  // from here
  // Its clock minus ours, seconds: of the quickest of some questions.
  double clock_offset();
  // Runs `probe` there, and waits for it: some seconds.
  void probe(const std::string& store);

  // As many bytes of a store's file as `into` has room for.
  void read_range(const std::string& store, const std::string& file, std::int64_t offset,
                  std::span<std::byte> into);
  std::vector<std::byte> read_file(const std::string& store, const StoreFile& file);
  void put_file(const std::string& store, const std::string& name,
                std::span<const std::byte> content);
  // Fetches `slabs` of the manifest, each from one or more of its sources.
  void pull(const std::string& store, const Manifest& manifest,
            const std::vector<std::string>& slabs,
            const std::vector<std::vector<SlabSource>>& sources, const Report& report);
  void commit(const std::string& store, const Manifest& update);

  // Puts this machine's binary and modules there; the path of the binary.
  std::string install(const std::string& content, const std::vector<std::string>& files,
                      const std::string& root);

  // From now on the job's processes there end when this connection does, and its files, which may
  // be those of another name, count as in use. It must be pinged.
  void hold(const std::string& job, const std::string& files);
  void ping(Seconds patience = kSilence);
  int end(const std::string& job);
  // Of the job's processes there, its ranks; an agent of an older build does not count them.
  std::optional<int> ranks(const std::string& job);

  // Made if need be.
  JobFolder job_folder(const std::string& job);
  std::vector<StoreFile> job_files(const std::string& job);  // paths below that folder
  std::vector<std::byte> read_job_file(const std::string& job, const std::string& name);
  void put_job_file(const std::string& job, const std::string& name,
                    std::span<const std::byte> content);
  void forget_job(const std::string& job);  // its folder

  // Starts Open MPI's daemon there, as a remote shell would, and stays with it: what it prints,
  // goes to stdout and stderr here. Its exit code.
  int run_daemon(const std::string& job, const std::string& command);

 private:
  Json ask(const Json& request, Seconds patience = kSilence);
  Json receive(Seconds patience);
  // To the last message of a request that reports; that message.
  Json follow(const Report& report);
  void receive_content(std::span<std::byte> into);
  void send_content(std::span<const std::byte> content);
  // A request that its content follows.
  void put(Json request, std::span<const std::byte> content);

  std::string name_;
  SecureChannel channel_;
};

}  // namespace stagecoach
