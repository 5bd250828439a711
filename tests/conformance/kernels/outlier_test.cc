// Outlier channels: a few of a token's values are a hundred times as large as the rest, in the same
// channels for every token, as in OPT and BLOOM. What packing such activations costs a product.
#include <cmath>

#include "conformance/kernels/kernel_test.h"
#include "kernels/include/pack.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kRows = 8, kIn = 4096, kOut = 128;
// One in a thousand, each in a group of its own.
constexpr std::int64_t kOutliers[] = {517, 1234, 2790, 3333};

double relative_error(const Floats& exact, const Floats& rounded) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double difference = static_cast<double>(exact[i]) - static_cast<double>(rounded[i]);
    error += difference * difference;
    size += static_cast<double>(exact[i]) * static_cast<double>(exact[i]);
  }
  return std::sqrt(error / size);
}

class OutlierTest : public KernelTest {
 protected:
  Floats activations(float outlier) {
    Floats x = random(kRows * kIn);
    for (std::int64_t row = 0; row < kRows; ++row)
      for (const std::int64_t channel : kOutliers)
        x[static_cast<std::size_t>(row * kIn + channel)] *= outlier;
    return x;
  }

  std::vector<std::byte> normal_weights(DType type) {
    const Layout layout = matrix_layout(type);
    std::vector<std::byte> packed(static_cast<std::size_t>(layout_bytes(layout, type, kOut, kIn)));
    pack_rows(layout, type, random(kOut * kIn).data(), kOut, kIn, packed.data());
    return packed;
  }

  Floats multiply(const InputRows& x, DType type, const std::vector<std::byte>& weights) const {
    Floats y(static_cast<std::size_t>(kRows * kOut));
    kernels().matmul({.x = x,
                      .weight = weights.data(),
                      .weight_type = type,
                      .bias = nullptr,
                      .y = y.data(),
                      .y_stride = kOut,
                      .rows = kRows,
                      .in = kIn,
                      .out = kOut,
                      .accumulate = false},
                     0, kOut / kPanelRows);
    return y;
  }

  // Of the product with packed x, against the same weights and x as it is.
  double error_of_packing(InputType input, const Floats& x, DType type,
                          const std::vector<std::byte>& weights) const {
    const std::int64_t stride = packed_row_stride(input, kIn);
    std::vector<std::byte> packed(static_cast<std::size_t>(kRows * stride));
    kernels().pack_input({.x = x.data(),
                          .x_stride = kIn,
                          .packed = packed.data(),
                          .rows = kRows,
                          .cols = kIn,
                          .type = input},
                         0, kRows);
    return relative_error(multiply(f32_rows(x.data(), kIn), type, weights),
                          multiply({packed.data(), stride, input}, type, weights));
  }

  // Rounds for bf16 products where the table has them, and for float32 products elsewhere.
  InputType bf16() const {
    return kernels().matmul_bf16 != nullptr ? InputType::kBF16 : InputType::kF32;
  }
};

// With weights that know nothing of x, a product errs relative to its size as x does to its own; of
// 128 outputs, most of them four weights large, that shows within a tenth.
constexpr double kSampling = 1.1;

// A group's step is 1/127 of its largest value m, and its 31 other values err by step² / 12 each,
// in the mean of squares, whatever their size, unless they are so small that they become 0 and err
// by less. So where m is nearly all of the group, and such groups of x, the error is √(31 / 12) /
// 127, 1.27 %, of x's size at most, however large m. With one scale for a row the other 4092 values
// would all err so: by √(4092 / 12 / 4) / 127, 7 %, if the four outliers are equal, by more if not.
// Without outliers m is 2.39 standard deviations (the largest of 32 normal values, in the mean of
// squares), and the error 2.39 / √12 / 127, 0.54 %.
TEST_P(OutlierTest, Int8LosesOnlyTheGroupsOfOutliers) {
  for (const DType type : {DType::kQ8, DType::kQ4}) {
    const char* const name = type == DType::kQ8 ? "q8" : "q4";
    const auto weights = normal_weights(type);
    const double with = error_of_packing(InputType::kInt8, activations(100.0f), type, weights);
    const double larger = error_of_packing(InputType::kInt8, activations(10000.0f), type, weights);
    const double without = error_of_packing(InputType::kInt8, activations(1.0f), type, weights);
    RecordProperty(std::string(name) + "_outliers", std::to_string(with));
    RecordProperty(std::string(name) + "_large_outliers", std::to_string(larger));
    RecordProperty(std::string(name) + "_without", std::to_string(without));
    EXPECT_LE(with, kSampling * std::sqrt(31.0 / 12.0) / 127.0) << name;
    EXPECT_LE(larger, kSampling * std::sqrt(31.0 / 12.0) / 127.0) << name;
    EXPECT_LE(without, kSampling * 2.39 / std::sqrt(12.0) / 127.0) << name;
    EXPECT_GT(with, 1.5 * without) << name << ": these are no outliers";
  }
}

// Each value keeps its own exponent: 8 bits of it, an error of 2⁻⁷ / √12, 0.23 %, of the power of
// two below it, and so of itself at most.
TEST_P(OutlierTest, Bf16DoesNotNoticeThem) {
  for (const DType type : {DType::kQ8, DType::kQ4}) {
    const char* const name = type == DType::kQ8 ? "q8" : "q4";
    const auto weights = normal_weights(type);
    for (const float outlier : {1.0f, 100.0f, 10000.0f}) {
      const double error = error_of_packing(bf16(), activations(outlier), type, weights);
      RecordProperty(std::string(name) + "_" + std::to_string(static_cast<int>(outlier)),
                     std::to_string(error));
      EXPECT_LE(error, kSampling * 0x1p-7 / std::sqrt(12.0)) << name << ", x " << outlier;
      EXPECT_GT(error, 0.0) << "nothing was rounded";
    }
  }
}

STAGECOACH_EVERY_ISA(OutlierTest);

}  // namespace
}  // namespace stagecoach
