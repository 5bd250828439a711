#include "launcher/job_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "launcher/mpi_command.h"

namespace stagecoach {
namespace {

LaunchJob read(const std::string& text) {
  const auto file = std::filesystem::temp_directory_path() /
                    ("stagecoach-job-" + std::to_string(::getpid()) + ".toml");
  std::ofstream(file) << text;
  try {
    LaunchJob job = read_launch_job(file);
    std::filesystem::remove(file);
    return job;
  } catch (const Error&) {
    std::filesystem::remove(file);
    throw;
  }
}

constexpr const char* kGood = R"([launch]
command = "generate"
key = "/etc/key"
replicas = 2
[run]
store = "/srv/model"
prompts = "in.txt"
stop = ["a", "-b"]
json = true
[nodes.pc-b]
address = "10.0.0.2"
store = "/data/model"
[nodes.pc-a]
address = "10.0.0.1"
memory = "4GB"
)";

TEST(JobFile, SaysWhatLaunchNeeds) {
  const LaunchJob job = read(kGood);
  EXPECT_EQ(job.key, "/etc/key");
  EXPECT_EQ(job.replicas, 2);
  ASSERT_EQ(job.cluster.hosts.size(), 2U);
  EXPECT_EQ(job.cluster.hosts[0].name, "pc-b");  // the order of the file
  EXPECT_EQ(job.store_of(job.cluster.hosts[0]), "/data/model");
  EXPECT_EQ(job.store_of(job.cluster.hosts[1]), "/srv/model");
  EXPECT_STREQ(stdin_setting(job), "prompts");
}

TEST(JobFile, ProblemsHaveLineAndColumn) {
  const std::string good = kGood;
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return text;
  };
  const std::vector<std::pair<std::string, std::string>> wrong{
      {with("command = \"generate\"", "command = \"import\""), ":2:11: launch.command"},
      {with("replicas = 2", "replicas = 3"), ":4:12: launch.replicas"},
      {with("replicas = 2", "replica = 2"), ":4:11: 'replica' is not a setting"},
      {with("memory = \"4GB\"", "memory = \"4GX\""), ":15:10: nodes.pc-a.memory"},
      {with("[run]", "[runs]"), "unknown table"},
      {with("[run]", "[run"), ":5:"},
      {with("10.0.0.2", "10.0.0.1"), "two of [nodes]"},
      {with("10.0.0.2", "a b"), "is no IPv4 address"},
      {with("10.0.0.2", "fe80::1"), "is no IPv4 address"},
      {with("10.0.0.2", "-oProxyCommand=x"), "is no IPv4 address"},
      {with("store = \"/srv/model\"\n", ""), "run.store is missing"},
      {"[run]\nstore = \"/a\"\n", "no host to run on"},
      {"[nodes.a]\n", "[run] is missing"}};
  for (const auto& [text, expected] : wrong) {
    try {
      read(text);
      FAIL() << expected;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
    }
  }
}

// Users may have other homes on other PCs: only what lies on this one is in this user's.
TEST(JobFile, ATildeIsTheHomeOfTheUserThere) {
  ::setenv("HOME", "/home/here", 1);
  const LaunchJob job = read(
      "[run]\nstore = '~/model'\ncheckpoint = '~/kept'\nreport = '~/report'\nprompt = '~/x'\n"
      "[nodes.a]\naddress = '10.0.0.1'\n"
      "[nodes.b]\naddress = '10.0.0.2'\nstore = '~/other'\n");
  EXPECT_EQ(job.run_value("store"), "/home/here/model");
  EXPECT_EQ(job.run_value("report"), "/home/here/report");
  EXPECT_EQ(job.run_value("prompt"), "~/x") << "no path";
  EXPECT_EQ(job.store_of(job.cluster.hosts[0]), "~/model");
  EXPECT_EQ(job.store_of(job.cluster.hosts[1]), "~/other");
  const StagePlan plan = explicit_plan("0:2,2:5", 0, 5, 2);
  MpiJob mpi{.job = job, .plan = plan, .ranks = {}, .network = {}, .shell = {}};
  HostFacts facts[2];
  for (const std::size_t rank : {0, 1}) {
    facts[rank].home = rank == 0 ? "/home/a" : "/home/b";
    mpi.ranks.push_back(
        {.address = "x", .binary = "b", .store = "/m", .facts = &facts[rank], .extra = {}});
  }
  for (const std::size_t rank : {0, 1}) {
    const Words words = rank_command(mpi, rank);
    const auto has = [&](const std::string& word) {
      return std::find(words.begin(), words.end(), word) != words.end();
    };
    EXPECT_TRUE(has(std::string("--checkpoint=/home/") + (rank == 0 ? "a" : "b") + "/kept"))
        << shell_command(words);
    EXPECT_TRUE(has("--prompt=~/x")) << shell_command(words);
  }
  // An agent of an older build, or of a user without one.
  facts[1].home.clear();
  try {
    mpi_command(mpi);
    FAIL() << "~ means nothing there";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_NE(std::string(error.what()).find("x: checkpoint: '~/kept'"), std::string::npos)
        << error.what();
  }
  mpi.ranks[1].facts = nullptr;  // planned from the file alone
  EXPECT_NE(shell_command(mpi_command(mpi)).find("~/kept"), std::string::npos);
}

TEST(JobFile, PathsInAHomeAreComparedAsOthersAre) {
  ::setenv("HOME", "/home/here", 1);
  const LaunchJob job = read("[run]\nstore = '~/x/../model'\n[nodes.a]\n");
  EXPECT_EQ(job.run_value("store"), "/home/here/model");
  HostFacts facts;
  facts.home = "/home/there/";
  EXPECT_EQ(facts.with_home("~/./x/../model", "store"), "/home/there/model");
  EXPECT_EQ(facts.with_home("/x/../y", "store"), "/x/../y") << "as it was given";
}

TEST(MpiCommand, HasARankOfItsOwnForEachHost) {
  const LaunchJob job = read(kGood);
  const StagePlan plan = explicit_plan("0:2,2:5", 0, 5, 2);
  const MpiJob mpi{.job = job,
                   .plan = plan,
                   .ranks = {{.address = "10.0.0.2",
                              .binary = "/opt/stagecoach",
                              .store = "/data/model",
                              .memory = 0,
                              .extra = {}},
                             {.address = "10.0.0.1",
                              .binary = "/usr/bin/stagecoach",
                              .store = "/srv/model",
                              .memory = 4000000000,
                              .extra = {"--report=x"}}},
                   .network = "10.0.0.0/24",
                   .shell = "/usr/bin/stagecoach agent-shell /s",
                   .as_root = false};
  EXPECT_EQ(
      shell_command(mpi_command(mpi)),
      "mpirun --oversubscribe --bind-to none --leave-session-attached --mca plm_rsh_agent "
      "'/usr/bin/stagecoach agent-shell /s' --mca plm_rsh_no_tree_spawn 1 --mca "
      "plm_rsh_num_concurrent 128 --mca "
      "oob_tcp_if_include 10.0.0.0/24 "
      "--mca btl_tcp_if_include 10.0.0.0/24 -np 1 --host 10.0.0.2 /opt/stagecoach generate "
      "--store=/data/model "
      "--windows=0:2,2:5 --device=cpu --json=true --prompts=- --stop=a --stop=-b : -np 1 --host "
      "10.0.0.1 "
      "/usr/bin/stagecoach generate "
      "--store=/srv/model --windows=0:2,2:5 --memory=4000000000 --device=cpu --json=true "
      "--prompts=- "
      "--stop=a --stop=-b --report=x");
  EXPECT_EQ(hostfile(mpi), "10.0.0.2 slots=1\n10.0.0.1 slots=1\n");
  EXPECT_EQ(rankfile(mpi), "rank 0=10.0.0.2 slot=*\nrank 1=10.0.0.1 slot=*\n");
}

}  // namespace
}  // namespace stagecoach
