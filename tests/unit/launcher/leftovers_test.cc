#include "launcher/leftovers.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>

#include "base/file_lock.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

class Leftovers : public ::testing::Test {
 protected:
  fs::path make(const fs::path& name, std::chrono::hours age) {
    const fs::path folder = folder_.path() / name;
    fs::create_directories(folder);
    std::ofstream(folder / "file") << "x";
    std::ofstream(folder / kLaunchLock) << "";
    fs::last_write_time(folder, fs::file_time_type::clock::now() - age);
    return folder;
  }
  TemporaryFolder folder_;
};

TEST_F(Leftovers, OldFoldersOfJobsGoUnlessTheyAreTouched) {
  const fs::path fresh = make("jobs/20260101-000000-1@0", std::chrono::hours(1));
  const fs::path old = make("jobs/20260101-000000-2@0", std::chrono::hours(48));
  const fs::path runs = make("jobs/20260101-000000-3@0", std::chrono::hours(48));
  touch_job(runs);
  sweep_jobs(folder_.path());
  EXPECT_TRUE(fs::exists(fresh / "file"));
  EXPECT_FALSE(fs::exists(old));
  EXPECT_TRUE(fs::exists(runs / "file"));
}

TEST_F(Leftovers, OnlyTheFolderGoesAndNotWhatALinkLeadsTo) {
  const fs::path other = make("other", std::chrono::hours(48));
  fs::create_directories(folder_.path() / "jobs");
  fs::create_directory_symlink(other, folder_.path() / "jobs/20260101-000000-4@0");
  sweep_jobs(folder_.path());
  EXPECT_TRUE(fs::exists(other / "file"));
}

TEST_F(Leftovers, LaunchesThatRunAreKeptHoweverOld) {
  const fs::path dead = make("launches/20260101-000000-1", std::chrono::hours(48));
  const fs::path runs = make("launches/20260101-000000-2", std::chrono::hours(48));
  const fs::path fresh = make("launches/20260101-000000-3", std::chrono::hours(0));
  const FileLock lock = FileLock::of_file(runs / kLaunchLock, "held");
  sweep_launches(folder_.path());
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_TRUE(fs::exists(runs / "file"));
  EXPECT_TRUE(fs::exists(fresh / "file"));
}

// The folder of a state may be anybody's.
TEST_F(Leftovers, WhatNoLaunchHasNamedStays) {
  for (const char* name : {"2023-run", "jobs", "20260101-000000-1.old", "20260101-000000-"}) {
    make(fs::path("jobs") / name, std::chrono::hours(4800));
    make(fs::path("launches") / name, std::chrono::hours(4800));
  }
  const fs::path unlocked = make("launches/20260101-000000-9", std::chrono::hours(4800));
  fs::remove(unlocked / kLaunchLock);
  fs::last_write_time(unlocked, fs::file_time_type::clock::now() - std::chrono::hours(4800));
  sweep_jobs(folder_.path());
  sweep_launches(folder_.path());
  for (const char* name : {"2023-run", "jobs", "20260101-000000-1.old", "20260101-000000-"}) {
    EXPECT_TRUE(fs::exists(folder_.path() / "jobs" / name)) << name;
    EXPECT_TRUE(fs::exists(folder_.path() / "launches" / name)) << name;
  }
  EXPECT_TRUE(fs::exists(unlocked));
  EXPECT_FALSE(fs::exists(unlocked / kLaunchLock));
}

TEST_F(Leftovers, NothingToSweepIsNoError) {
  EXPECT_NO_THROW(sweep_jobs(folder_.path() / "none"));
  EXPECT_NO_THROW(sweep_launches(folder_.path() / "none"));
}

}  // namespace
}  // namespace stagecoach
