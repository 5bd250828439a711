#include "pipeline/micro_batch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "base/archive.h"
#include "base/error.h"
#include "base/tensor_view.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kWidth = 6;

MicroBatch sample_batch() {
  MicroBatch batch;
  batch.window = 3;
  batch.label = {.micro_batch = 17, .pass = -2, .phase = Phase::kDecode};
  batch.runs = {{.sequence = 4,
                 .position = 9,
                 .ids = {1, 50256, 7},
                 .targets = {-1, 5, 50256},
                 .sample = false},
                {.sequence = 5, .position = 0, .ids = {2}, .targets = {}, .sample = true}};
  Control admit{.kind = Control::Kind::kAdmit, .sequence = 5, .prompt_length = 1, .sampling = {}};
  admit.sampling.temperature = 0.7;
  admit.sampling.seed = ~std::uint64_t{0};
  admit.sampling.eos_token_ids = {0, 2};
  batch.controls = {
      admit, {.kind = Control::Kind::kDrop, .sequence = 2, .prompt_length = 0, .sampling = {}}};
  return batch;
}

std::vector<float> sample_hidden() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> hidden(4 * kWidth);
  for (float& value : hidden) value = normal(random);
  hidden[0] = -0.0f;
  hidden[1] = std::numeric_limits<float>::denorm_min();
  return hidden;
}

// The description as bytes: equal batches have equal ones.
std::vector<std::byte> description(const MicroBatch& batch) {
  return to_archive(archive_magic("TEST"), batch);
}

TEST(MicroBatchWire, F32RoundTripIsExact) {
  const auto hidden = sample_hidden();
  const auto bytes = encode_micro_batch(sample_batch(), hidden, kWidth, WireType::kF32);
  EXPECT_TRUE(is_micro_batch(bytes));
  PageFloats decoded;
  const MicroBatch batch = decode_micro_batch(bytes, kWidth, decoded);
  EXPECT_EQ(description(batch), description(sample_batch()));
  ASSERT_EQ(decoded.size(), hidden.size());
  EXPECT_EQ(std::memcmp(decoded.data(), hidden.data(), hidden.size() * sizeof(float)), 0);
  EXPECT_EQ(batch.controls[0].sampling.temperature, 0.7);
  EXPECT_EQ(batch.runs[0].targets, (std::vector<TokenId>{-1, 5, 50256}));
}

TEST(MicroBatchWire, Bf16RoundsToNearest) {
  const auto hidden = sample_hidden();
  PageFloats decoded;
  const auto bytes = encode_micro_batch(sample_batch(), hidden, kWidth, WireType::kBF16);
  decode_micro_batch(bytes, kWidth, decoded);
  ASSERT_EQ(decoded.size(), hidden.size());
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    EXPECT_EQ(decoded[i], bf16_to_f32(f32_to_bf16(hidden[i])));
    if (std::abs(hidden[i]) > 1e-30f) {
      EXPECT_LE(std::abs(decoded[i] - hidden[i]), std::abs(hidden[i]) * 0x1p-8f);
    }
  }
}

TEST(MicroBatchWire, AHiddenStateMayFollowByAnotherWay) {
  const auto bytes = encode_description(sample_batch(), kWidth, WireType::kF32);
  const std::size_t elsewhere = sample_hidden().size() * sizeof(float);
  PageFloats decoded(3);
  EXPECT_EQ(description(decode_micro_batch(bytes, kWidth, decoded, elsewhere)),
            description(sample_batch()));
  EXPECT_TRUE(decoded.empty());

  const auto refused = [&](std::span<const std::byte> message, std::size_t rest) {
    EXPECT_THROW(decode_micro_batch(message, kWidth, decoded, rest), Error) << rest;
  };
  refused(bytes, 0);
  refused(bytes, elsewhere - 4);
  refused(bytes, elsewhere + 4);
  // Half of it here and half there, and what the rounded one would take.
  auto longer = bytes;
  longer.resize(bytes.size() + elsewhere / 2);
  refused(longer, elsewhere / 2);
  refused(encode_description(sample_batch(), kWidth, WireType::kBF16), elsewhere / 2);
}

TEST(MicroBatchWire, AGoodbyeHasNoRows) {
  MicroBatch goodbye;
  goodbye.last = true;
  PageFloats decoded(3);
  const MicroBatch batch =
      decode_micro_batch(encode_micro_batch(goodbye, {}, kWidth, WireType::kF32), kWidth, decoded);
  EXPECT_TRUE(batch.last);
  EXPECT_TRUE(decoded.empty());
}

TEST(MicroBatchWire, AnotherWidthIsRefused) {
  const auto bytes = encode_micro_batch(sample_batch(), sample_hidden(), kWidth, WireType::kF32);
  PageFloats decoded;
  EXPECT_THROW(decode_micro_batch(bytes, kWidth + 1, decoded), Error);
}

TEST(MicroBatchWire, RunsThatMakeNoSenseAreRefused) {
  const auto refused = [](auto spoil, std::int64_t rows = 4) {
    MicroBatch batch = sample_batch();
    spoil(batch);
    PageFloats decoded;
    const auto bytes = encode_micro_batch(
        batch, std::vector<float>(static_cast<std::size_t>(rows * kWidth)), kWidth, WireType::kF32);
    try {
      decode_micro_batch(bytes, kWidth, decoded);
      return false;
    } catch (const Error& error) {
      return error.kind() == ErrorKind::kData;
    }
  };
  EXPECT_FALSE(refused([](MicroBatch&) {}));
  EXPECT_TRUE(refused([](MicroBatch& b) { b.runs[0].targets.pop_back(); }));
  EXPECT_TRUE(refused([](MicroBatch& b) { b.runs[0].position = -1; }));
  EXPECT_TRUE(refused([](MicroBatch& b) { b.runs[0].position = std::int64_t{1} << 62; }));
  EXPECT_TRUE(refused([](MicroBatch& b) { b.runs[0].ids[1] = -4; }));
  EXPECT_TRUE(refused([](MicroBatch& b) { b.runs[0].targets[1] = -2; }));
  EXPECT_TRUE(refused([](MicroBatch& b) { b.runs[1].ids.clear(); }, 3));
  EXPECT_TRUE(refused([](MicroBatch& b) { b.window = -1; }));
  EXPECT_TRUE(refused([](MicroBatch& b) { b.label.phase = static_cast<Phase>(9); }));
  EXPECT_TRUE(refused([](MicroBatch& b) { b.controls[0].kind = static_cast<Control::Kind>(2); }));
}

// data_error, or the bytes of what was decoded.
template <typename Decode>
void expect_error_or_sense(const Decode& decode) {
  try {
    decode();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
  }
}

TEST(MicroBatchWire, EveryTruncationIsRefused) {
  for (WireType wire : {WireType::kF32, WireType::kBF16}) {
    const auto bytes = encode_micro_batch(sample_batch(), sample_hidden(), kWidth, wire);
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      PageFloats decoded;
      try {
        decode_micro_batch(std::span(bytes).first(size), kWidth, decoded);
        ADD_FAILURE() << size << " of " << bytes.size() << " bytes were accepted";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kData);
      }
    }
    auto longer = bytes;
    longer.push_back({});
    PageFloats decoded;
    EXPECT_THROW(decode_micro_batch(longer, kWidth, decoded), Error);
  }
}

TEST(MicroBatchWire, EveryFlippedBitIsRefusedOrAnotherBatch) {
  auto bytes = encode_micro_batch(sample_batch(), sample_hidden(), kWidth, WireType::kF32);
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    expect_error_or_sense([&] {
      PageFloats decoded;
      const MicroBatch batch = decode_micro_batch(bytes, kWidth, decoded);
      EXPECT_EQ(static_cast<std::int64_t>(decoded.size()), total_rows(batch.runs) * kWidth);
      EXPECT_NO_THROW(encode_micro_batch(batch, decoded, kWidth, WireType::kF32));
    });
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST(MicroBatchWire, RandomDamageNeverDoesHarm) {
  const auto intact = encode_micro_batch(sample_batch(), sample_hidden(), kWidth, WireType::kBF16);
  std::mt19937 random(99);
  for (int round = 0; round < 20000; ++round) {
    auto bytes = intact;
    for (unsigned damage = random() % 6 + 1; damage > 0; --damage)
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    expect_error_or_sense([&] {
      PageFloats decoded;
      decode_micro_batch(bytes, kWidth, decoded);
      EXPECT_LE(decoded.size(), bytes.size());
    });
  }
}

TEST(ResultWire, RoundTripAndDamage) {
  BatchResult result{.micro_batch = 5,
                     .tokens = {{1, 40}, {2, 0}},
                     .log_probs = {{3, 7, {-0.5, -1.0 / 3}}, {4, 0, {}}}};
  auto bytes = encode_result(result);
  EXPECT_FALSE(is_micro_batch(bytes));
  EXPECT_FALSE(is_micro_batch({}));
  const BatchResult decoded = decode_result(bytes);
  EXPECT_EQ(decoded.micro_batch, 5);
  ASSERT_EQ(decoded.tokens.size(), 2U);
  EXPECT_EQ(decoded.tokens[0].id, 40);
  EXPECT_EQ(decoded.log_probs[0].values, (std::vector<double>{-0.5, -1.0 / 3}));
  EXPECT_EQ(encode_result(decoded), bytes);
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_THROW(decode_result(std::span(bytes).first(size)), Error);
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    expect_error_or_sense([&] { decode_result(bytes); });
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

}  // namespace
}  // namespace stagecoach
