#include "plan/cluster_spec.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

class ClusterSpecTest : public ::testing::Test {
 protected:
  ClusterSpec read(const std::string& text) {
    file_ = (folder_ / "c.toml").string();
    std::ofstream(file_) << text;
    return read_cluster(file_, "the cluster file", "--cluster");
  }
  // "file:" and what follows it.
  void expect_refused(const std::string& text, const std::string& message) {
    try {
      read(text);
      ADD_FAILURE() << "accepted: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find(file_ + message), std::string::npos) << error.what();
    }
  }

  const TemporaryFolder folder_;
  std::string file_;
};

TEST_F(ClusterSpecTest, HostsComeInTheOrderOfTheFile) {
  const ClusterSpec cluster = read(R"(
[network]
latency_us = 150
gb_per_s = 1.1
[nodes.zebra]
memory = "8GiB"
address = "10.0.0.1"
memory_gb_per_s = 40
disk_gb_per_s = 2.5
[nodes.ant]
memory = 1000
[run]
prompt = "somebody else's"
)");
  EXPECT_DOUBLE_EQ(cluster.network.latency, 150e-6);
  EXPECT_DOUBLE_EQ(cluster.network.bytes_per_second, 1.1e9);
  ASSERT_EQ(cluster.hosts.size(), 2u);
  const HostSpec& zebra = cluster.hosts[0];
  EXPECT_EQ(zebra.name, "zebra");
  EXPECT_EQ(zebra.reached_as(), "10.0.0.1");
  EXPECT_EQ(zebra.memory, std::int64_t{8} << 30);
  EXPECT_DOUBLE_EQ(zebra.rates.memory, 40e9);
  EXPECT_DOUBLE_EQ(zebra.rates.disk, 2.5e9);
  EXPECT_FALSE(zebra.rates.complete());
  EXPECT_EQ(cluster.hosts[1].reached_as(), "ant");
  EXPECT_EQ(cluster.find("ant"), &cluster.hosts[1]);
  EXPECT_EQ(cluster.find("bee"), nullptr);
}

TEST_F(ClusterSpecTest, AFileWithoutHostsIsACluster) {
  EXPECT_TRUE(read("").hosts.empty());
}

TEST_F(ClusterSpecTest, RatesAreCompletedByOthers) {
  const HostRates mine{.memory = 1, .disk = 5};
  const HostRates all = mine.or_else({.memory = 9, .f32 = 2, .bf16 = 3, .int8 = 4, .disk = 9});
  EXPECT_EQ(all.memory, 1);
  EXPECT_EQ(all.f32, 2);
  EXPECT_EQ(all.int8, 4);
  EXPECT_EQ(all.disk, 5);
  EXPECT_TRUE(all.complete());
}

TEST_F(ClusterSpecTest, MistakesHaveLineAndColumn) {
  expect_refused("[nodes.a]\nmemroy = 1\n",
                 ":2:10: 'memroy' is not a setting of nodes.a; known: address");
  expect_refused("[nodes.a]\nmemory = \"8 potatoes\"\n", ":2:10: nodes.a.memory: ");
  expect_refused("[nodes.a]\nmemory = 0\n", ":2:10: nodes.a.memory: expected more than 0 bytes");
  expect_refused("[nodes.a]\ndisk_gb_per_s = -1\n",
                 ":2:17: nodes.a.disk_gb_per_s: expected a number above 0");
  expect_refused("[nodes.a]\ndisk_gb_per_s = nan\n",
                 ":2:17: nodes.a.disk_gb_per_s: expected a number above 0");
  expect_refused("[nodes.a]\ndisk_gb_per_s = \"2\"\n",
                 ":2:17: nodes.a.disk_gb_per_s: expected a number above 0");
  expect_refused("[nodes.a]\nmemory = [1]\n", ":2:10: nodes.a.memory: expected a size");
  expect_refused("[nodes.a]\naddress = 3\n", ":2:11: nodes.a.address: expected a string");
  expect_refused("[nodes]\na = 3\n", ":2:5: nodes.a: expected a table, [nodes.a]");
  expect_refused("nodes = 3\n", ":1:9: nodes: expected a table for each host");
  expect_refused("[network]\nspeed = 3\n", ":2:9: 'speed' is not a setting of network");
  expect_refused("[nodes.a\n", ":1:");
}

TEST_F(ClusterSpecTest, IntegersAreRates) {
  const ClusterSpec cluster = read("[nodes.a]\ndisk_gb_per_s = 9223372036854775807\n");
  EXPECT_DOUBLE_EQ(cluster.hosts[0].rates.disk, 9223372036854775807e9);
}

}  // namespace
}  // namespace stagecoach
