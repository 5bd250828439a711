#include "launcher/daemon_command.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"

namespace stagecoach {
namespace {

TEST(DaemonCommand, OfOpenMpi4) {
  const DaemonCommand command = parse_daemon_command(
      R"mpi( orted -mca ess "env" -mca orte_node_regex "vm,[3:127].0.0.2@0(2)" -mca orte_hnp_uri "728.0;tcp://192.0.2.2:34203")mpi");
  EXPECT_TRUE(command.environment.empty());
  const Words expected{"orted",
                       "-mca",
                       "ess",
                       "env",
                       "-mca",
                       "orte_node_regex",
                       "vm,[3:127].0.0.2@0(2)",
                       "-mca",
                       "orte_hnp_uri",
                       "728.0;tcp://192.0.2.2:34203"};
  EXPECT_EQ(command.words, expected);
}

TEST(DaemonCommand, OfOpenMpi5) {
  ::setenv("STAGECOACH_TEST_PATH", "/usr/lib", 1);
  const DaemonCommand command = parse_daemon_command(
      "PRTE_PREFIX=/opt/mpi;export "
      "PRTE_PREFIX;LD_LIBRARY_PATH=/opt/mpi/lib:$STAGECOACH_TEST_PATH;export LD_LIBRARY_PATH;"
      "/opt/mpi/bin/prted --prtemca ess \"env\"");
  const Environment environment{"PRTE_PREFIX=/opt/mpi", "LD_LIBRARY_PATH=/opt/mpi/lib:/usr/lib"};
  EXPECT_EQ(command.environment, environment);
  const Words words{"/opt/mpi/bin/prted", "--prtemca", "ess", "env"};
  EXPECT_EQ(command.words, words);
}

TEST(DaemonCommand, NothingElseIsStarted) {
  for (const char* text : {"",
                           "ls",
                           "sh -c orted",
                           "orted; ls",
                           "orted && ls",
                           "orted | ls",
                           "orted > file",
                           "orted `ls`",
                           "orted \"`ls`\"",
                           "$(ls)",
                           "orted $(ls)",
                           "orted \"unfinished",
                           "PATH=/tmp;ls",
                           "LD_PRELOAD=/x ls",
                           "export A=1;orted",
                           "/bin/sh",
                           "orted &",
                           "orted\nls",
                           "orted; orted",
                           "mpirun -np 1 ls",
                           "notorted",
                           "orted $"})
    EXPECT_THROW(parse_daemon_command(text), Error) << text;
  EXPECT_THROW(parse_daemon_command(std::string("orted \0ls", 9)), Error);
  EXPECT_THROW(parse_daemon_command("orted " + std::string(2 << 20, 'a')), Error);
}

}  // namespace
}  // namespace stagecoach
