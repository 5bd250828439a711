#include "launcher/relay.h"

#include <gtest/gtest.h>

namespace stagecoach {
namespace {

TEST(OutputRelay, TextGoesOnWhereItBroke) {
  std::string shown;
  OutputRelay relay(
      false, [&](std::string_view text) { shown += text; }, nullptr);
  relay.take("once upon");
  relay.take(" a ti");
  relay.restart();
  relay.take("once");
  relay.take(" upon a time");
  EXPECT_EQ(shown, "once upon a time");
  relay.restart();
  relay.take("once upon a time, again");
  EXPECT_EQ(shown, "once upon a time, again");
  EXPECT_TRUE(relay.has_all(23));
  EXPECT_FALSE(relay.has_all(24));
}

TEST(OutputRelay, LinesAreCountedNotCompared) {
  std::string shown;
  OutputRelay relay(
      true, [&](std::string_view text) { shown += text; }, nullptr);
  relay.take("{\"seconds\": 1}\n{\"sec");  // the half line was never shown
  relay.restart();
  relay.take("{\"seconds\": 22}\n{\"seconds\": 3}\n");
  EXPECT_EQ(shown, "{\"seconds\": 1}\n{\"seconds\": 3}\n");
  relay.restart();
  relay.take("{1}\n{2}\n{3}\n");
  EXPECT_EQ(shown, "{\"seconds\": 1}\n{\"seconds\": 3}\n{3}\n");
}

// Open MPI 5 has been seen to put a message of its own among them.
TEST(OutputRelay, WhatIsNoResultGoesWhereMessagesGo) {
  using namespace std::string_literals;
  std::string shown, other;
  OutputRelay relay(
      true, [&](std::string_view text) { shown += text; },
      [&](std::string_view text) { other += text; });
  relay.take("{1}\n\0[pc-a:00000] *** An error\n\n{2}\n{"s);
  EXPECT_EQ(shown, "{1}\n{2}\n");
  EXPECT_EQ(other, "[pc-a:00000] *** An error\n\n");
  EXPECT_TRUE(relay.has_all(8)) << "of whole results";
  EXPECT_FALSE(relay.has_all(9));
  relay.restart();
  EXPECT_FALSE(relay.has_all(1));
  relay.take("warning\n{1}\n{2}\n{3}\n");
  EXPECT_EQ(shown, "{1}\n{2}\n{3}\n") << "only results are skipped";
}

TEST(OutputRelay, AResultBehindAZeroByteIsOne) {
  using namespace std::string_literals;
  std::string shown, other;
  OutputRelay relay(
      true, [&](std::string_view text) { shown += text; },
      [&](std::string_view text) { other += text; });
  relay.take("{1}\n[pc-a:00000] *** An error\n\0{2}\n[pc-a:00000] PMIX\0{3}\n"s);
  EXPECT_EQ(shown, "{1}\n{2}\n{3}\n");
  EXPECT_EQ(other, "[pc-a:00000] *** An error\n[pc-a:00000] PMIX\n") << "in lines of its own";
  EXPECT_TRUE(relay.has_all(12));
}

// Its messages do not make up for text that has not come.
TEST(OutputRelay, WhatOpenMpiSaysIsNoneOfTheText) {
  using namespace std::string_literals;
  const std::string message = "[pc-a:00000] *** An error\n";
  const auto has_all = [](const std::string& text, std::int64_t bytes) {
    OutputRelay relay(
        false, [](std::string_view) {}, nullptr);
    for (const char c : text) relay.take({&c, 1});
    return relay.has_all(bytes);
  };
  EXPECT_TRUE(has_all("once upon\n" + message, 10));
  EXPECT_FALSE(has_all("once up\n"s + message, 10)) << "two are on their way";
  EXPECT_TRUE(has_all("[12:34] once\n", 13)) << "a text may look like it";
  EXPECT_FALSE(has_all("[12:34] once\n", 14));
}

// Nor is it skipped for text when that comes again.
TEST(OutputRelay, AMessageBehindAZeroByteIsTakenOutOfTheText) {
  using namespace std::string_literals;
  std::string shown, other;
  OutputRelay relay(
      false, [&](std::string_view text) { shown += text; },
      [&](std::string_view text) { other += text; });
  for (const char c : "once\0[pc-a:00000] *** An error\n up"s) relay.take({&c, 1});
  EXPECT_EQ(shown, "once up");
  EXPECT_EQ(other, "[pc-a:00000] *** An error\n");
  EXPECT_TRUE(relay.has_all(7));
  relay.restart();
  relay.take("once upon\n");
  EXPECT_EQ(shown, "once upon\n");
  relay.take("\0[a] b\n\0x\0"s);
  EXPECT_EQ(shown, "once upon\n\0[a] b\n\0x"s) << "a text's own";
}

constexpr const char* kFrame =
    "--------------------------------------------------------------------------\n";

TEST(MessageRelay, OpenMpiWaitsForTheVerdict) {
  for (const bool explained : {false, true}) {
    std::string shown;
    MessageRelay relay(false, [&](std::string_view text) { shown += text; });
    relay.take(std::string("before\n") + kFrame + "mpirun noticed that\n" + kFrame +
               "[pc-a:123] 1 more process\n12:00:00 info: af");
    relay.take("ter\nlast");
    EXPECT_EQ(shown, "before\n12:00:00 info: after\n");
    relay.end(explained);
    EXPECT_EQ(shown.find("last") != std::string::npos, true);
    EXPECT_EQ(shown.find("mpirun noticed") != std::string::npos, !explained);
    EXPECT_EQ(shown.find("1 more") != std::string::npos, !explained);
  }
}

// As versions 5.0.8 and 4.1.4 say it.
TEST(MessageRelay, HearsOfALossThatOpenMpiHasNoticed) {
  using namespace std::string_literals;
  const auto loss = [](const std::string& text) {
    std::string shown;
    MessageRelay relay(false, [&](std::string_view some) { shown += some; });
    relay.begin();
    relay.take(text);
    EXPECT_EQ(shown, "") << "Open MPI waits for the verdict";
    const std::string found = relay.loss();
    relay.end(true);
    EXPECT_EQ(shown, "");
    relay.begin();
    EXPECT_EQ(relay.loss(), "") << "of the run before";
    return found;
  };
  EXPECT_EQ(loss("\0[pc-a:00000] *** An error occurred in Socket closed\n\0\n"s),
            "Open MPI has lost a rank");
  EXPECT_EQ(
      loss(kFrame + "An MPI communication peer process has unexpectedly disconnected.  This\n"s +
           "  Local host: pc-a\n  Peer host:  pc-c\n" + kFrame),
      "Open MPI has lost a rank on pc-c");
  EXPECT_EQ(loss(kFrame + "ORTE has lost communication with a remote daemon.\n"s + kFrame),
            "Open MPI has lost a rank");
  EXPECT_EQ(loss(kFrame + "mpirun was unable to find the specified executable file\n"s + kFrame),
            "");
}

// A zero byte that ends a message of Open MPI's stands before what a rank says next.
TEST(MessageRelay, ZeroBytesSwallowNothing) {
  using namespace std::string_literals;
  std::string shown;
  MessageRelay relay(false, [&](std::string_view text) { shown += text; });
  relay.begin();
  relay.take("\0\n\0stagecoach: the store is damaged\n"s);
  EXPECT_EQ(shown, "stagecoach: the store is damaged\n");
  EXPECT_TRUE(relay.saw_error());
  relay.take("[pc-a:1] PMIX ERROR\0warning: slow disk\nfound '\0', expected 'a'\n"s);
  relay.end(true);
  EXPECT_EQ(shown,
            "stagecoach: the store is damaged\nwarning: slow disk\nfound '\n', expected 'a'\n");
}

// Results and messages come by two pipes.
TEST(MessageRelay, ALineOfStdoutEndsNoHalfLineOfStderr) {
  std::string shown;
  MessageRelay relay(false, [&](std::string_view text) { shown += text; });
  relay.take("12:00:00 info: half a ");
  relay.take_line("warning: x\n");
  relay.take("line\n");
  EXPECT_EQ(shown, "warning: x\n12:00:00 info: half a line\n");
}

TEST(MessageRelay, ProgressStaysInPlaceOnATerminal) {
  const std::string line = "generating  42 %  12 tokens of 20 tokens  3 tokens/s  ETA 4 s";
  std::string shown;
  MessageRelay relay(true, [&](std::string_view text) { shown += text; });
  relay.take(line + "\n" + line + "\nwarning: x\n");
  EXPECT_EQ(shown, "\r" + line + "\033[K\r" + line + "\033[K\nwarning: x\n");
  std::string plain;
  MessageRelay file(false, [&](std::string_view text) { plain += text; });
  file.take(line + "\n");
  EXPECT_EQ(plain, line + "\n");
}

}  // namespace
}  // namespace stagecoach
