#include "conformance/kernels/kernel_test.h"
#include "kernels/include/pack.h"

namespace stagecoach {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4};
constexpr float kUntouched = -12345.0f;

struct Shape {
  std::int64_t rows, in, out;
};

// A product with gaps between rows of x (NaN: reading one shows) and of y (must stay untouched).
struct Problem {
  Shape shape;
  DType type;
  Floats x, weights, bias, y;  // weights row-major, as the packed type holds them
  std::vector<std::byte> packed;
  std::int64_t x_stride, y_stride;

  std::int64_t panels() const { return (shape.out + kPanelRows - 1) / kPanelRows; }
  MatmulArgs args(Floats& result, bool with_bias, bool accumulate) const {
    return {.x = x.data(),
            .x_stride = x_stride,
            .weight = packed.data(),
            .weight_type = type,
            .bias = with_bias ? bias.data() : nullptr,
            .y = result.data(),
            .y_stride = y_stride,
            .rows = shape.rows,
            .in = shape.in,
            .out = shape.out,
            .accumulate = accumulate};
  }
};

class MatmulTest : public KernelTest {
 protected:
  Problem make(const Shape& shape, DType type) {
    Problem p{.shape = shape,
              .type = type,
              .x = {},
              .weights = {},
              .bias = random(shape.out),
              .y = {},
              .packed = {},
              .x_stride = shape.in + 3,
              .y_stride = shape.out + 5};
    p.x.assign(static_cast<std::size_t>(shape.rows * p.x_stride), std::nanf(""));
    p.y.assign(static_cast<std::size_t>(shape.rows * p.y_stride), kUntouched);
    for (std::int64_t r = 0; r < shape.rows; ++r) {
      const Floats row = random(shape.in), old = random(shape.out);
      std::copy(row.begin(), row.end(), p.x.begin() + r * p.x_stride);
      std::copy(old.begin(), old.end(), p.y.begin() + r * p.y_stride);
    }
    p.weights = random(shape.out * shape.in);
    const Layout layout = matrix_layout(type);
    p.packed.resize(static_cast<std::size_t>(layout_bytes(layout, type, shape.out, shape.in)));
    pack_rows(layout, type, p.weights.data(), shape.out, shape.in, p.packed.data());
    unpack_rows(layout, type, p.packed.data(), shape.in, 0, shape.out, p.weights.data());
    return p;
  }

  Floats run(const Problem& p, bool with_bias = true, bool accumulate = false) {
    Floats y = p.y;
    kernels().matmul(p.args(y, with_bias, accumulate), 0, p.panels());
    return y;
  }
};

// Summing n products one after the other errs by at most n roundings of the sum of magnitudes.
double tolerance(const Problem& p, std::int64_t row, std::int64_t n) {
  double magnitude = std::abs(p.bias[static_cast<std::size_t>(n)]) +
                     std::abs(p.y[static_cast<std::size_t>(row * p.y_stride + n)]);
  for (std::int64_t k = 0; k < p.shape.in; ++k)
    magnitude +=
        std::abs(static_cast<double>(p.x[static_cast<std::size_t>(row * p.x_stride + k)]) *
                 static_cast<double>(p.weights[static_cast<std::size_t>(n * p.shape.in + k)]));
  return static_cast<double>(p.shape.in + 4) * kRoundoff * magnitude;
}

void expect_close(const Problem& p, const Floats& actual, const Floats& expected) {
  for (std::int64_t row = 0; row < p.shape.rows; ++row)
    for (std::int64_t n = 0; n < p.y_stride; ++n) {
      const auto i = static_cast<std::size_t>(row * p.y_stride + n);
      if (n >= p.shape.out)
        ASSERT_EQ(actual[i], kUntouched) << "wrote beyond out at row " << row;
      else
        ASSERT_NEAR(actual[i], expected[i], tolerance(p, row, n))
            << "row " << row << " output " << n << " of " << p.shape.rows << "x" << p.shape.in
            << "x" << p.shape.out << " type " << static_cast<int>(p.type);
    }
}

TEST_P(MatmulTest, AgreesWithTheOracleOverAwkwardShapes) {
  const Shape shapes[] = {{1, 1, 1},    {1, 77, 17},    {2, 31, 33},  {3, 64, 70},
                          {4, 257, 16}, {5, 100, 15},   {6, 300, 95}, {7, 513, 129},
                          {13, 5, 200}, {12, 256, 48},  {24, 48, 32}, {37, 255, 160},
                          {97, 40, 31}, {193, 270, 144}};
  for (const Shape& shape : shapes)
    for (const DType type : kTypes)
      for (const bool with_bias : {false, true})
        for (const bool accumulate : {false, true}) {
          const Problem p = make(shape, type);
          Floats expected = p.y;
          reference_kernels().matmul(p.args(expected, with_bias, accumulate), 0, p.panels());
          expect_close(p, run(p, with_bias, accumulate), expected);
        }
}

TEST_P(MatmulTest, RowDoesNotDependOnItsBatchMates) {
  for (const DType type : kTypes) {
    const Problem p = make({130, 300, 52}, type);
    const Floats all = run(p);
    for (const std::int64_t batch : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 29, 40, 96, 97}) {
      Floats y = p.y;
      for (std::int64_t first = 0; first < p.shape.rows; first += batch) {
        MatmulArgs args = p.args(y, true, false);
        args.x += first * p.x_stride;
        args.y += first * p.y_stride;
        args.rows = std::min(batch, p.shape.rows - first);
        kernels().matmul(args, 0, p.panels());
      }
      ASSERT_TRUE(same_bits(y, all)) << "in batches of " << batch;
    }
  }
}

TEST_P(MatmulTest, SplitsOfPanelsChangeNoBit) {
  for (const DType type : kTypes)
    for (const std::int64_t rows : {1, 3, 6, 50}) {
      const Problem p = make({rows, 70, 16 * 19 + 3}, type);
      const Floats whole = run(p, true, true);
      for (int repetition = 0; repetition < 8; ++repetition) {
        Floats y = p.y;
        for (std::int64_t begin = 0; begin < p.panels();) {
          const std::int64_t end = uniform(begin + 1, p.panels());
          kernels().matmul(p.args(y, true, true), begin, end);
          begin = end;
        }
        ASSERT_TRUE(same_bits(y, whole)) << rows << " rows";
      }
    }
}

// Cancellation makes any other order of the sum show: 1e8 − 1e8 + small terms.
TEST_P(MatmulTest, SumsInAscendingK) {
  Problem p = make({9, 600, 16}, DType::kF32);
  for (std::int64_t row = 0; row < 9; ++row) {
    float* x = p.x.data() + row * p.x_stride;
    for (std::int64_t k = 0; k < 600; ++k) x[k] = k == 0 ? 1e8f : k == 599 ? -1e8f : 1.0f;
  }
  const Floats ones(16 * 600, 1.0f);
  pack_rows(Layout::kPanels16, DType::kF32, ones.data(), 16, 600, p.packed.data());
  float expected = 0.0f;
  for (std::int64_t k = 0; k < 600; ++k) expected += p.x[static_cast<std::size_t>(k)];
  const Floats y = run(p, false);
  for (std::int64_t n = 0; n < 16; ++n) EXPECT_EQ(y[static_cast<std::size_t>(n)], expected);
}

// A quantised product is the f32 product with the values that unpack_rows gives: exactly, whatever
// the number of rows, in the middle of a group and at its end.
TEST_P(MatmulTest, QuantisedWeightsAreTheirFloatValues) {
  for (const DType type : {DType::kQ8, DType::kQ4})
    for (const std::int64_t rows : {1, 2, 4, 6, 12, 13, 40, 130})
      for (const std::int64_t in : {3, 32, 45, 256, 301, 608}) {
        const Problem p = make({rows, in, 16 * 9 + 5}, type);
        Problem plain = p;
        plain.type = DType::kF32;
        plain.packed.resize(static_cast<std::size_t>(
            layout_bytes(Layout::kPanels16, DType::kF32, p.shape.out, in)));
        pack_rows(Layout::kPanels16, DType::kF32, p.weights.data(), p.shape.out, in,
                  plain.packed.data());
        ASSERT_TRUE(same_bits(run(p), run(plain))) << rows << " rows of " << in;
      }
}

STAGECOACH_EVERY_ISA(MatmulTest);

}  // namespace
}  // namespace stagecoach
