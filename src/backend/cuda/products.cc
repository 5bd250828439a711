#include "backend/cuda/products.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "backend/device_scratch.h"
#include "base/error.h"

namespace stagecoach::cuda {
namespace {

// How a product of many rows is computed: both sides in one type.
struct Arithmetic {
  InputType type;  // of both sides, unpacked
  cudaDataType_t data;
  cublasComputeType_t compute;
  std::int64_t bytes;  // of an element
};

Arithmetic arithmetic(InputType input) {
  constexpr Arithmetic kF32{InputType::kF32, CUDA_R_32F, CUBLAS_COMPUTE_32F, 4};
  constexpr Arithmetic kF16{InputType::kF16, CUDA_R_16F, CUBLAS_COMPUTE_32F, 2};
  constexpr Arithmetic kBF16{InputType::kBF16, CUDA_R_16BF, CUBLAS_COMPUTE_32F, 2};
  if (input == InputType::kF32) return kF32;
  if (input == InputType::kBF16) return kBF16;
  return kF16;  // of quants and scales a half holds the product to 2⁻¹²
}

// Outputs whose unpacked weights fit into kUnpackedBytes, in panels.
std::int64_t outputs_at_once(std::int64_t in, std::int64_t element_bytes) {
  const std::int64_t panels = kUnpackedBytes / (in * element_bytes * kPanelRows);
  return std::max<std::int64_t>(1, panels) * kPanelRows;
}

std::int64_t padded_outputs(std::int64_t out) {
  return (out + kPanelRows - 1) / kPanelRows * kPanelRows;
}

}  // namespace

Products::Cublas::Cublas() {
  check(cublasCreate(&handle), "starting cuBLAS");
}
Products::Cublas::~Cublas() {
  cublasDestroy(handle);
}

Products::Products(cudaStream_t stream, int capability) : stream_(stream), capability_(capability) {
  check(cublasSetStream(cublas_.handle, stream_), "starting cuBLAS");
  check(cublasSetWorkspace(cublas_.handle, workspace_.get(kCublasBytes),
                           static_cast<std::size_t>(kCublasBytes)),
        "starting cuBLAS");
}

bool Products::multiplies(InputType input, DType weights) const {
  switch (input) {
    case InputType::kF32:
      return true;
    case InputType::kBF16:
      return weights == DType::kBF16 && capability_ >= kLowestWithBF16;
    case InputType::kF16:
      return weights == DType::kF16 || is_quantized(weights);
    case InputType::kInt8:
      return is_quantized(weights);
  }
  return false;
}

void Products::multiply(std::span<const MatmulArgs> products) {
  for (const MatmulArgs& product : products)
    STAGECOACH_CHECK(multiplies(product.x.type, product.weight_type));
  if (products.front().rows == 0) return;
  if (products.front().rows <= kMostFewRows) return multiply_few(products);
  for (const MatmulArgs& product : products) multiply_many(product);
}

void Products::wait_for(cudaEvent_t event) {
  check(cudaStreamWaitEvent(unpacking_, event, 0), "ordering streams");
}

void Products::multiply_few(std::span<const MatmulArgs> products) {
  const auto one_launch = [](const MatmulArgs& a, const MatmulArgs& b) {
    return a.weight_type == b.weight_type && a.accumulate == b.accumulate;
  };
  while (!products.empty()) {
    std::size_t count = 1;
    while (count < std::min(products.size(), kMostTogether) &&
           one_launch(products[0], products[count]))
      ++count;
    matmul_few_rows(products.first(count), stream_);
    check_launch("products of few rows");
    products = products.subspan(count);
  }
}

// To cuBLAS all matrices are column-major: y (out, rows) = unpacked weights (count, in) · x (in,
// rows), some outputs at a time.
void Products::multiply_many(const MatmulArgs& args) {
  const Arithmetic use = arithmetic(args.x.type);
  const void* x = args.x.data;
  std::int64_t x_stride = args.x.stride / use.bytes;
  if (args.x.type == InputType::kInt8) {
    void* const inputs = inputs_.get(args.rows * args.in * use.bytes);
    unpack_input({.x = args.x, .rows = args.rows, .cols = args.in, .to = inputs}, stream_);
    check_launch("unpacking inputs");
    x = inputs;
    x_stride = args.in;
  }
  add_bias(args, stream_);
  check_launch("adding a bias");
  const float one = 1.0f, beta = args.accumulate || args.bias != nullptr ? 1.0f : 0.0f;
  const std::int64_t all = padded_outputs(args.out);
  const std::int64_t at_once = std::min(all, outputs_at_once(args.in, use.bytes));
  if (std::exchange(brought_, false)) {
    weights_are_there_.record(stream_);
    weights_are_there_.hold(unpacking_);
  }
  for (std::int64_t first = 0; first < all; first += at_once) {
    const std::int64_t count = std::min(at_once, all - first);
    Unpacked& unpacked = unpacked_[turn_++ % std::size(unpacked_)];
    void* const weights = unpacked.weights.get(at_once * args.in * use.bytes);
    unpacked.read.hold(unpacking_);
    unpack_weight({.weight = args.weight,
                   .weight_type = args.weight_type,
                   .in = args.in,
                   .first = first,
                   .count = count,
                   .to = weights,
                   .to_type = use.type},
                  unpacking_);
    check_launch("unpacking weights");
    unpacked.written.record(unpacking_);
    unpacked.written.hold(stream_);
    const std::int64_t outputs = std::min(count, args.out - first);
    check(cublasGemmEx(cublas_.handle, CUBLAS_OP_N, CUBLAS_OP_N, static_cast<int>(outputs),
                       static_cast<int>(args.rows), static_cast<int>(args.in), &one, weights,
                       use.data, static_cast<int>(count), x, use.data, static_cast<int>(x_stride),
                       &beta, args.y + first, CUDA_R_32F, static_cast<int>(args.y_stride),
                       use.compute, CUBLAS_GEMM_DEFAULT),
          "a matrix product");
    unpacked.read.record(stream_);
  }
}

}  // namespace stagecoach::cuda
