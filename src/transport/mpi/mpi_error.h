#pragma once

#include <array>
#include <string>

#include "base/error.h"
#include "transport/mpi/mpi_api.h"

namespace stagecoach {

inline std::string mpi_error_text(int code) {
  std::array<char, MPI_MAX_ERROR_STRING + 1> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS)
    return fmt::format("MPI error {}", code);
  return {text.data(), static_cast<std::size_t>(length)};
}

// For calls that no single peer can make fail.
inline void check_mpi(int code, const char* call) {
  if (code != MPI_SUCCESS)
    throw Error(ErrorKind::kInternal, fmt::format("{} failed: {}", call, mpi_error_text(code)));
}

}  // namespace stagecoach
