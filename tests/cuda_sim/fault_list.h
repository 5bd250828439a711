// Injected faults: FUNCTION:N:ERROR,… (see Config::faults).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cuda_sim {

class FaultList {
 public:
  // Empty on success, else what is wrong with the text.
  std::string parse(const std::string& text);
  // Counts a call; returns the error that it shall give, or 0. cuBLAS statuses are negative.
  int next(const std::string& function);
  // Whether calls of this function are counted: the others cannot fail.
  static bool is_counted(std::string_view function);

 private:
  struct Fault {
    std::string function;
    std::uint64_t left;
    int error;
  };
  std::vector<Fault> faults_;
};

}  // namespace cuda_sim
