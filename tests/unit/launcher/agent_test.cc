// Agents in this process, and clients that talk to them over the loopback network.
#include "launcher/agent.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <future>
#include <thread>

#include "base/hash.h"
#include "launcher/agent_client.h"
#include "launcher/distribution.h"
#include "launcher/processes.h"
#include "launcher/secure_channel.h"
#include "unit/store/small_store.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::milliseconds kMoment{10};

class RunningAgent {
 public:
  using Probe = std::function<void(const fs::path&, const Interrupted&)>;
  RunningAgent(
      const Key& key, std::vector<fs::path> stores, const fs::path& state, double rate = 0,
      Probe probe = [](const fs::path&, const Interrupted&) {})
      : agent_({.key = key,
                .listen = {"127.0.0.1", 0},
                .stores = std::move(stores),
                .state = state,
                .bytes_per_second = rate,
                .services = {.isa = [] { return "test"; },
                             .free_memory = [] { return std::int64_t{123}; },
                             .disk_rate = [](const fs::path&, const Interrupted&) { return 5e8; },
                             .probe = std::move(probe)}}),
        thread_([this] { agent_.run([this] { return stop_.load(); }); }) {}
  ~RunningAgent() {
    stop_ = true;
    thread_.join();
  }
  Endpoint endpoint() const { return {"127.0.0.1", agent_.port()}; }

 private:
  Agent agent_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class Agents : public ::testing::Test {
 protected:
  Agents()
      : a_(key_, {folder_ / "a"}, folder_ / "state-a"),
        b_(key_, {folder_ / "b"}, folder_ / "state-b") {
    fs::create_directories(folder_ / "a");
    fs::create_directories(folder_ / "b");
    write_small_store(folder_ / "a/model");
    manifest_ = read_manifest(folder_ / "a/model");
  }
  AgentClient client_a() { return AgentClient(a_.endpoint(), key_, "pc-a"); }
  AgentClient client_b() { return AgentClient(b_.endpoint(), key_, "pc-b"); }
  SlabSource source_a() { return {a_.endpoint(), folder_ / "a/model"}; }
  std::string store_b() { return folder_ / "b/model"; }

  const Key key_ = Key::random();
  TemporaryFolder folder_;
  RunningAgent a_, b_;
  Manifest manifest_;
};

TEST_F(Agents, TellFactsOfTheirMachine) {
  const HostFacts facts = client_a().facts({});
  EXPECT_EQ(facts.isa, "test");
  EXPECT_EQ(facts.free_memory, 123);
  EXPECT_GT(facts.cores, 0);
  EXPECT_FALSE(facts.host.empty());
  EXPECT_TRUE(hash_from_hex(facts.content));
  EXPECT_LT(std::abs(client_a().clock_offset()), 1);
  EXPECT_EQ(client_a().disk_rate(folder_ / "a/model"), 5e8);
  EXPECT_GT(client_a().link_to(b_.endpoint()).bytes_per_second, 0);
}

// Deadlines of these waits are 30 s and more: what ends is Ctrl-C's doing.
TEST_F(Agents, LeaveAClientThatIsInterrupted) {
  std::atomic<bool> began{false}, abandoned{false};
  RunningAgent slow(key_, {folder_ / "b"}, folder_ / "state-slow", 0,
                    [&](const fs::path&, const Interrupted& nobody_waits) {
                      began = true;
                      for (int i = 0; i < 3000 && !nobody_waits(); ++i)
                        std::this_thread::sleep_for(kMoment);
                      abandoned = nobody_waits();
                    });
  AgentClient client(slow.endpoint(), key_, "pc-slow", [&] { return began.load(); });
  EXPECT_EQ(error_of([&] { client.probe(store_b()); }).kind(), ErrorKind::kInterrupted);
  EXPECT_EQ(error_of([&] { client.ping(); }).kind(), ErrorKind::kInterrupted) << "it stays so";
  for (int i = 0; i < 3000 && !abandoned; ++i) std::this_thread::sleep_for(kMoment);
  EXPECT_TRUE(abandoned) << "what runs there is nobody's any more";
  // Also between two waits, while the client is still there.
  std::atomic<bool> interrupted{false};
  AgentClient other(a_.endpoint(), key_, "pc-a", [&] { return interrupted.load(); });
  other.hold("job@0", "job@0");
  Child sleeper({"sleep", "1000"}, {fmt::format("{}=job@0", kJobVariable)},
                Child::Streams::kCapture);
  interrupted = true;
  EXPECT_EQ(error_of([&] { other.ping(); }).kind(), ErrorKind::kInterrupted);
  for (int i = 0; i < 3000 && !sleeper.poll(); ++i) std::this_thread::sleep_for(kMoment);
  EXPECT_EQ(sleeper.poll(), 128 + SIGKILL) << "its job ends";
}

TEST_F(Agents, DoNotInterruptTheirClients) {
  RunningAgent ending(key_, {folder_ / "b"}, folder_ / "state-ending", 0,
                      [](const fs::path&, const Interrupted&) {
                        throw Error(ErrorKind::kInterrupted, "interrupted");
                      });
  AgentClient client(ending.endpoint(), key_, "pc-b");
  EXPECT_EQ(error_of([&] { client.probe(store_b()); }).kind(), ErrorKind::kPeerLost);
}

TEST_F(Agents, AreNotCalledAfterAnInterrupt) {
  EXPECT_EQ(error_of([&] { AgentClient(a_.endpoint(), key_, "pc-a", [] { return true; }); }).kind(),
            ErrorKind::kInterrupted);
}

TEST_F(Agents, TurnStrangersAway) {
  const auto refused = [&](const auto& attempt) { return error_of(attempt).kind(); };
  EXPECT_EQ(refused([&] { AgentClient(a_.endpoint(), Key::random(), "pc-a"); }),
            ErrorKind::kResources);
  EXPECT_EQ(refused([&] { AgentClient({"127.0.0.1", 1}, key_, "pc-a"); }), ErrorKind::kPeerLost);
  EXPECT_EQ(refused([&] {
              AgentClient({"no-such-host.invalid", 1}, key_, "pc-a");
            }),
            ErrorKind::kPeerLost);
  EXPECT_NO_THROW(client_a());  // and serve on
}

// Anybody can make a certificate; only the key counts.
TEST_F(Agents, AreNotTakenForSomebodyWithACertificate) {
  const std::string key_file = folder_ / "imp.key", certificate = folder_ / "imp.crt";
  const auto made = run_program({"openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes",
                                 "-keyout", key_file, "-out", certificate, "-subj", "/CN=x"},
                                Seconds(60));
  if (!made || made->code != 0) GTEST_SKIP() << "no openssl here";
  // Its own agent's port, once that has gone, is a free one.
  std::uint16_t port = 0;
  { port = RunningAgent(key_, {folder_ / "a"}, folder_ / "state-x").endpoint().port; }
  Child impostor({"openssl", "s_server", "-accept", fmt::format("127.0.0.1:{}", port), "-cert",
                  certificate, "-key", key_file, "-tls1_3", "-quiet"},
                 {}, Child::Streams::kAll);
  Error error = usage_error("not tried");
  for (int i = 0; i < 100; ++i) {  // until it listens
    error = error_of([&] { AgentClient({"127.0.0.1", port}, key_, "pc-x"); });
    if (error.kind() != ErrorKind::kPeerLost) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_EQ(error.kind(), ErrorKind::kResources) << error.what();
}

// Who has the key may be of another version: it hears what was wrong, and then the end.
TEST_F(Agents, AnswerFramesThatTheyDoNotTake) {
  const auto reply_to = [&](const auto& send) {
    SecureChannel channel = SecureChannel::connect(a_.endpoint(), key_);
    send(channel);
    const Error error =
        error_of([&] { throw_if_error(parse_message(channel.receive(kSilence), "a"), "a"); });
    EXPECT_EQ(error_of([&] { channel.receive(kSilence); }).kind(), ErrorKind::kPeerLost);
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    return std::string(error.what());
  };
  const std::vector<std::byte> data(1000);
  EXPECT_NE(reply_to([&](SecureChannel& channel) {
              channel.send_data(data);
            }).find("expected a message, found 1000 bytes of data"),
            std::string::npos);
  EXPECT_NE(reply_to([&](SecureChannel& channel) {
              channel.send(Json::array());
            }).find("expected an object"),
            std::string::npos);
  // A message where data was promised, and what is sent behind it.
  EXPECT_NE(reply_to([&](SecureChannel& channel) {
              channel.send({{"op", "sink"}, {"bytes", 5000}});
              channel.send({{"op", "ping"}});
              for (int i = 0; i < 100; ++i) channel.send_data(data);
            }).find("found a message of 13 bytes"),
            std::string::npos);
  EXPECT_NO_THROW(client_a());
}

TEST_F(Agents, SayThatAnotherHostIsGoneAndGoOn) {
  AgentClient a = client_a();
  const Error error = error_of([&] { a.link_to({"127.0.0.1", 1}); });
  EXPECT_EQ(error.kind(), ErrorKind::kPeerLost);
  EXPECT_NE(std::string(error.what()).find("no agent answers"), std::string::npos) << error.what();
  EXPECT_NO_THROW(a.ping());
}

TEST_F(Agents, MoveASlabAndListIt) {
  AgentClient b = client_b();
  EXPECT_FALSE(b.store(store_b()).manifest);
  std::int64_t last = 0;
  const SlabNames names{"embedding.slab", "layer-001.slab", "head.slab"};
  b.pull(store_b(), manifest_, {names.begin(), names.end()},
         {{source_a()}, {source_a()}, {source_a()}},
         [&](std::int64_t done, std::int64_t) { last = done; });
  b.put_file(store_b(), "tokenizer/tokenizer.json", std::as_bytes(std::span("{}", 2)));
  EXPECT_EQ(file_bytes(folder_ / "b/model/layer-001.slab"),
            file_bytes(folder_ / "a/model/layer-001.slab"));
  EXPECT_FALSE(fs::exists(folder_ / "b/model/manifest.json"));  // not before it is told
  // A head that is tied is worth nothing without the embedding.
  EXPECT_EQ(error_of([&] { b.commit(store_b(), subset(manifest_, {"head.slab"})); }).kind(),
            ErrorKind::kData);
  EXPECT_EQ(error_of([&] { b.commit(store_b(), subset(manifest_, {"layer-002.slab"})); }).kind(),
            ErrorKind::kData);
  b.commit(store_b(), subset(manifest_, names));
  const StoreContents contents = b.store(store_b());
  ASSERT_TRUE(contents.manifest);
  EXPECT_EQ(contents.slabs.size(), 3U);
  EXPECT_EQ(contents.tokenizer.size(), 1U);
  EXPECT_TRUE(b.verify(store_b(), {}).empty());
  EXPECT_GT(last, 0);
}

// A slab of which an interrupted transfer has brought all but the name.
void leave_partial(const fs::path& store, const SlabEntry& slab, const std::string& bytes) {
  fs::create_directories(store);
  SlabDraft draft(store, slab);
  ASSERT_EQ(draft.missing_chunks().size(), 1U);
  draft.write(0, as_bytes(bytes));
  draft.note(0);
}

TEST_F(Agents, GoOnWhereATransferStopped) {
  const SlabEntry& slab = manifest_.slabs.front();
  const std::string bytes = file_bytes(folder_ / "a/model" / slab.file);
  leave_partial(folder_ / "b/model", slab, bytes);
  // Nobody is asked for what is there.
  const SlabSource dead{{"127.0.0.1", 1}, "/nowhere"};
  client_b().pull(store_b(), manifest_, {slab.file}, {{dead}}, {});
  EXPECT_EQ(file_bytes(folder_ / "b/model" / slab.file), bytes);
}

TEST_F(Agents, FetchAgainWhatAPowerCutHasLost) {
  const SlabEntry& slab = manifest_.slabs.front();
  const std::string bytes = file_bytes(folder_ / "a/model" / slab.file);
  std::string zeros = bytes;
  std::fill(zeros.begin() + 5000, zeros.begin() + 6000, '\0');
  leave_partial(folder_ / "b/model", slab, zeros);
  client_b().pull(store_b(), manifest_, {slab.file}, {{source_a()}}, {});
  EXPECT_EQ(file_bytes(folder_ / "b/model" / slab.file), bytes);
}

TEST_F(Agents, WaitForWhoChangesAStoreAndThenSaySo) {
  fs::create_directories(folder_ / "b/model");
  const FileLock lock = lock_store(folder_ / "b/model");
  const Error error =
      error_of([&] { client_b().pull(store_b(), manifest_, {"head.slab"}, {{source_a()}}, {}); });
  EXPECT_EQ(error.kind(), ErrorKind::kUsage);
  EXPECT_NE(std::string(error.what()).find("somebody else"), std::string::npos);
}

TEST_F(Agents, LeaveAFailingSourceToTheOthers) {
  AgentClient b = client_b();
  const SlabSource dead{{"127.0.0.1", 1}, "/nowhere"}, empty{b_.endpoint(), folder_ / "b/other"};
  b.pull(store_b(), manifest_, {"layer-000.slab"}, {{dead, source_a(), empty}}, {});
  EXPECT_TRUE(fs::exists(folder_ / "b/model/layer-000.slab"));
  const Error error = error_of([&] {
    b.pull(store_b(), manifest_, {"layer-002.slab"}, {{dead, empty}}, {});
  });
  EXPECT_NE(error.kind(), ErrorKind::kInternal);
}

TEST_F(Agents, CopyFromAnotherStoreOfTheirOwn) {
  write_small_store(folder_ / "b/other");
  AgentClient b = client_b();
  const SlabSource own{{.address = {}, .port = 0}, folder_ / "b/other"};
  b.pull(store_b(), manifest_, {"head.slab"}, {{own}}, {});
  EXPECT_EQ(file_bytes(folder_ / "b/model/head.slab"), file_bytes(folder_ / "a/model/head.slab"));
  // Not from elsewhere on their disk.
  const SlabSource elsewhere{{.address = {}, .port = 0}, folder_ / "a/model"};
  EXPECT_EQ(
      error_of([&] { b.pull(store_b(), manifest_, {"layer-000.slab"}, {{elsewhere}}, {}); }).kind(),
      ErrorKind::kUsage);
}

TEST_F(Agents, RefuseADamagedSource) {
  const fs::path file = folder_ / "a/model/layer-002.slab";
  std::string bytes = file_bytes(file);
  bytes[bytes.size() / 2] ^= 1;
  set_file_bytes(file, bytes);
  EXPECT_EQ(client_a().verify(folder_ / "a/model", {}).size(), 1U);
  AgentClient b = client_b();
  const Error error =
      error_of([&] { b.pull(store_b(), manifest_, {"layer-002.slab"}, {{source_a()}}, {}); });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  EXPECT_FALSE(fs::exists(folder_ / "b/model/layer-002.slab"));
}

TEST_F(Agents, KeepToTheirFolders) {
  std::array<std::byte, 1> byte{};
  AgentClient b = client_b();
  fs::create_directories(folder_ / "secret");
  set_file_bytes(folder_ / "secret/layer-000.slab", "secret");
  fs::create_directory_symlink(folder_ / "secret", folder_ / "b/link");
  for (const std::string& store :
       {(folder_ / "secret").string(), (folder_ / "b/../secret").string(),
        (folder_ / "b/link").string(), std::string("/etc"), std::string("b"), std::string(),
        (folder_ / "bb").string(), (folder_ / "b/none/../link").string(),
        (folder_ / "b/x").string() + std::string("\0y", 2)}) {
    EXPECT_EQ(error_of([&] { b.store(store); }).kind(), ErrorKind::kUsage) << store;
    EXPECT_EQ(error_of([&] { b.read_range(store, "layer-000.slab", 0, byte); }).kind(),
              ErrorKind::kUsage)
        << store;
    EXPECT_EQ(error_of([&] { b.put_file(store, "tokenizer/x", {}); }).kind(), ErrorKind::kUsage)
        << store;
    EXPECT_EQ(
        error_of([&] { b.pull(store, manifest_, {"layer-000.slab"}, {{source_a()}}, {}); }).kind(),
        ErrorKind::kUsage)
        << store;
  }
  for (const char* name :
       {"../secret/layer-000.slab", "/etc/passwd", "manifest.json", "tokenizer/../manifest.json",
        "tokenizer/", ".slab", "tokenizer/.hidden", "a/b.slab"}) {
    EXPECT_EQ(error_of([&] { b.read_range(store_b(), name, 0, byte); }).kind(), ErrorKind::kData)
        << name;
    EXPECT_EQ(error_of([&] { b.put_file(store_b(), name, {}); }).kind(), ErrorKind::kData) << name;
  }
  // Links inside a store that lead out.
  fs::create_directories(folder_ / "b/model");
  fs::create_symlink(folder_ / "secret/layer-000.slab", folder_ / "b/model/layer-000.slab");
  fs::create_directory_symlink(folder_ / "secret", folder_ / "b/model/tokenizer");
  EXPECT_EQ(error_of([&] { b.read_range(store_b(), "layer-000.slab", 0, byte); }).kind(),
            ErrorKind::kUsage);
  EXPECT_EQ(error_of([&] { b.put_file(store_b(), "tokenizer/x", {}); }).kind(), ErrorKind::kUsage);
  EXPECT_FALSE(fs::exists(folder_ / "secret/x"));
  EXPECT_EQ(error_of([&] { b.put_file(store_b(), "layer-000.slab", {}); }).kind(),
            ErrorKind::kUsage);
  EXPECT_EQ(error_of([&] { b.read_job_file("job", "../../a"); }).kind(), ErrorKind::kUsage);
  for (const char* job : {"", "..", "a/b", ".hidden"})
    EXPECT_EQ(error_of([&] { b.job_folder(job); }).kind(), ErrorKind::kUsage) << job;
}

TEST_F(Agents, RefuseAnotherModelWhereOneLies) {
  AgentClient a = client_a();
  Manifest other = manifest_;
  other.name = "another";
  EXPECT_EQ(error_of([&] {
              a.pull(folder_ / "a/model", other, {"head.slab"}, {{source_a()}}, {});
            }).kind(),
            ErrorKind::kData);
  EXPECT_EQ(error_of([&] { a.commit(folder_ / "a/model", other); }).kind(), ErrorKind::kData);
  EXPECT_EQ(read_manifest(folder_ / "a/model").name, manifest_.name);
}

TEST_F(Agents, KeepFilesOfAJob) {
  AgentClient a = client_a();
  EXPECT_TRUE(fs::is_directory(a.job_folder("job@0").path));
  EXPECT_GT(a.job_folder("job@0").free_bytes.value_or(0), 0);
  a.put_job_file("job@0", "report/run.json", std::as_bytes(std::span("{}", 2)));
  ASSERT_EQ(a.job_files("job@0").size(), 1U);
  EXPECT_EQ(a.job_files("job@0")[0].name, "report/run.json");
  EXPECT_EQ(a.read_job_file("job@0", "report/run.json").size(), 2U);
  const std::string folder = a.job_folder("job@0").path;
  a.forget_job("job@0");
  EXPECT_FALSE(fs::exists(folder));
}

// Nor does one whose file system does not tell it.
TEST(JobFolder, AnAgentOfAnOlderBuildSaysNothingOfItsRoom) {
  const JobFolder folder = job_folder_from_json({{"ok", true}, {"folder", "/x"}}, "pc-a");
  EXPECT_EQ(folder.path, "/x");
  EXPECT_FALSE(folder.free_bytes);
  EXPECT_EQ(job_folder_from_json({{"folder", "/x"}, {"free_bytes", 5}}, "pc-a").free_bytes, 5);
}

TEST_F(Agents, EndAJobWhoseLauncherHasGone) {
  const std::string job = fmt::format("test-{}@0", ::getpid());
  Child sleeper({"sleep", "1000"}, {fmt::format("{}={}", kJobVariable, job)},
                Child::Streams::kCapture);
  Child other({"sleep", "1000"}, {fmt::format("{}={}x", kJobVariable, job)},
              Child::Streams::kCapture);
  {
    AgentClient a = client_a();
    a.hold(job, job);
    a.ping();
    EXPECT_FALSE(sleeper.poll());
  }
  EXPECT_EQ(sleeper.wait(Seconds(20)), 128 + SIGKILL);
  EXPECT_FALSE(other.poll());
  AgentClient a = client_a();
  EXPECT_EQ(a.end(job + "x"), 1);
  EXPECT_EQ(other.wait(Seconds(20)), 128 + SIGKILL);
}

TEST_F(Agents, CountTheRanksOfAJob) {
  const std::string job = fmt::format("test-{}@0", ::getpid());
  const std::string variable = fmt::format("{}={}", kJobVariable, job);
  const Words sleep{"sleep", "1000"};
  const Child mpirun(sleep, {variable}, Child::Streams::kCapture);
  const Child rank(sleep, {variable, "OMPI_COMM_WORLD_RANK=0"}, Child::Streams::kCapture);
  const Child stranger(sleep, {variable + "x", "OMPI_COMM_WORLD_RANK=0"}, Child::Streams::kCapture);
  AgentClient a = client_a();
  EXPECT_EQ(a.ranks(job), 1);
  EXPECT_EQ(a.ranks(job + "y"), 0);
}

TEST_F(Agents, StartNothingButADaemon) {
  AgentClient a = client_a();
  EXPECT_EQ(error_of([&] { a.run_daemon("job", "touch /tmp/x"); }).kind(), ErrorKind::kUsage);
}

TEST_F(Agents, SendNoFasterThanTheyMay) {
  // Twice the bucket's rate of a file takes a second at least, whatever the machine.
  const auto bytes = static_cast<double>(fs::file_size(folder_ / "a/model/layer-000.slab"));
  RunningAgent slow(key_, {folder_ / "a"}, folder_ / "state-slow", bytes);
  AgentClient client(slow.endpoint(), key_, "pc-slow");
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::byte> content(static_cast<std::size_t>(bytes));
  client.read_range(folder_ / "a/model", "layer-000.slab", 0, content);
  client.read_range(folder_ / "a/model", "layer-000.slab", 0, content);
  EXPECT_GE(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 0.99);
}

TEST_F(Agents, SurviveNonsense) {
  SecureChannel channel = SecureChannel::connect(a_.endpoint(), key_);
  const auto answer = [&](const Json& request) {
    channel.send(request);
    return parse_message(channel.receive(kSilence), "agent");
  };
  EXPECT_TRUE(answer({{"op", "no such thing"}}).contains("error"));
  EXPECT_TRUE(answer({{"op", 5}}).contains("error"));
  EXPECT_TRUE(answer(Json::object()).contains("error"));
  EXPECT_TRUE(answer({{"op", "read"},
                      {"store", folder_ / "a/model"},
                      {"file", "head.slab"},
                      {"offset", -1},
                      {"bytes", 1}})
                  .contains("error"));
  EXPECT_TRUE(answer({{"op", "read"},
                      {"store", folder_ / "a/model"},
                      {"file", "head.slab"},
                      {"offset", 0},
                      {"bytes", 1e18}})
                  .contains("error"));
  EXPECT_TRUE(
      answer({{"op", "pull"}, {"store", folder_ / "a/model"}, {"manifest", 1}, {"slabs", 2}})
          .contains("error"));
  EXPECT_TRUE(
      answer({{"op", "install"}, {"content", "xyz"}, {"files", Json::array()}}).contains("error"));
  EXPECT_TRUE(answer({{"op", "ping"}}).contains("ok"));
  // A frame in the place of data is no request.
  channel.send({{"op", "put_job"}, {"job", "job"}, {"name", "x"}, {"bytes", 10}});
  channel.send({{"op", "job_folder"}, {"job", "smuggled"}});
  EXPECT_TRUE(parse_message(channel.receive(kSilence), "agent").contains("error"));
  EXPECT_EQ(error_of([&] { channel.receive(kSilence); }).kind(), ErrorKind::kPeerLost);
  EXPECT_FALSE(fs::exists(folder_ / "state-a/jobs/smuggled"));
  channel = SecureChannel::connect(a_.endpoint(), key_);
  channel.send_data(std::as_bytes(std::span("data", 4)));  // no request: the end of this connection
  EXPECT_TRUE(parse_message(channel.receive(kSilence), "agent").contains("error"));
  EXPECT_EQ(error_of([&] { channel.receive(kSilence); }).kind(), ErrorKind::kPeerLost);
  EXPECT_NO_THROW(client_a());
}

}  // namespace
}  // namespace stagecoach
