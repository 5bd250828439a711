// Exercises the MPI transport between real processes:
//
//   mpirun -np N mpi_transport_check MODE [VALUE]
//
// order, sizes, device, all_to_all and finalize print "ok" from rank 0 or end the job with code 1.
// abort CODE: the last rank aborts while the others wait; stuck_launcher CODE: so it does under an
// mpirun that does not react; watch SECONDS: all ranks exchange heartbeats for so long and abort
// with 5 when one of them has been silent for 8 s. device wants STAGECOACH_CUDA_AWARE_MPI=on, and
// has memory of the host play a device's. latency and idle measure and judge nothing.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/hash.h"
#include "transport/mpi_module.h"

namespace stagecoach {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

void expect(bool condition, const std::string& what) {
  if (!condition) throw Error(ErrorKind::kInternal, what);
}

std::vector<std::byte> bytes_of(std::size_t size, std::uint64_t seed) {
  std::vector<std::byte> bytes(size);
  std::mt19937_64 random(seed);
  for (std::size_t i = 0; i + 8 <= size; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(&bytes[i], &word, 8);
  }
  for (std::size_t i = size - size % 8; i < size; ++i) bytes[i] = static_cast<std::byte>(seed + i);
  return bytes;
}

Message must_receive(Transport& transport, Channel channel) {
  auto message = transport.receive(channel, Clock::now() + seconds(120));
  expect(message.has_value(), fmt::format("rank {} waited 120 s for a message", transport.rank()));
  return std::move(*message);
}

// Every rank sends 2000 numbered messages to every rank, itself included, on two channels.
void order(Transport& transport, const std::string&) {
  constexpr int kMessages = 2000;
  const auto channels = {Channel::kData, Channel::kControl};
  for (int i = 0; i < kMessages; ++i)
    for (const Channel channel : channels)
      for (int to = 0; to < transport.size(); ++to) {
        std::vector<std::byte> payload(sizeof(int) + static_cast<std::size_t>(i) % 3000);
        std::memcpy(payload.data(), &i, sizeof(int));
        transport.send(to, channel, std::move(payload));
      }
  for (const Channel channel : channels) {
    std::map<int, int> next;
    for (int i = 0; i < kMessages * transport.size(); ++i) {
      const Message message = must_receive(transport, channel);
      int number = -1;
      std::memcpy(&number, message.payload.data(), sizeof(int));
      expect(number == next[message.source]++, fmt::format("message {} out of order", number));
    }
  }
}

// From each rank to the next in the ring, around every boundary of frames and chunks.
void sizes(Transport& transport, const std::string&) {
  const std::vector<std::size_t> list{
      0,          1,        1983,           1984,     1985,           4096,
      65536,      1u << 20, (8u << 20) - 1, 8u << 20, (8u << 20) + 1, 24u << 20,
      150'000'000};
  const int to = (transport.rank() + 1) % transport.size();
  const int from = (transport.rank() + transport.size() - 1) % transport.size();
  for (const std::size_t size : list) {
    transport.send(to, Channel::kData,
                   bytes_of(size, size + static_cast<std::size_t>(transport.rank())));
    const Message message = must_receive(transport, Channel::kData);
    expect(message.source == from, "message from the wrong rank");
    expect(message.payload == bytes_of(size, size + static_cast<std::size_t>(from)),
           fmt::format("{} bytes arrived changed", size));
  }
}

// Payloads that end in memory of their own, from each rank to the next. Of two rounds, in the first
// every other rank has lent memory for them, in the second the others.
void device(Transport& transport, const std::string&) {
  DeviceMessages* const messages = transport.device_messages();
  expect(messages != nullptr, "this transport knows no devices");
  const int ranks = transport.size();
  if (ranks == 1) return;
  const int to = (transport.rank() + 1) % ranks;
  const int from = (transport.rank() + ranks - 1) % ranks;
  const auto memory_of = [](std::vector<std::byte> bytes, std::atomic<int>& held) {
    ++held;
    auto* const owned = new std::vector<std::byte>(std::move(bytes));
    return std::shared_ptr<std::byte>(owned->data(), [owned, &held](std::byte*) {
      delete owned;
      --held;
    });
  };
  std::atomic<int> held = 0, takes = 0, uses = 0;
  const std::size_t largest = 20u << 20;  // that has room in what is lent
  for (int round = 0; round < 2; ++round) {
    const bool lends = (transport.rank() + round) % 2 == 0;
    DeviceMemory memory;
    if (lends)
      memory = {.use_device = [&uses] { ++uses; },
                .take = [&](std::size_t bytes) -> std::shared_ptr<std::byte> {
                  ++takes;
                  if (bytes > largest) return nullptr;
                  return memory_of(std::vector<std::byte>(bytes), held);
                }};
    messages->lend(memory);
    // Until everyone has lent, or not.
    for (int peer = 0; peer < ranks; ++peer) transport.send(peer, Channel::kControl, {});
    for (int peer = 0; peer < ranks; ++peer) must_receive(transport, Channel::kControl);
    for (const std::size_t head : {0u, 100u, 1984u, 1985u, 9u << 20})
      for (const std::size_t end : {1u, 1985u, 8u << 20, (17u << 20) + 3, 21u << 20}) {
        messages->send_from_device(to, Channel::kData, bytes_of(head, head + end),
                                   {memory_of(bytes_of(end, end), held), end});
        transport.send(to, Channel::kData, bytes_of(head, 7));
        Message message = must_receive(transport, Channel::kData);
        const std::string what = fmt::format("{} bytes and {} on a device", head, end);
        expect(message.source == from, "message from the wrong rank");
        const bool on_device = message.device_end.data != nullptr;
        expect(on_device == (lends && end <= largest), what + " arrived in the other memory");
        std::vector<std::byte> whole = bytes_of(head, head + end);
        const auto tail = bytes_of(end, end);
        if (on_device) {
          const std::byte* const data = message.device_end.data.get();
          expect(message.device_end.size == end && std::equal(tail.begin(), tail.end(), data),
                 what + " arrived changed");
        } else {
          whole.insert(whole.end(), tail.begin(), tail.end());
        }
        expect(message.payload == whole, what + " arrived changed");
        message = must_receive(transport, Channel::kData);
        expect(message.payload == bytes_of(head, 7) && message.device_end.size == 0,
               "what came after " + what + " is another message");
      }
    expect(transport.flush(Clock::now() + seconds(60)), "messages did not leave within 60 s");
    expect(held == 0, "memory was not given back");
    expect(!lends || (takes > 0 && uses > takes), "memory was lent and not used");
  }
  messages->lend({});
}

// All pairs at once, on all channels, from several threads, in random sizes.
void all_to_all(Transport& transport, const std::string&) {
  constexpr int kMessages = 30;
  std::vector<std::thread> threads;
  std::string problem;
  std::mutex mutex;
  const auto guarded = [&](const std::function<void()>& body) {
    threads.emplace_back([&, body] {
      try {
        body();
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        problem = error.what();
      }
    });
  };
  for (int c = 0; c < kChannels; ++c) {
    const auto channel = static_cast<Channel>(c);
    guarded([&transport, channel] {
      std::mt19937_64 random(static_cast<std::uint64_t>(transport.rank() * kChannels) +
                             static_cast<std::uint64_t>(channel));
      for (int i = 0; i < kMessages; ++i)
        for (int to = 0; to < transport.size(); ++to) {
          auto payload = bytes_of(8 + random() % (i % 10 == 0 ? 3'000'000 : 10'000), random());
          const std::uint64_t hash = xxh3(std::span(payload).subspan(8));
          std::memcpy(payload.data(), &hash, 8);
          transport.send(to, channel, std::move(payload));
        }
    });
    guarded([&transport, channel] {
      for (int i = 0; i < kMessages * transport.size(); ++i) {
        const Message message = must_receive(transport, channel);
        std::uint64_t hash = 0;
        std::memcpy(&hash, message.payload.data(), 8);
        expect(hash == xxh3(std::span(message.payload).subspan(8)), "checksum differs");
      }
    });
  }
  for (auto& thread : threads) thread.join();
  expect(problem.empty(), problem);
}

void abort_job(Transport& transport, const std::string& code) {
  if (transport.rank() == transport.size() - 1) transport.abort(std::stoi(code));
  transport.receive(Channel::kData, Clock::now() + seconds(60));
  throw Error(ErrorKind::kInternal, "the job outlived its abort");
}

// An mpirun that cannot end any more is stopped here; on a cut network it waits for a lost daemon.
void stuck_launcher(Transport& transport, const std::string& code) {
  ::kill(::getppid(), SIGSTOP);
  transport.abort(std::stoi(code));
}

void watch(Transport& transport, const std::string& text) {
  const auto end = Clock::now() + seconds(std::stoi(text));
  std::map<int, Deadline> heard;
  for (int peer = 0; peer < transport.size(); ++peer) heard[peer] = Clock::now();
  std::set<int> seen;
  auto next_beat = Clock::now();
  while (Clock::now() < end) {
    if (Clock::now() >= next_beat) {
      for (int peer = 0; peer < transport.size(); ++peer)
        transport.send(peer, Channel::kHeartbeat, {});
      next_beat = Clock::now() + milliseconds(500);
    }
    const auto beat = transport.receive(Channel::kHeartbeat, next_beat);
    if (beat) {
      heard[beat->source] = Clock::now();
      // For scripts that pull a cable once everyone is there.
      if (seen.insert(beat->source).second && static_cast<int>(seen.size()) == transport.size())
        std::fprintf(stderr, "rank %d hears everyone\n", transport.rank());
    }
    for (const auto& [peer, when] : heard) {
      if (Clock::now() - when < seconds(8)) continue;
      std::fprintf(stderr, "rank %d on %s: rank %d on %s is silent\n", transport.rank(),
                   transport.host(transport.rank()).c_str(), peer, transport.host(peer).c_str());
      transport.abort(5);
    }
  }
}

// One-way times between rank 0 and the last one, by round trips.
void latency(Transport& transport, const std::string&) {
  const int last = transport.size() - 1;
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{10240}, std::size_t{1} << 20, std::size_t{100'000'000}}) {
    const int rounds = size > 1'000'000 ? 10 : 1000;
    const auto begin = now_ns();
    for (int i = 0; i < rounds; ++i) {
      if (transport.rank() == 0) {
        transport.send(last, Channel::kData, std::vector<std::byte>(size));
        must_receive(transport, Channel::kData);
      } else if (transport.rank() == last) {
        auto message = must_receive(transport, Channel::kData);
        transport.send(0, Channel::kData, std::move(message.payload));
      }
    }
    const double one_way = seconds_since(begin) / rounds / 2;
    if (transport.rank() == 0)
      std::printf("%9zu bytes: %.1f us one way, %.2f GB/s\n", size, one_way * 1e6,
                  static_cast<double>(size) / one_way * 1e-9);
  }
}

void idle(Transport& transport, const std::string& text) {
  const auto cpu_seconds = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
  };
  const double before = cpu_seconds();
  transport.receive(Channel::kData, Clock::now() + seconds(std::stoi(text)));
  std::printf("rank %d: %.2f %% of a core while idle\n", transport.rank(),
              100 * (cpu_seconds() - before) / std::stod(text));
}

void finalize_only(Transport&, const std::string&) {}

int run(const std::string& mode, const std::string& value) {
  using Body = void (*)(Transport&, const std::string&);
  static const std::map<std::string, Body> modes{{"order", order},
                                                 {"sizes", sizes},
                                                 {"device", device},
                                                 {"all_to_all", all_to_all},
                                                 {"finalize", finalize_only},
                                                 {"abort", abort_job},
                                                 {"watch", watch},
                                                 {"latency", latency},
                                                 {"idle", idle},
                                                 {"stuck_launcher", stuck_launcher}};
  const auto body = modes.find(mode);
  if (body == modes.end()) throw usage_error("unknown mode " + mode);
  expect(launched_by_mpi(), "not started by mpirun");
  const auto transport = open_mpi_transport();
  try {
    expect(transport->rank() == launched_rank() && transport->size() == launched_size(),
           "MPI and the environment disagree about rank and size");
    body->second(*transport, value);
    expect(transport->flush(Clock::now() + seconds(60)), "messages did not leave within 60 s");
    transport->finalize();
  } catch (const Error& error) {
    std::fprintf(stderr, "rank %d: %s\n", transport->rank(), error.what());
    transport->abort(error.exit_code());
  }
  if (transport->rank() == 0) std::printf("ok\n");
  return 0;
}

}  // namespace
}  // namespace stagecoach

int main(int argc, char** argv) {
  try {
    return stagecoach::run(argc > 1 ? argv[1] : "", argc > 2 ? argv[2] : "10");
  } catch (const stagecoach::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.exit_code();
  }
}
