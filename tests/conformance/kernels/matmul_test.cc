#include "conformance/kernels/kernel_test.h"
#include "kernels/include/pack.h"

namespace stagecoach {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4};
constexpr InputType kInputs[] = {InputType::kF32, InputType::kBF16, InputType::kInt8};
constexpr float kUntouched = -12345.0f;

struct Shape {
  std::int64_t rows, in, out;
};

// What a product multiplies with what.
struct Kind {
  InputType input;
  DType weights;
};

std::string describe(const Kind& kind) {
  constexpr const char* kInputNames[] = {"f32", "bf16", "int8"};
  constexpr const char* kTypeNames[] = {"f32", "f16", "bf16", "q8", "q4"};
  return std::string(kInputNames[static_cast<int>(kind.input)]) + " x " +
         kTypeNames[static_cast<int>(kind.weights)];
}

// A product with gaps between rows of x (NaN: reading one shows) and of y (must stay untouched).
struct Problem {
  Shape shape;
  Kind kind;
  Floats x, weights, bias, y;  // weights row-major, as the packed type holds them
  std::vector<std::byte> packed;
  std::vector<std::byte> packed_x;  // empty where x is multiplied as it is
  std::int64_t x_stride, y_stride;

  std::int64_t panels() const { return (shape.out + kPanelRows - 1) / kPanelRows; }
  InputRows input() const {
    if (kind.input == InputType::kF32) return f32_rows(x.data(), x_stride);
    return {packed_x.data(), packed_row_stride(kind.input, shape.in), kind.input};
  }
  MatmulArgs args(Floats& result, bool with_bias, bool accumulate) const {
    return {.x = input(),
            .weight = packed.data(),
            .weight_type = kind.weights,
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
  // Those that this table has.
  std::vector<Kind> kinds() const {
    std::vector<Kind> all;
    for (const InputType input : kInputs)
      for (const DType weights : kTypes) {
        const bool quantized = is_quantized(weights);
        if (input == InputType::kInt8 && !quantized) continue;
        if (input == InputType::kBF16 &&
            (kernels().matmul_bf16 == nullptr || !(quantized || weights == DType::kBF16)))
          continue;
        all.push_back({input, weights});
      }
    return all;
  }

  Problem make(const Shape& shape, Kind kind) {
    Problem p{.shape = shape,
              .kind = kind,
              .x = {},
              .weights = {},
              .bias = random(shape.out),
              .y = {},
              .packed = {},
              .packed_x = {},
              .x_stride = shape.in + 3,
              .y_stride = shape.out + 5};
    p.x.assign(static_cast<std::size_t>(shape.rows * p.x_stride), std::nanf(""));
    p.y.assign(static_cast<std::size_t>(shape.rows * p.y_stride), kUntouched);
    for (std::int64_t r = 0; r < shape.rows; ++r) {
      const Floats row = random(shape.in), old = random(shape.out);
      std::copy(row.begin(), row.end(), p.x.begin() + r * p.x_stride);
      std::copy(old.begin(), old.end(), p.y.begin() + r * p.y_stride);
    }
    pack_x(p);
    p.weights = random(shape.out * shape.in);
    pack_weights(p);
    return p;
  }

  void pack_x(Problem& p) {
    if (p.kind.input == InputType::kF32) return;
    const std::int64_t stride = packed_row_stride(p.kind.input, p.shape.in);
    // Bytes that no packing writes are NaN, as bf16, as float32 and as a scale.
    p.packed_x.assign(static_cast<std::size_t>(p.shape.rows * stride), std::byte{0xff});
    kernels().pack_input({.x = p.x.data(),
                          .x_stride = p.x_stride,
                          .packed = p.packed_x.data(),
                          .rows = p.shape.rows,
                          .cols = p.shape.in,
                          .type = p.kind.input},
                         0, p.shape.rows);
  }

  static void pack_weights(Problem& p) {
    const DType type = p.kind.weights;
    const Layout layout = matrix_layout(type);
    p.packed.resize(static_cast<std::size_t>(layout_bytes(layout, type, p.shape.out, p.shape.in)));
    pack_rows(layout, type, p.weights.data(), p.shape.out, p.shape.in, p.packed.data());
    unpack_rows(layout, type, p.packed.data(), p.shape.in, 0, p.shape.out, p.weights.data());
  }

  Floats run(const Problem& p, bool with_bias = true, bool accumulate = false) {
    Floats y = p.y;
    kernels().matmul(p.args(y, with_bias, accumulate), 0, p.panels());
    return y;
  }
};

// Summing n products one after the other errs by at most n roundings of the sum of magnitudes,
// those of packed x included: what it is rounded to is at most 1/254 of its group's largest away.
double tolerance(const Problem& p, std::int64_t row, std::int64_t n) {
  double magnitude = std::abs(p.bias[static_cast<std::size_t>(n)]) +
                     std::abs(p.y[static_cast<std::size_t>(row * p.y_stride + n)]);
  for (std::int64_t k = 0; k < p.shape.in; ++k) {
    const double x = p.x[static_cast<std::size_t>(row * p.x_stride + k)];
    const double slack = p.kind.input == InputType::kInt8 ? 0.02 : 0.0;
    magnitude +=
        (std::abs(x) + slack) *
        std::abs(static_cast<double>(p.weights[static_cast<std::size_t>(n * p.shape.in + k)]));
  }
  return static_cast<double>(p.shape.in + 6) * kRoundoff * magnitude;
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
            << "x" << p.shape.out << ", " << describe(p.kind);
    }
}

TEST_P(MatmulTest, AgreesWithTheOracleOverAwkwardShapes) {
  const Shape shapes[] = {{1, 1, 1},    {1, 77, 17},     {2, 31, 33},   {3, 64, 70},
                          {4, 257, 16}, {5, 100, 15},    {6, 300, 95},  {7, 513, 129},
                          {13, 5, 200}, {12, 256, 48},   {24, 48, 32},  {37, 255, 160},
                          {97, 40, 31}, {193, 270, 144}, {8, 1030, 65}, {33, 545, 161}};
  for (const Shape& shape : shapes)
    for (const Kind& kind : kinds())
      for (const bool with_bias : {false, true})
        for (const bool accumulate : {false, true}) {
          const Problem p = make(shape, kind);
          Floats expected = p.y;
          reference_kernels().matmul(p.args(expected, with_bias, accumulate), 0, p.panels());
          expect_close(p, run(p, with_bias, accumulate), expected);
        }
}

TEST_P(MatmulTest, RowDoesNotDependOnItsBatchMates) {
  // 301: the last group ends within a word of every type, and with half a pair.
  for (const Kind& kind : kinds())
    for (const std::int64_t in : {600, 301}) {
      const Problem p = make({200, in, 52}, kind);
      const Floats all = run(p);
      for (const std::int64_t batch :
           {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 24, 25, 29, 33, 40, 48, 49, 96, 97, 193}) {
        Floats y = p.y;
        for (std::int64_t first = 0; first < p.shape.rows; first += batch) {
          MatmulArgs args = p.args(y, true, false);
          args.x.data += first * args.x.stride;
          args.y += first * p.y_stride;
          args.rows = std::min(batch, p.shape.rows - first);
          kernels().matmul(args, 0, p.panels());
        }
        ASSERT_TRUE(same_bits(y, all)) << describe(kind) << " in batches of " << batch;
      }
    }
}

TEST_P(MatmulTest, SplitsOfPanelsChangeNoBit) {
  for (const Kind& kind : kinds())
    for (const std::int64_t rows : {1, 3, 6, 20, 50}) {
      const Problem p = make({rows, 70, 16 * 19 + 3}, kind);
      const Floats whole = run(p, true, true);
      for (int repetition = 0; repetition < 8; ++repetition) {
        Floats y = p.y;
        for (std::int64_t begin = 0; begin < p.panels();) {
          const std::int64_t end = uniform(begin + 1, p.panels());
          kernels().matmul(p.args(y, true, true), begin, end);
          begin = end;
        }
        ASSERT_TRUE(same_bits(y, whole)) << describe(kind) << ", " << rows << " rows";
      }
    }
}

// Cancellation makes any other order of the sum show: 1e8 − 1e8 + small terms.
TEST_P(MatmulTest, SumsInAscendingK) {
  Problem p = make({9, 600, 16}, {InputType::kF32, DType::kF32});
  for (std::int64_t row = 0; row < 9; ++row) {
    float* x = p.x.data() + row * p.x_stride;
    for (std::int64_t k = 0; k < 600; ++k) x[k] = k == 0 ? 1e8f : k == 599 ? -1e8f : 1.0f;
  }
  p.weights.assign(16 * 600, 1.0f);
  pack_weights(p);
  float expected = 0.0f;
  for (std::int64_t k = 0; k < 600; ++k) expected += p.x[static_cast<std::size_t>(k)];
  const Floats y = run(p, false);
  for (std::int64_t n = 0; n < 16; ++n) EXPECT_EQ(y[static_cast<std::size_t>(n)], expected);
}

// A quantised product with float32 x is the f32 product with the values that unpack_rows gives:
// exactly, whatever the number of rows, in the middle of a group and at its end.
TEST_P(MatmulTest, QuantisedWeightsAreTheirFloatValues) {
  for (const DType type : {DType::kQ8, DType::kQ4})
    for (const std::int64_t rows : {1, 2, 4, 6, 12, 13, 40, 130})
      for (const std::int64_t in : {3, 32, 45, 256, 301, 608}) {
        const Problem p = make({rows, in, 16 * 9 + 5}, {InputType::kF32, type});
        Problem plain = p;
        plain.kind.weights = DType::kF32;
        pack_weights(plain);
        ASSERT_TRUE(same_bits(run(p), run(plain))) << rows << " rows of " << in;
      }
}

// Integer products have no rounding: one group with scales 1 gives the exact integer, at the ends
// of the ranges, too, where 16 bits would saturate.
TEST_P(MatmulTest, IntegerProductsAreExact) {
  for (const DType type : {DType::kQ8, DType::kQ4})
    for (const std::int64_t rows : {1, 5, 8, 40}) {
      Problem p = make({rows, 32, 16}, {InputType::kInt8, type});
      const float most = type == DType::kQ8 ? 127.0f : 7.0f,
                  least = type == DType::kQ8 ? -127.0f : -8.0f;
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t k = 0; k < 32; ++k)
          p.x[static_cast<std::size_t>(r * p.x_stride + k)] = (r + k) % 5 == 4 ? 126.0f
                                                              : r % 2 == 0     ? 127.0f
                                                                               : -127.0f;
      pack_x(p);
      for (std::int64_t n = 0; n < 16; ++n)
        for (std::int64_t k = 0; k < 32; ++k)
          p.weights[static_cast<std::size_t>(n * 32 + k)] = n % 3 == 0   ? least
                                                            : k == 0     ? least
                                                            : n % 3 == 1 ? most
                                                            : k % 2 == 0 ? least
                                                                         : most;
      const Floats wanted = p.weights;
      pack_weights(p);
      ASSERT_EQ(p.weights, wanted);
      const Floats y = run(p, false);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t n = 0; n < 16; ++n) {
          float sum = 0;
          for (std::int64_t k = 0; k < 32; ++k)
            sum += p.x[static_cast<std::size_t>(r * p.x_stride + k)] *
                   p.weights[static_cast<std::size_t>(n * 32 + k)];
          ASSERT_EQ(y[static_cast<std::size_t>(r * p.y_stride + n)], sum) << r << ", " << n;
        }
    }
}

STAGECOACH_EVERY_ISA(MatmulTest);

}  // namespace
}  // namespace stagecoach
