// [run] of a job file as the command that it is for understands it: what launch and doctor look at
// before any host is reached.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

#include "app/command.h"
#include "launcher/job_file.h"

namespace stagecoach {

class RunTable {
 public:
  // Throws usage_error or data_error for a job that no launch would take.
  explicit RunTable(const LaunchJob& job);

  // Of a flag that the command has and somebody has set, or that has a default.
  template <typename T>
  T value(const char* flag, T otherwise) const {
    const CLI::Option* option = command_.app->get_option_no_throw(flag);
    if (option == nullptr) return otherwise;
    return option->count() > 0 || !option->get_default_str().empty() ? option->as<T>() : otherwise;
  }

 private:
  void check_files(const LaunchJob& job) const;
  void check_device(const LaunchJob& job) const;

  CLI::App parent_;
  Command command_;
};

}  // namespace stagecoach
