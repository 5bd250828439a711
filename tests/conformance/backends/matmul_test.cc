#include "conformance/backends/backend_test.h"

namespace stagecoach {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4};
constexpr InputType kInputs[] = {InputType::kF32, InputType::kBF16, InputType::kInt8,
                                 InputType::kF16};
constexpr float kUntouched = -12345.0f;

struct Shape {
  std::int64_t rows, in, out;
};

// A product with gaps between rows of y, which must stay untouched; rows of x are packed by the
// oracle, so that the product alone is compared.
struct Problem {
  Shape shape;
  InputType input;
  DType type;
  Floats x, weights, bias, y;  // weights row-major, as the packed type holds them
  Bytes packed, packed_x;
  std::int64_t x_stride, y_stride;  // of x in bytes

  MatmulArgs args(const std::byte* x_data, const std::byte* weight, const float* bias_data,
                  float* result, bool accumulate) const {
    return {.x = {x_data, x_stride, input},
            .weight = weight,
            .weight_type = type,
            .bias = bias_data,
            .y = result,
            .y_stride = y_stride,
            .rows = shape.rows,
            .in = shape.in,
            .out = shape.out,
            .accumulate = accumulate};
  }
};

class Products : public BackendTest {
 protected:
  Problem make(const Shape& shape, InputType input, DType type) {
    Problem p{.shape = shape,
              .input = input,
              .type = type,
              .x = random(shape.rows * shape.in),
              .weights = random(shape.out * shape.in),
              .bias = random(shape.out),
              .y = {},
              .packed = {},
              .packed_x = {},
              .x_stride = packed_row_stride(input, shape.in),
              .y_stride = shape.out + 5};
    p.y.assign(static_cast<std::size_t>(shape.rows * p.y_stride), kUntouched);
    for (std::int64_t r = 0; r < shape.rows; ++r) {
      const Floats old = random(shape.out);
      std::copy(old.begin(), old.end(), p.y.begin() + r * p.y_stride);
    }
    pack_x(p);
    const Layout layout = matrix_layout(type);
    p.packed.resize(static_cast<std::size_t>(layout_bytes(layout, type, shape.out, shape.in)));
    pack_rows(layout, type, p.weights.data(), shape.out, shape.in, p.packed.data());
    unpack_rows(layout, type, p.packed.data(), shape.in, 0, shape.out, p.weights.data());
    return p;
  }
  static void pack_x(Problem& p) {
    const Shape& shape = p.shape;
    // What no packing writes is NaN.
    p.packed_x.assign(static_cast<std::size_t>(shape.rows * p.x_stride), std::byte{0xff});
    if (p.input == InputType::kF32)
      for (std::int64_t r = 0; r < shape.rows; ++r)
        std::memcpy(&p.packed_x[static_cast<std::size_t>(r * p.x_stride)],
                    &p.x[static_cast<std::size_t>(r * shape.in)],
                    static_cast<std::size_t>(shape.in) * sizeof(float));
    else
      reference_kernels().pack_input({.x = p.x.data(),
                                      .x_stride = shape.in,
                                      .packed = p.packed_x.data(),
                                      .rows = shape.rows,
                                      .cols = shape.in,
                                      .type = p.input},
                                     0, shape.rows);
  }

  Floats run(const Problem& p, bool with_bias, bool accumulate) {
    const Buffer x = on_device(p.packed_x), weight = on_device(p.packed), bias = on_device(p.bias),
                 y = on_device(p.y);
    backend().matmul(
        p.args(x.data(), weight.data(), with_bias ? bias.f32() : nullptr, y.f32(), accumulate));
    return floats_of(y);
  }
  Floats oracle(const Problem& p, bool with_bias, bool accumulate) {
    Floats y = p.y;
    reference_kernels().matmul(p.args(p.packed_x.data(), p.packed.data(),
                                      with_bias ? p.bias.data() : nullptr, y.data(), accumulate),
                               0, (p.shape.out + kPanelRows - 1) / kPanelRows);
    return y;
  }
  // n products err by at most n roundings of the sum of their magnitudes. A GPU's products of many
  // rows multiply what was rounded to halves where both sides had quants and scales.
  double tolerance(const Problem& p, std::int64_t row, std::int64_t n) {
    const bool halves = is_gpu() && is_quantized(p.type) && p.input != InputType::kF32;
    const double each =
        static_cast<double>(p.shape.in + 6) * kRoundoff + (halves ? 2 * 0x1p-11 : 0.0);
    double magnitude = std::abs(p.bias[static_cast<std::size_t>(n)]) +
                       std::abs(p.y[static_cast<std::size_t>(row * p.y_stride + n)]);
    for (std::int64_t k = 0; k < p.shape.in; ++k)
      magnitude +=
          (std::abs(static_cast<double>(p.x[static_cast<std::size_t>(row * p.shape.in + k)])) +
           0.02) *
          std::abs(static_cast<double>(p.weights[static_cast<std::size_t>(n * p.shape.in + k)]));
    return each * magnitude;
  }
};
STAGECOACH_EVERY_BACKEND(Products);

TEST_P(Products, AgreeWithTheOracleOverAwkwardShapes) {
  const Shape shapes[] = {{1, 1, 1},    {1, 77, 17},   {2, 31, 33},   {3, 64, 70},  {4, 257, 16},
                          {5, 100, 15}, {7, 300, 95},  {8, 130, 129}, {9, 64, 40},  {16, 96, 48},
                          {17, 48, 32}, {33, 100, 31}, {40, 45, 65},  {60, 64, 48}, {1, 1030, 65}};
  for (const Shape& shape : shapes)
    for (const InputType input : kInputs)
      for (const DType type : kTypes) {
        if (!backend().multiplies(input, type)) continue;
        for (const bool with_bias : {false, true})
          for (const bool accumulate : {false, true}) {
            const Problem p = make(shape, input, type);
            const Floats expected = oracle(p, with_bias, accumulate);
            const Floats result = run(p, with_bias, accumulate);
            for (std::int64_t row = 0; row < shape.rows; ++row)
              for (std::int64_t n = 0; n < p.y_stride; ++n) {
                const auto i = static_cast<std::size_t>(row * p.y_stride + n);
                if (n >= shape.out)
                  ASSERT_EQ(result[i], kUntouched) << "wrote beyond out at row " << row;
                else
                  ASSERT_NEAR(result[i], expected[i], tolerance(p, row, n))
                      << "row " << row << " output " << n << " of " << shape.rows << "x" << shape.in
                      << "x" << shape.out << ", input " << static_cast<int>(input) << ", weights "
                      << static_cast<int>(type);
              }
          }
      }
}

// An infinite activation makes infinities, also where a kernel reads its group twice.
TEST_P(Products, InfiniteInputsAreInfinite) {
  for (const Shape& shape : {Shape{1, 31, 17}, {1, 77, 33}, {3, 96, 16}, {8, 64, 40}, {9, 65, 16}})
    for (const InputType input : {InputType::kF32, InputType::kBF16, InputType::kF16})
      for (const DType type : kTypes) {
        if (!backend().multiplies(input, type)) continue;
        Problem p = make(shape, input, type);
        for (std::int64_t row = 0; row < shape.rows; ++row)
          p.x[static_cast<std::size_t>((row + 1) * shape.in - 1)] =
              row % 2 == 0 ? INFINITY : -INFINITY;
        pack_x(p);
        const Floats expected = oracle(p, true, false), result = run(p, true, false);
        for (std::int64_t row = 0; row < shape.rows; ++row)
          for (std::int64_t n = 0; n < shape.out; ++n) {
            const auto i = static_cast<std::size_t>(row * p.y_stride + n);
            ASSERT_EQ(std::isnan(result[i]), std::isnan(expected[i]))
                << "row " << row << " output " << n << " of " << shape.rows << "x" << shape.in
                << "x" << shape.out << ", input " << static_cast<int>(input) << ", weights "
                << static_cast<int>(type);
            if (std::isinf(expected[i])) {
              ASSERT_EQ(result[i], expected[i]);
            }
          }
      }
}

// Weights that pass through slots, as a rank's do, with nobody waiting but the device: products
// get them when they are there, and what a product makes of them is its own until it has read it.
TEST_P(Products, InARowLeaveWhatEachLeavesAlone) {
  constexpr Shape kShape{40, 96, 48};
  constexpr std::size_t kProducts = 12, kSlots = 5;
  for (const InputType input : kInputs) {
    const DType type = input == InputType::kBF16 ? DType::kBF16 : DType::kQ8;
    if (!backend().multiplies(input, type)) continue;
    std::vector<Problem> problems;
    std::vector<Floats> expected;
    std::vector<std::shared_ptr<void>> pinned;
    std::vector<Buffer> results;
    for (std::size_t i = 0; i < kProducts; ++i) {
      problems.push_back(make(kShape, input, type));
      problems.back().packed_x = problems.front().packed_x;
      expected.push_back(run(problems.back(), false, false));
      results.push_back(on_device(problems.back().y));
    }
    for (Problem& p : problems) pinned.push_back(backend().pin(p.packed));
    const auto bytes = static_cast<std::int64_t>(problems.front().packed.size());
    const Buffer x = on_device(problems.front().packed_x);
    std::vector<Buffer> slots;
    for (std::size_t i = 0; i < kSlots; ++i) slots.push_back(backend().allocate(bytes));
    std::vector<EventPtr> used(kSlots, backend().mark());
    for (std::size_t i = 0; i < kProducts; ++i) {
      const Problem& p = problems[i];
      const Buffer& slot = slots[i % kSlots];
      backend().wait_for(backend().copy_ahead(slot.data(), p.packed, used[i % kSlots]));
      backend().matmul(p.args(x.data(), slot.data(), nullptr, results[i].f32(), false));
      used[i % kSlots] = backend().mark();
    }
    for (std::size_t i = 0; i < kProducts; ++i)
      ASSERT_EQ(floats_of(results[i]), expected[i])
          << "product " << i << ", input " << static_cast<int>(input);
  }
}

// A decode step's bits do not depend on who else decodes.
TEST_P(Products, FewRowsDoNotDependOnTheirBatchMates) {
  for (const InputType input : kInputs)
    for (const DType type : kTypes) {
      if (!backend().multiplies(input, type)) continue;
      Problem p = make({32, 301, 20}, input, type);
      const Floats all = run(p, true, false);
      for (const std::int64_t batch : {1, 2, 3, 5, 8, 13, 31}) {
        Problem part = p;
        part.shape.rows = batch;
        part.y.resize(static_cast<std::size_t>(batch * p.y_stride));
        const Floats result = run(part, true, false);
        for (std::size_t i = 0; i < result.size(); ++i)
          ASSERT_EQ(result[i], all[i]) << batch << " rows, element " << i;
      }
    }
}

// Query, key and value, say; more of them than a device has in a launch, and of several kinds.
TEST_P(Products, TogetherGiveTheBitsOfEachAlone) {
  struct Kind {
    std::int64_t out;
    DType type;
    bool with_bias, accumulate;
  };
  constexpr std::int64_t kIn = 70;
  constexpr Kind kKinds[] = {{33, DType::kQ8, true, false},  {16, DType::kQ8, false, false},
                             {65, DType::kQ8, true, false},  {5, DType::kQ8, false, false},
                             {48, DType::kBF16, true, true}, {17, DType::kBF16, false, true},
                             {20, DType::kBF16, true, false}};
  for (const std::int64_t rows : {1, 2, 5, 12, 40}) {
    const Problem first = make({rows, kIn, 1}, InputType::kF32, DType::kF32);
    const Buffer x = on_device(first.packed_x);
    std::vector<Floats> expected;
    std::vector<Buffer> buffers, results;
    std::vector<MatmulArgs> products;
    for (const Kind& kind : kKinds) {
      Problem p = make({rows, kIn, kind.out}, InputType::kF32, kind.type);
      p.packed_x = first.packed_x;
      expected.push_back(run(p, kind.with_bias, kind.accumulate));
      const Buffer& weight = buffers.emplace_back(on_device(p.packed));
      const auto* const weights = weight.data();
      const auto* const bias =
          kind.with_bias ? buffers.emplace_back(on_device(p.bias)).f32() : nullptr;
      results.push_back(on_device(p.y));
      products.push_back(p.args(x.data(), weights, bias, results.back().f32(), kind.accumulate));
    }
    backend().matmuls(products);
    for (std::size_t i = 0; i < products.size(); ++i)
      ASSERT_EQ(floats_of(results[i]), expected[i]) << "product " << i << " of " << rows << " rows";
  }
}

}  // namespace
}  // namespace stagecoach
