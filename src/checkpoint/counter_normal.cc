#include "checkpoint/counter_normal.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace stagecoach {
namespace {

// Blocks made at once: the loops below run over arrays so that the compiler vectorises them.
constexpr std::size_t kBatch = 128;
constexpr std::uint64_t kPerBlock = 4;

struct Words {
  std::uint32_t word[kPerBlock][kBatch];
};

void philox_rounds(Words& words, std::array<std::uint32_t, 2> key, std::size_t count) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;  // golden ratio, sqrt(3) - 1
  auto& [x0, x1, x2, x3] = words.word;
  for (int round = 0; round < 10; ++round) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t product0 = kMultiplier0 * x0[i];
      const std::uint64_t product1 = kMultiplier1 * x2[i];
      x0[i] = static_cast<std::uint32_t>(product1 >> 32) ^ x1[i] ^ key[0];
      x1[i] = static_cast<std::uint32_t>(product1);
      x2[i] = static_cast<std::uint32_t>(product0 >> 32) ^ x3[i] ^ key[1];
      x3[i] = static_cast<std::uint32_t>(product0);
    }
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
}

// ln u for u in (0, 1], normal floats: u = 2^e · m with m in [√½, √2), and
// ln m = 2 atanh(s), s = (m − 1) / (m + 1), |s| ≤ 0.172: the series to s⁹ leaves less than 1e-9.
inline float log_unit(float u) {
  constexpr std::uint32_t kSqrtHalf = 0x3f3504f3;  // bits of √½
  const std::uint32_t shifted = std::bit_cast<std::uint32_t>(u) - kSqrtHalf;
  const float e = static_cast<float>(static_cast<std::int32_t>(shifted) >> 23);
  const float m = std::bit_cast<float>((shifted & 0x7fffffu) + kSqrtHalf);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float s2 = s * s;
  const float series = 1.0f + s2 * (1.0f / 3 + s2 * (1.0f / 5 + s2 * (1.0f / 7 + s2 * (1.0f / 9))));
  return e * 0.693147181f + 2.0f * s * series;
}

struct Pair {
  float first, second;
};

// Box and Muller: radius from one word, angle from the other. The angle is an eighth of a turn off
// the plain reading of its word, so that the polynomials see [-π/4, π/4); uniform it is either way.
inline Pair normal_pair(std::uint32_t radius_word, std::uint32_t angle_word) {
  // 24 bits, shifted to (0, 1]: exact in float32, and never ln 0.
  const float u = static_cast<float>(static_cast<std::int32_t>(radius_word >> 8) + 1) * 0x1p-24f;
  const float radius = std::sqrt(-2.0f * log_unit(u));

  const std::uint32_t quarter = angle_word >> 30;
  const std::int32_t centred = static_cast<std::int32_t>(angle_word & 0x3fffffffu) - (1 << 29);
  const float a = static_cast<float>(centred) * (1.57079633f * 0x1p-30f);
  const float a2 = a * a;
  // Taylor, to a⁹ and a⁸: the next terms are below 2e-9 and 3e-8.
  const float sine =
      a *
      (1.0f + a2 * (-1.0f / 6 + a2 * (1.0f / 120 + a2 * (-1.0f / 5040 + a2 * (1.0f / 362880)))));
  const float cosine =
      1.0f + a2 * (-0.5f + a2 * (1.0f / 24 + a2 * (-1.0f / 720 + a2 * (1.0f / 40320))));

  // Quarter turns (c, s) → (-s, c) → (-c, -s) → (s, -c), on the bits, without branches.
  const std::uint32_t swap = 0u - (quarter & 1u);
  const std::uint32_t c = std::bit_cast<std::uint32_t>(cosine),
                      s = std::bit_cast<std::uint32_t>(sine);
  const std::uint32_t x = ((c & ~swap) | (s & swap)) ^ (((quarter + 1) & 2u) << 30);
  const std::uint32_t y = ((s & ~swap) | (c & swap)) ^ ((quarter & 2u) << 30);
  return {radius * std::bit_cast<float>(x), radius * std::bit_cast<float>(y)};
}

// Elements of the `count` blocks from `first_block` on, kPerBlock each.
void normal_blocks(const NormalStream& stream, std::uint64_t first_block, std::size_t count,
                   float scale, float* out) {
  Words words;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t block = first_block + i;
    words.word[0][i] = static_cast<std::uint32_t>(block);
    words.word[1][i] = static_cast<std::uint32_t>(block >> 32);
    words.word[2][i] = stream.tensor;
    words.word[3][i] = stream.layer;
  }
  philox_rounds(
      words,
      {static_cast<std::uint32_t>(stream.seed), static_cast<std::uint32_t>(stream.seed >> 32)},
      count);
  for (std::size_t i = 0; i < count; ++i) {
    const Pair a = normal_pair(words.word[0][i], words.word[1][i]);
    const Pair b = normal_pair(words.word[2][i], words.word[3][i]);
    out[kPerBlock * i] = scale * a.first;
    out[kPerBlock * i + 1] = scale * a.second;
    out[kPerBlock * i + 2] = scale * b.first;
    out[kPerBlock * i + 3] = scale * b.second;
  }
}

}  // namespace

PhiloxBlock philox4x32(PhiloxBlock counter, std::array<std::uint32_t, 2> key) {
  Words words;
  for (std::size_t w = 0; w < kPerBlock; ++w) words.word[w][0] = counter[w];
  philox_rounds(words, key, 1);
  return {words.word[0][0], words.word[1][0], words.word[2][0], words.word[3][0]};
}

void fill_normal(const NormalStream& stream, std::uint64_t begin, float scale,
                 std::span<float> out) {
  float batch[kBatch * kPerBlock];
  while (!out.empty()) {
    const std::uint64_t skip = begin % kPerBlock;
    const std::size_t wanted = std::min(out.size(), std::size_t{kBatch * kPerBlock} - skip);
    const std::size_t blocks = (skip + wanted + kPerBlock - 1) / kPerBlock;
    normal_blocks(stream, begin / kPerBlock, blocks, scale, batch);
    std::memcpy(out.data(), batch + skip, wanted * sizeof(float));
    out = out.subspan(wanted);
    begin += wanted;
  }
}

}  // namespace stagecoach
