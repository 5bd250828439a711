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
  fs::path make(const std::string& name, std::chrono::hours age) {
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
  const fs::path fresh = make("jobs/fresh@0", std::chrono::hours(1));
  const fs::path old = make("jobs/old@0", std::chrono::hours(48));
  const fs::path runs = make("jobs/runs@0", std::chrono::hours(48));
  touch_job(runs);
  sweep_jobs(folder_.path());
  EXPECT_TRUE(fs::exists(fresh / "file"));
  EXPECT_FALSE(fs::exists(old));
  EXPECT_TRUE(fs::exists(runs / "file"));
}

TEST_F(Leftovers, OnlyTheFolderGoesAndNotWhatALinkLeadsTo) {
  const fs::path other = make("other", std::chrono::hours(48));
  fs::create_directories(folder_.path() / "jobs");
  fs::create_directory_symlink(other, folder_.path() / "jobs/link@0");
  sweep_jobs(folder_.path());
  EXPECT_TRUE(fs::exists(other / "file"));
}

TEST_F(Leftovers, LaunchesThatRunAreKeptHoweverOld) {
  const fs::path dead = make("launches/dead", std::chrono::hours(48));
  const fs::path runs = make("launches/runs", std::chrono::hours(48));
  const fs::path fresh = make("launches/fresh", std::chrono::hours(0));
  const FileLock lock = FileLock::of_file(runs / kLaunchLock, "held");
  sweep_launches(folder_.path());
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_TRUE(fs::exists(runs / "file"));
  EXPECT_TRUE(fs::exists(fresh / "file"));
}

TEST_F(Leftovers, NothingToSweepIsNoError) {
  EXPECT_NO_THROW(sweep_jobs(folder_.path() / "none"));
  EXPECT_NO_THROW(sweep_launches(folder_.path() / "none"));
}

}  // namespace
}  // namespace stagecoach
