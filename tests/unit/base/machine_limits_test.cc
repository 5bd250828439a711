#include "base/machine_limits.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/archive.h"
#include "base/error.h"
#include "base/file.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

MachineLimits some_limits() {
  return {.cpu = "Abacus 9000 \"wood\"",
          .isa = "avx2",
          .threads = 6,
          .probed_at = "2024-05-01T12:00:00Z",
          .memory = {10.25e9, 31e9},
          .f32 = {{100e9 / 3, 500e9}, "AVX2 FMA"},
          .bf16 = {{100e9 / 3, 500e9}, "as f32"},
          .int8 = {{200e9, 1e12}, "AVX2 vpmaddubsw"},
          .disks = {{18446744073709551615u, "/stores", 3.5e9, "2024-05-01T12:00:00Z"}},
          .links = {{"pc-b", 80e-6, 0.117e9}},
          .devices = {{.label = "GPU 0 (Slate)",
                       .memory = 900e9 / 7,
                       .to_device = 12e9,
                       .from_device = 13e9,
                       .f32 = 8e12,
                       .f16 = 60e12,
                       .bf16 = 59e12},
                      {.label = "GPU 1 (Chalk)",
                       .memory = 300e9,
                       .to_device = 6e9,
                       .from_device = 5e9,
                       .f32 = 4e12,
                       .f16 = 8e12,
                       .bf16 = {}}}};
}

void expect_damaged(const std::string& text, const char* word) {
  try {
    parse_limits(text, "limits.json", some_limits().cpu);
    FAIL() << "accepted " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    EXPECT_NE(std::string(error.what()).find("limits.json"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
  }
}

std::string with(const std::string& from, const std::string& to) {
  std::string text = limits_json(some_limits());
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

// Each test has a cache of its own; the user's is never touched.
class CachedLimits : public testing::Test {
 protected:
  void SetUp() override { ::setenv("STAGECOACH_CACHE", folder_.path().c_str(), 1); }
  void TearDown() override { ::unsetenv("STAGECOACH_CACHE"); }
  MachineLimits ours() const {
    MachineLimits limits = some_limits();
    limits.cpu = cpu_model();
    limits.disks[0].device = *device_of(folder_.path());
    return limits;
  }
  TemporaryFolder folder_;
};

TEST(MachineLimits, ReadBackExactly) {
  const std::string text = limits_json(some_limits());
  const auto limits = parse_limits(text, "limits.json", some_limits().cpu);
  ASSERT_TRUE(limits);
  EXPECT_EQ(limits_json(*limits), text);
  EXPECT_EQ(limits->f32.rate.one_thread, 100e9 / 3);
  EXPECT_EQ(limits->disks.at(0).device, 18446744073709551615u);
  EXPECT_EQ(limits->links.at(0).latency_seconds, 80e-6);
  EXPECT_EQ(limits->device("GPU 0 (Slate)")->memory, 900e9 / 7);
  EXPECT_EQ(limits->device("GPU 0 (Slate)")->bf16, 59e12);
  EXPECT_FALSE(limits->device("GPU 1 (Chalk)")->bf16);
  EXPECT_EQ(limits->device("GPU 1"), nullptr);
}

TEST(MachineLimits, TravelAsTheyAre) {
  constexpr std::uint32_t kMagic = archive_magic("TEST");
  const auto arrived =
      from_archive<MachineLimits>(kMagic, to_archive(kMagic, some_limits()), "limits");
  EXPECT_EQ(limits_json(arrived), limits_json(some_limits()));
}

TEST(MachineLimits, AnotherVersionOrProcessorIsLeftAlone) {
  const std::string cpu = some_limits().cpu;
  EXPECT_FALSE(parse_limits(limits_json(some_limits()), "limits.json", "another processor"));
  EXPECT_FALSE(parse_limits(with("\"version\": 2", "\"version\": 3"), "limits.json", cpu));
  EXPECT_FALSE(parse_limits(with("stagecoach-limits", "someone-elses"), "limits.json", cpu));
  // What a later version holds is not ours to judge.
  EXPECT_FALSE(
      parse_limits(R"({"format": "stagecoach-limits", "version": 7, "new": 1})", "f", cpu));
}

TEST(MachineLimits, DamageIsNamed) {
  const std::string text = limits_json(some_limits());
  expect_damaged("", "JSON");
  expect_damaged(text.substr(0, text.size() / 2), "JSON");
  expect_damaged("{}", "format");
  expect_damaged(with("\"threads\": 6", "\"threads\": 0"), "threads");
  expect_damaged(with("10250000000.0", "-1"), "one_thread");
  expect_damaged(with("10250000000.0", "\"fast\""), "one_thread");
  expect_damaged(with("18446744073709551615", "-4"), "device");
  expect_damaged(with("\"isa\"", "\"issa\""), "issa");
  expect_damaged(with("\"to\"", "\"from\""), "from");
  expect_damaged(with("12000000000.0", "0"), "to_device");
  expect_damaged(with("59000000000000.0", "\"fast\""), "bf16");
  expect_damaged(with("\"devices\"", "\"cards\""), "cards");
}

TEST(MachineLimits, ThreadsShareWhatAllHave) {
  const ThreadedRate rate{10, 25};
  EXPECT_EQ(rate.of(1), 10);
  EXPECT_EQ(rate.of(2), 20);
  EXPECT_EQ(rate.of(3), 25);
  EXPECT_EQ(rate.of(64), 25);
}

TEST_F(CachedLimits, WhatIsSavedIsFound) {
  EXPECT_FALSE(cached_limits());
  EXPECT_FALSE(cached_disk_rate(folder_.path()));
  save_limits(ours());
  EXPECT_EQ(limits_json(cached_limits().value()), limits_json(ours()));
  EXPECT_EQ(cached_disk_rate(folder_ / "not/yet/there"), 3.5e9);
  EXPECT_EQ(cached_network_latency("pc-b"), 80e-6);
  EXPECT_FALSE(cached_network_latency("pc-c"));
  EXPECT_FALSE(cached_disk_rate("/proc"));
}

TEST_F(CachedLimits, GpusAreThoseThatWereFoundLast) {
  save_limits(ours());
  MachineLimits later = ours();
  later.devices.erase(later.devices.begin());
  save_limits(later);
  const std::optional<MachineLimits> found = cached_limits();
  EXPECT_EQ(found->device("GPU 0 (Slate)"), nullptr);
  EXPECT_EQ(found->device("GPU 1 (Chalk)")->to_device, 6e9);
}

TEST_F(CachedLimits, OtherDisksAndLinksStay) {
  save_limits(ours());
  MachineLimits later = ours();
  later.disks = {{ours().disks[0].device + 1, "/mnt", 1e9, "2024-06-01T12:00:00Z"}};
  later.links = {{"pc-b", 70e-6, 0.118e9}, {"pc-c", 90e-6, 0.1e9}};
  save_limits(later);
  const MachineLimits found = cached_limits().value();
  EXPECT_EQ(found.disks.size(), 2u);
  EXPECT_EQ(found.disk_rate(folder_.path()), 3.5e9);
  EXPECT_EQ(found.links.size(), 2u);
  EXPECT_EQ(found.network_latency("pc-b"), 70e-6);
}

TEST_F(CachedLimits, ADamagedFileIsNoErrorAndIsReplaced) {
  folder_.write("limits.json", "{\"format\": 3");
  EXPECT_FALSE(cached_limits());
  save_limits(ours());
  EXPECT_TRUE(cached_limits());
}

TEST_F(CachedLimits, AnUnwritableCacheIsAResourceError) {
  folder_.write("file", "");
  ::setenv("STAGECOACH_CACHE", (folder_ / "file").c_str(), 1);
  try {
    save_limits(ours());
    FAIL() << "saved into a file";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResources);
  }
}

TEST_F(CachedLimits, WhereTheFileIs) {
  EXPECT_EQ(limits_file(), folder_ / "limits.json");
  ::unsetenv("STAGECOACH_CACHE");
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  const std::string before = xdg != nullptr ? xdg : "";
  ::setenv("XDG_CACHE_HOME", "/cache", 1);
  EXPECT_EQ(limits_file(), "/cache/stagecoach/limits.json");
  if (xdg != nullptr)
    ::setenv("XDG_CACHE_HOME", before.c_str(), 1);
  else
    ::unsetenv("XDG_CACHE_HOME");
}

}  // namespace
}  // namespace stagecoach
