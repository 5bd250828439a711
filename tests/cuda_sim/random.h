// Every choice of the simulator comes from one generator, so that a seed repeats a run exactly (of
// a program that calls from one thread).
#pragma once

#include <cstdint>

namespace cuda_sim {

class Random {  // SplitMix64
 public:
  explicit Random(std::uint64_t seed = 0) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // 0 … count - 1; the bias of a multiplication is of no consequence here.
  std::uint32_t below(std::uint32_t count) {
    return static_cast<std::uint32_t>(((next() >> 32) * count) >> 32);
  }
  bool chance(std::uint32_t of, std::uint32_t out_of) { return below(out_of) < of; }

 private:
  std::uint64_t state_;
};

}  // namespace cuda_sim
