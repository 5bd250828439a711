// Ranks as threads over the loopback transport.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "transport/loopback/loopback_transport.h"

namespace stagecoach {

// Runs `body` on `size` ranks and waits for all. What each of them threw; null: nothing. A rank
// that throws is lost to the others, as if its process had ended.
inline std::vector<std::exception_ptr> run_ranks(int size,
                                                 const std::function<void(Transport&)>& body) {
  auto transports = make_loopback(size);
  std::vector<std::exception_ptr> thrown(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([&, i = static_cast<std::size_t>(r)] {
      try {
        body(*transports[i]);
      } catch (...) {
        thrown[i] = std::current_exception();
        transports[i].reset();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return thrown;
}

}  // namespace stagecoach
