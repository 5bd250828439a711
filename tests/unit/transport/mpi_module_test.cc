#include "transport/mpi_module.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/module.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

class Launcher : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK",
                             "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"})
      ::unsetenv(name);
  }
  static void set(const char* name, const char* value) { ::setenv(name, value, 1); }
};

TEST_F(Launcher, NoneIsOneRankAlone) {
  EXPECT_FALSE(launched_by_mpi());
  EXPECT_EQ(launched_rank(), 0);
  EXPECT_EQ(launched_size(), 1);
}

TEST_F(Launcher, OpenMpiSaysWhereWeAre) {
  set("OMPI_COMM_WORLD_RANK", "2");
  set("OMPI_COMM_WORLD_SIZE", "4");
  EXPECT_TRUE(launched_by_mpi());
  EXPECT_EQ(launched_rank(), 2);
  EXPECT_EQ(launched_size(), 4);
}

TEST_F(Launcher, SoDoesSrunWithPmix) {
  set("PMIX_RANK", "1");
  set("SLURM_STEP_NUM_TASKS", "2");
  EXPECT_EQ(launched_rank(), 1);
  EXPECT_EQ(launched_size(), 2);
}

TEST_F(Launcher, ABatchScriptAloneIsNone) {
  set("SLURM_PROCID", "0");
  set("SLURM_NTASKS", "8");
  EXPECT_FALSE(launched_by_mpi());
}

TEST_F(Launcher, NonsenseIsAUsageError) {
  set("OMPI_COMM_WORLD_SIZE", "4");
  for (const char* rank : {"4", "-1", "", "1x", "99999999999999999999"}) {
    set("OMPI_COMM_WORLD_RANK", rank);
    try {
      launched_rank();
      ADD_FAILURE() << "accepted rank '" << rank << "'";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    }
  }
}

TEST_F(Launcher, AMissingModuleIsAClearError) {
  ::setenv("STAGECOACH_MODULES", "/nonexistent", 1);
  try {
    open_mpi_transport();
    ADD_FAILURE() << "opened a module that is not there";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResources);
    EXPECT_NE(error.hint().find("Open MPI"), std::string::npos);
  }
  ::unsetenv("STAGECOACH_MODULES");
}

TEST_F(Launcher, AModuleThatEndsEarlyIsRefusedBeforeItIsMapped) {
  const std::string whole =
      read_text_file(module_folder() / "stagecoach-mpi.so", std::int64_t{1} << 30);
  const TemporaryFolder folder;
  const auto path = folder.path() / "stagecoach-mpi.so";
  ::setenv("STAGECOACH_MODULES", folder.path().c_str(), 1);
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{60}, std::size_t{1000}, whole.size() / 2, whole.size() - 1}) {
    write_file_atomically(path, whole.substr(0, size));
    try {
      open_mpi_transport();
      ADD_FAILURE() << "opened " << size << " bytes of a module";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kResources);
      EXPECT_NE(std::string(error.what()).find(path.string()), std::string::npos) << error.what();
      if (size >= 1000) {
        EXPECT_NE(std::string(error.what()).find(fmt::format("found {}", size)), std::string::npos)
            << error.what();
      }
      EXPECT_NE(error.hint().find("copy lib/stagecoach"), std::string::npos);
    }
  }
  ::unsetenv("STAGECOACH_MODULES");
}

TEST_F(Launcher, AModuleOfAnotherBuildIsRefusedBeforeMpiStarts) {
  const auto module = Module::open("mpi");
  auto* open = module.function<decltype(stagecoach_open_mpi_transport_v2)>(
      "stagecoach_open_mpi_transport_v2");
  try {
    open("yesterday's");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResources);
    EXPECT_NE(std::string(error.what()).find("this binary of yesterday's"), std::string::npos);
  }
}

}  // namespace
}  // namespace stagecoach
