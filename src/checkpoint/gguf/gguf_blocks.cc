// In what follows d and m are the block's float16 scale and minimum, q an element's small integer.
// Where an element's bits are split over several places, b[i] is byte i of one of them.
#include "checkpoint/gguf/gguf_blocks.h"

#include <array>
#include <cstring>

#include "base/error.h"

namespace stagecoach {
namespace {

using Byte = std::uint8_t;

constexpr int kBlock = 32;        // elements of a Q4_0 … Q8_0 block
constexpr int kSuperBlock = 256;  // elements of a K-quant block

float half_at(const Byte* data) {
  std::uint16_t bits;
  std::memcpy(&bits, data, sizeof(bits));
  return f16_to_f32(bits);
}

int low(Byte byte) {
  return byte & 15;
}
int high(Byte byte) {
  return byte >> 4;
}

// f16 d | 32 × i8:  d·q
void decode_q8_0(const Byte* block, float* out) {
  const float d = half_at(block);
  for (int i = 0; i < kBlock; ++i)
    out[i] = d * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
}

// Byte j of 16 holds element j in its low half and element j + 16 in its high half.
//
// f16 d | 16 bytes:  d·(q - 8)
void decode_q4_0(const Byte* block, float* out) {
  const float d = half_at(block);
  for (int j = 0; j < kBlock / 2; ++j) {
    out[j] = d * static_cast<float>(low(block[2 + j]) - 8);
    out[j + kBlock / 2] = d * static_cast<float>(high(block[2 + j]) - 8);
  }
}

// f16 d | f16 m | 16 bytes:  d·q + m
void decode_q4_1(const Byte* block, float* out) {
  const float d = half_at(block), m = half_at(block + 2);
  for (int j = 0; j < kBlock / 2; ++j) {
    out[j] = d * static_cast<float>(low(block[4 + j])) + m;
    out[j + kBlock / 2] = d * static_cast<float>(high(block[4 + j])) + m;
  }
}

// The fifth bits of all elements, bit i for element i, and the other four as above.
int five_bits(const Byte* fifth, const Byte* rest, int i) {
  const int four = i < kBlock / 2 ? low(rest[i]) : high(rest[i - kBlock / 2]);
  return four | ((fifth[i / 8] >> (i % 8)) & 1) << 4;
}

// f16 d | u32 fifth bits | 16 bytes:  d·(q - 16)
void decode_q5_0(const Byte* block, float* out) {
  const float d = half_at(block);
  for (int i = 0; i < kBlock; ++i)
    out[i] = d * static_cast<float>(five_bits(block + 2, block + 6, i) - 16);
}

// f16 d | f16 m | u32 fifth bits | 16 bytes:  d·q + m
void decode_q5_1(const Byte* block, float* out) {
  const float d = half_at(block), m = half_at(block + 2);
  for (int i = 0; i < kBlock; ++i)
    out[i] = d * static_cast<float>(five_bits(block + 4, block + 8, i)) + m;
}

// A K-quant's elements come in sub-blocks of 16 or 32, each with a small integer scale of its own.
// Pairs of bits: 32 bytes serve 128 elements, element i of them at bits 2·(i / 32) of byte i % 32.
int two_bits(const Byte* b, int i) {
  return (b[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
}

// 16 × (scale low half, minimum high half) | 64 bytes of pairs | f16 d | f16 m:
// (d·scale)·q - m·minimum
void decode_q2_k(const Byte* block, float* out) {
  const Byte *scales = block, *pairs = block + 16;
  const float d = half_at(block + 80), m = half_at(block + 82);
  for (int i = 0; i < kSuperBlock; ++i) {
    const Byte packed = scales[i / 16];
    const float scale = d * static_cast<float>(low(packed));
    const float minimum = m * static_cast<float>(high(packed));
    out[i] = scale * static_cast<float>(two_bits(pairs, i)) - minimum;
  }
}

// Sixteen scales of 6 bits in 12 bytes. The low four bits of scale i stand in the low half of byte
// i, those of scale i + 8 in its high half; the two others of scale i at bits 2·(i / 4) of byte 8 +
// i % 4.
int q3_k_scale(const Byte* b, int i) {
  const int four = i < 8 ? low(b[i]) : high(b[i - 8]);
  return four | ((b[8 + i % 4] >> (i / 4 * 2)) & 3) << 4;
}

// 32 bytes of third bits, bit i / 32 of byte i % 32 | 64 bytes of pairs | 12 bytes of scales |
// f16 d:  (d·(scale - 32))·(q - 4), q with its third bit
void decode_q3_k(const Byte* block, float* out) {
  const Byte *third = block, *pairs = block + 32, *scales = block + 96;
  const float d = half_at(block + 108);
  for (int i = 0; i < kSuperBlock; ++i) {
    const float scale = d * static_cast<float>(q3_k_scale(scales, i / 16) - 32);
    const int q = two_bits(pairs, i) | ((third[i % 32] >> (i / 32)) & 1) << 2;
    out[i] = scale * static_cast<float>(q - 4);
  }
}

struct ScaleAndMinimum {
  int scale, minimum;
};

// Eight scales and eight minima of 6 bits in 12 bytes: the first four of each plainly in bytes 0-3
// and 4-7; of the others four bits in bytes 8-11 and two in the upper bits of bytes 0-3 and 4-7.
ScaleAndMinimum q4_k_scale(const Byte* b, int i) {
  if (i < 4) return {b[i] & 63, b[i + 4] & 63};
  return {low(b[i + 4]) | (b[i - 4] >> 6) << 4, high(b[i + 4]) | (b[i] >> 6) << 4};
}

// Nibbles of pairs of sub-blocks of 32: 32 bytes serve 64 elements, the first 32 in the low halves.
int k_nibble(const Byte* b, int i) {
  const Byte byte = b[i / 64 * 32 + i % 32];
  return i % 64 < 32 ? low(byte) : high(byte);
}

// f16 d | f16 m | 12 bytes of scales and minima | 128 bytes of nibbles:  (d·scale)·q - m·minimum
void decode_q4_k(const Byte* block, float* out) {
  const float d = half_at(block), m = half_at(block + 2);
  for (int i = 0; i < kSuperBlock; ++i) {
    const ScaleAndMinimum packed = q4_k_scale(block + 4, i / 32);
    const float scale = d * static_cast<float>(packed.scale);
    const float minimum = m * static_cast<float>(packed.minimum);
    out[i] = scale * static_cast<float>(k_nibble(block + 16, i)) - minimum;
  }
}

// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit i / 32 of byte i % 32.
void decode_q5_k(const Byte* block, float* out) {
  const Byte *fifth = block + 16, *nibbles = block + 48;
  const float d = half_at(block), m = half_at(block + 2);
  for (int i = 0; i < kSuperBlock; ++i) {
    const ScaleAndMinimum packed = q4_k_scale(block + 4, i / 32);
    const float scale = d * static_cast<float>(packed.scale);
    const float minimum = m * static_cast<float>(packed.minimum);
    const int q = k_nibble(nibbles, i) | ((fifth[i % 32] >> (i / 32)) & 1) << 4;
    out[i] = scale * static_cast<float>(q) - minimum;
  }
}

// 128 bytes of nibbles, 64 for each half of the block | 64 bytes of pairs, the upper two bits |
// 16 × i8 scale | f16 d:  (d·scale)·(q - 32)
void decode_q6_k(const Byte* block, float* out) {
  const Byte *nibbles = block, *pairs = block + 128, *scales = block + 192;
  const float d = half_at(block + 208);
  for (int i = 0; i < kSuperBlock; ++i) {
    const Byte byte = nibbles[i / 128 * 64 + i % 64];
    const int four = i % 128 < 64 ? low(byte) : high(byte);
    const int q = four | two_bits(pairs, i) << 4;
    const float scale = d * static_cast<float>(static_cast<std::int8_t>(scales[i / 16]));
    out[i] = scale * static_cast<float>(q - 32);
  }
}

using DecodeBlock = void (*)(const Byte* block, float* out);

DecodeBlock decoder_of(BlockFormat format) {
  switch (format) {
    case BlockFormat::kQ8_0:
      return decode_q8_0;
    case BlockFormat::kQ4_0:
      return decode_q4_0;
    case BlockFormat::kQ4_1:
      return decode_q4_1;
    case BlockFormat::kQ5_0:
      return decode_q5_0;
    case BlockFormat::kQ5_1:
      return decode_q5_1;
    case BlockFormat::kQ2_K:
      return decode_q2_k;
    case BlockFormat::kQ3_K:
      return decode_q3_k;
    case BlockFormat::kQ4_K:
      return decode_q4_k;
    case BlockFormat::kQ5_K:
      return decode_q5_k;
    case BlockFormat::kQ6_K:
      return decode_q6_k;
    case BlockFormat::kF32:
    case BlockFormat::kF16:
    case BlockFormat::kBF16:
      break;
  }
  STAGECOACH_CHECK(false);
}

}  // namespace

void decode_quantised_blocks(BlockFormat format, const std::byte* blocks, std::int64_t count,
                             float* elements) {
  const BlockShape shape = block_shape(format);
  STAGECOACH_CHECK(count % shape.elements == 0);
  const DecodeBlock decode = decoder_of(format);
  const auto* bytes = reinterpret_cast<const Byte*>(blocks);
  for (std::int64_t i = 0; i < count / shape.elements; ++i)
    decode(bytes + i * shape.bytes, elements + i * shape.elements);
}

}  // namespace stagecoach
