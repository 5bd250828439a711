// Normal deviates at random access: element i of a stream is a pure function of (seed, stream, i),
// the same bits on every PC, in every order, on any number of threads.
//
// Bits come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC'11), a counter-based generator: block b of a stream is the encryption of b. Box and Muller's
// transform (1958) turns each pair of words into a pair of normals, in float32 IEEE arithmetic
// alone (no libm): the log and sine here are polynomials good to about 1e-7, which is cheap enough
// for models of hundreds of gigabytes; portable_math.h's doubles would be several times slower.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace stagecoach {

struct NormalStream {
  std::uint64_t seed;
  std::uint32_t tensor;  // which tensor
  std::uint32_t layer;
};

using PhiloxBlock = std::array<std::uint32_t, 4>;
PhiloxBlock philox4x32(PhiloxBlock counter, std::array<std::uint32_t, 2> key);

// Elements [begin, begin + out.size()) of the stream, standard deviation `scale`; |x| < 5.8 scale.
void fill_normal(const NormalStream& stream, std::uint64_t begin, float scale,
                 std::span<float> out);

}  // namespace stagecoach
