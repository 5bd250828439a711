// What a job's rank 0 prints, on its way to the user: results once, whatever restarts repeat.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace stagecoach {

// Results of a job that a restart begins to print again from its start. As text it is the same text
// again; as lines of JSON it differs in the times they tell, and only their number counts.
class OutputRelay {
 public:
  using Write = std::function<void(std::string_view)>;
  // `other` takes whole lines that are no results, but come where those are: Open MPI 5 may say
  // there what is meant for people.
  OutputRelay(bool lines, Write write, Write other)
      : lines_(lines), write_(std::move(write)), other_(std::move(other)) {}

  void take(std::string_view data);
  // What comes from now on starts from the beginning.
  void restart();
  // Whether the results that have come since are all of them, whose bytes rank 0 has counted. What
  // Open MPI says amid text is no part of them, but a text may read like it: a few of its bytes
  // may be missing only where just as many are Open MPI's.
  bool has_all(std::int64_t bytes) const {
    return taken_ == bytes || taken_ - of_open_mpi_ >= bytes;
  }

 private:
  void take_amid_messages(std::string_view data);
  void take_text(std::string_view data);
  void take_line(std::string line);

  const bool lines_;
  const Write write_, other_;
  std::int64_t taken_ = 0, of_open_mpi_ = 0;  // bytes; the second among the first, of whole lines
  std::size_t passed_ = 0;                    // bytes, or lines, that have gone through in all
  std::size_t to_skip_ = 0;                   // of those that come again
  std::string line_;                          // one that is not finished
  std::string held_;                          // amid text: what may become a message of Open MPI's
};

// Messages of the ranks, line by line; progress stays in one place on a terminal. Open MPI's own
// explanations wait for the end: a launch may know better.
class MessageRelay {
 public:
  using Write = std::function<void(std::string_view)>;
  MessageRelay(bool terminal, Write write) : terminal_(terminal), write_(std::move(write)) {}

  void take(std::string_view data);
  // One that came another way: it does not end what `take` has of a line.
  void take_line(std::string_view line);
  // Of one mpirun. `explained`: what Open MPI has to say is not said.
  void begin();
  void end(bool explained);
  // A rank has said what went wrong, in Stagecoach's way.
  bool saw_error() const { return saw_error_; }
  // Of a rank or a host that Open MPI has missed before anybody else did; empty: of none.
  const std::string& loss() const { return loss_; }

 private:
  void line(const std::string& text);
  void hold(const std::string& text);
  void write(const std::string& text);

  const bool terminal_;
  const Write write_;
  std::string line_, held_, loss_;
  bool in_frame_ = false, progress_shown_ = false, saw_error_ = false;
};

}  // namespace stagecoach
