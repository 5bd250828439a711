#include "launcher/token_mirror.h"

#include <algorithm>

#include "base/log.h"
#include "launcher/agent_client.h"
#include "launcher/pause.h"

namespace stagecoach {

TokenMirror::TokenMirror(Endpoint agent, const Key& key, std::string name, std::string job,
                         std::string file)
    : agent_(std::move(agent)),
      key_(key),
      name_(std::move(name)),
      job_(std::move(job)),
      file_(std::move(file)),
      thread_([this] { run(); }) {}

TokenMirror::~TokenMirror() {
  stop_ = true;
  thread_.join();
}

void TokenMirror::run() {
  std::optional<AgentClient> client;
  while (!stop_) {
    try {
      if (!client) client.emplace(agent_, key_, name_, [this] { return stop_.load(); });
      look(*client);
    } catch (
        const std::exception& exception) {  // it may come back; else what there is, is the latest
      spdlog::debug("{}: {}", name_, exception.what());
      client.reset();
    }
    pause_a_second(stop_);
  }
}

void TokenMirror::look(AgentClient& client) {
  const std::vector<StoreFile> files = client.job_files(job_);
  const bool there = std::any_of(files.begin(), files.end(),
                                 [&](const StoreFile& file) { return file.name == file_; });
  if (!there) return;
  std::vector<std::byte> content = client.read_job_file(job_, file_);
  const std::lock_guard lock(mutex_);
  latest_ = std::move(content);
}

std::optional<std::vector<std::byte>> TokenMirror::latest() const {
  const std::lock_guard lock(mutex_);
  return latest_;
}

}  // namespace stagecoach
