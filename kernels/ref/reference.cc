// The oracle: what each op means, in double precision and the order of the formula. Slow on
// purpose.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/include/ops.h"

namespace stagecoach {
namespace {

InputGroup quantize_group(const float* x, std::int64_t count) {
  InputGroup group = {};
  float magnitude = 0.0f;
  for (std::int64_t k = 0; k < count; ++k) {
    if (!std::isfinite(x[k])) {
      group.scale = NAN;
      return group;
    }
    magnitude = std::max(magnitude, std::abs(x[k]));
  }
  if (magnitude < kSmallestInputGroup) return group;
  group.scale = magnitude / 127.0f;
  for (std::int64_t k = 0; k < count; ++k) {
    group.quant[k] = static_cast<std::int8_t>(std::nearbyint(x[k] * (127.0f / magnitude)));
    group.minus_8_sum -= 8 * group.quant[k];
  }
  return group;
}

std::uint16_t f16_saturated(float x) {
  constexpr float kLargest = 65504.0f;
  return f32_to_f16(std::isfinite(x) ? std::clamp(x, -kLargest, kLargest) : x);
}

void pack_input(const PackInputArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t stride = packed_row_stride(args.type, args.cols);
  for (std::int64_t row = begin; row < end; ++row) {
    const float* x = args.x + row * args.x_stride;
    std::byte* const packed = args.packed + row * stride;
    if (args.type == InputType::kF32) {
      for (std::int64_t k = 0; k < args.cols; ++k)
        reinterpret_cast<float*>(packed)[k] = bf16_to_f32(f32_to_bf16(x[k]));
    } else if (args.type == InputType::kBF16) {
      auto* halves = reinterpret_cast<std::uint16_t*>(packed);
      for (std::int64_t k = 0; k < args.cols + args.cols % 2; ++k)
        halves[k] = k < args.cols ? f32_to_bf16(x[k]) : 0;
    } else if (args.type == InputType::kF16) {
      auto* halves = reinterpret_cast<std::uint16_t*>(packed);
      for (std::int64_t k = 0; k < args.cols + args.cols % 2; ++k)
        halves[k] = k < args.cols ? f16_saturated(x[k]) : 0;
    } else {
      auto* group = reinterpret_cast<InputGroup*>(packed);
      for (std::int64_t k = 0; k < args.cols; k += kGroupCols, ++group)
        *group = quantize_group(x + k, std::min(kGroupCols, args.cols - k));
    }
  }
}

// One row of packed input as the numbers it stands for.
std::vector<double> input_values(const InputRows& x, std::int64_t row, std::int64_t cols) {
  const std::byte* const data = x.data + row * x.stride;
  std::vector<double> values(static_cast<std::size_t>(cols));
  for (std::int64_t k = 0; k < cols; ++k) {
    double& value = values[static_cast<std::size_t>(k)];
    if (x.type == InputType::kF32) {
      value = reinterpret_cast<const float*>(data)[k];
    } else if (x.type == InputType::kBF16) {
      value = bf16_to_f32(reinterpret_cast<const std::uint16_t*>(data)[k]);
    } else if (x.type == InputType::kF16) {
      value = f16_to_f32(reinterpret_cast<const std::uint16_t*>(data)[k]);
    } else {
      const InputGroup& group = reinterpret_cast<const InputGroup*>(data)[k / kGroupCols];
      value = static_cast<double>(group.scale) * group.quant[k % kGroupCols];
    }
  }
  return values;
}

void matmul(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  std::vector<std::vector<double>> x;
  for (std::int64_t row = 0; row < args.rows; ++row)
    x.push_back(input_values(args.x, row, args.in));
  std::vector<float> weights(static_cast<std::size_t>(args.in));
  for (std::int64_t n = begin * kPanelRows; n < std::min(end * kPanelRows, args.out); ++n) {
    unpack_rows(matrix_layout(args.weight_type), args.weight_type, args.weight, args.in, n, 1,
                weights.data());
    for (std::int64_t row = 0; row < args.rows; ++row) {
      double sum = 0.0;
      for (std::size_t k = 0; k < weights.size(); ++k)
        sum += x[static_cast<std::size_t>(row)][k] * static_cast<double>(weights[k]);
      if (args.bias != nullptr) sum += static_cast<double>(args.bias[n]);
      float& y = args.y[row * args.y_stride + n];
      y = static_cast<float>(args.accumulate ? sum + static_cast<double>(y) : sum);
    }
  }
}

void norm(const NormArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const float* x = args.x + row * args.cols;
    const double count = static_cast<double>(args.cols);
    double mean = 0.0;
    if (args.kind == NormKind::kLayerNorm) {
      for (std::int64_t i = 0; i < args.cols; ++i) mean += x[i];
      mean /= count;
    }
    double variance = 0.0;
    for (std::int64_t i = 0; i < args.cols; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const double scale = 1.0 / std::sqrt(variance / count + static_cast<double>(args.epsilon));
    for (std::int64_t i = 0; i < args.cols; ++i) {
      const double bias = args.bias != nullptr ? static_cast<double>(args.bias[i]) : 0.0;
      args.y[row * args.cols + i] =
          static_cast<float>((x[i] - mean) * scale * static_cast<double>(args.weight[i]) + bias);
    }
  }
}

void rotary(const RotaryArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t half = args.rotary_dim / 2;
  for (std::int64_t row = begin; row < end; ++row)
    for (std::int64_t head = 0; head < args.heads; ++head)
      for (std::int64_t i = 0; i < half; ++i) {
        float& first = args.x[row * args.x_stride + head * args.head_dim + i];
        float& second = args.x[row * args.x_stride + head * args.head_dim + half + i];
        const double a = first, b = second;
        const double c = args.cos[row * half + i], s = args.sin[row * half + i];
        first = static_cast<float>(a * c - b * s);
        second = static_cast<float>(b * c + a * s);
      }
}

// Where an element of a kv head's page stands, as kv_page.h has it: keys are (dims, slots), values
// (slots, dims), of the whole head or of each group.
struct KvElement {
  KvType type;
  bool is_key;
  std::int64_t head_dim, d, slot;

  std::int64_t group() const { return d / kKvGroupDims; }
  std::int64_t index() const {
    const bool grouped = type == KvType::kQ8;
    const std::int64_t dim = grouped ? d % kKvGroupDims : d;
    const std::int64_t dims =
        grouped ? std::min(kKvGroupDims, head_dim - group() * kKvGroupDims) : head_dim;
    return is_key ? dim * kKvPageTokens + slot : slot * dims + dim;
  }
  std::int64_t scale_byte() const { return group() * kKvGroupBytes + 2 * slot; }
  std::int64_t quant_byte() const { return group() * kKvGroupBytes + kKvScalesBytes + index(); }
};

template <typename T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float read_kv(const std::byte* head, const KvElement& at) {
  switch (at.type) {
    case KvType::kF32:
      return load<float>(head + 4 * at.index());
    case KvType::kF16:
      return f16_to_f32(load<std::uint16_t>(head + 2 * at.index()));
    case KvType::kQ8:
      return static_cast<float>(load<std::int8_t>(head + at.quant_byte())) *
             bf16_to_f32(load<std::uint16_t>(head + at.scale_byte()));
  }
  __builtin_unreachable();
}

// The scale of the group that x[0 … dims) is.
std::uint16_t kv_scale(const float* x, std::int64_t dims) {
  float largest = 0.0f;
  for (std::int64_t i = 0; i < dims; ++i) {
    if (!std::isfinite(x[i])) return f32_to_bf16(NAN);
    largest = std::max(largest, std::fabs(x[i]));
  }
  return largest < kKvSmallestGroup ? 0 : f32_to_bf16(largest / 127.0f);
}

// x: of the whole head at that position.
void write_kv(std::byte* head, const KvElement& at, const float* x) {
  if (at.type == KvType::kF32) {
    std::memcpy(head + 4 * at.index(), x + at.d, sizeof(float));
  } else if (at.type == KvType::kF16) {
    const std::uint16_t half = f16_saturated(x[at.d]);
    std::memcpy(head + 2 * at.index(), &half, sizeof half);
  } else {
    const std::int64_t begin = at.group() * kKvGroupDims;
    const std::uint16_t stored = kv_scale(x + begin, std::min(kKvGroupDims, at.head_dim - begin));
    const float scale = bf16_to_f32(stored);
    const float quant = scale > 0.0f ? std::nearbyint(x[at.d] / scale) : 0.0f;
    const auto narrow = static_cast<std::int8_t>(quant);
    std::memcpy(head + at.scale_byte(), &stored, sizeof stored);
    std::memcpy(head + at.quant_byte(), &narrow, sizeof narrow);
  }
}

void append_kv(const AppendKvArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t head_bytes = kv_head_bytes(args.kv_type, args.head_dim);
  for (std::int64_t s = 0; s < args.num_spans; ++s)
    for (std::int64_t r = 0; r < args.spans[s].rows; ++r) {
      const KvSpan& span = args.spans[s];
      const std::int64_t page = (span.position + r) / kKvPageTokens;
      const std::int64_t slot = (span.position + r) % kKvPageTokens;
      for (std::int64_t head = begin; head < end; ++head) {
        const std::int64_t source = (span.row + r) * args.stride + head * args.head_dim;
        for (std::int64_t d = 0; d < args.head_dim; ++d) {
          write_kv(span.key_pages[page] + head * head_bytes,
                   {args.kv_type, true, args.head_dim, d, slot}, args.k + source);
          write_kv(span.value_pages[page] + head * head_bytes,
                   {args.kv_type, false, args.head_dim, d, slot}, args.v + source);
        }
      }
    }
}

void attend_row(const AttentionArgs& args, const KvSpan& span, std::int64_t r, std::int64_t head) {
  const std::int64_t kv_head = head / (args.heads / args.kv_heads);
  const std::int64_t keys = span.position + r + 1;
  const std::int64_t first = args.window > 0 ? std::max<std::int64_t>(keys - args.window, 0) : 0;
  const double slope = args.slopes != nullptr ? static_cast<double>(args.slopes[head]) : 0.0;
  const float* q = args.q + (span.row + r) * args.q_stride + head * args.head_dim;
  const std::int64_t head_at = kv_head * kv_head_bytes(args.kv_type, args.head_dim);
  const auto element = [&](bool is_key, std::int64_t key, std::int64_t d) {
    std::byte* const* pages = is_key ? span.key_pages : span.value_pages;
    return static_cast<double>(
        read_kv(pages[key / kKvPageTokens] + head_at,
                {args.kv_type, is_key, args.head_dim, d, key % kKvPageTokens}));
  };
  std::vector<double> weights(static_cast<std::size_t>(keys), -INFINITY);
  for (std::int64_t key = first; key < keys; ++key) {
    double score = 0.0;
    for (std::int64_t d = 0; d < args.head_dim; ++d)
      score += static_cast<double>(q[d]) * element(true, key, d);
    weights[static_cast<std::size_t>(key)] =
        score * static_cast<double>(args.scale) - slope * static_cast<double>(keys - 1 - key);
  }
  const double max = *std::max_element(weights.begin(), weights.end());
  double sum = 0.0;
  for (double& weight : weights) sum += weight = std::exp(weight - max);
  for (std::int64_t d = 0; d < args.head_dim; ++d) {
    double value = 0.0;
    for (std::int64_t key = first; key < keys; ++key)
      value += weights[static_cast<std::size_t>(key)] * element(false, key, d);
    args.out[(span.row + r) * args.out_stride + head * args.head_dim + d] =
        static_cast<float>(value / sum);
  }
}

void attention(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t s = 0; s < args.num_spans; ++s)
    for (std::int64_t r = 0; r < args.spans[s].rows; ++r)
      for (std::int64_t head = begin; head < end; ++head) attend_row(args, args.spans[s], r, head);
}

double activate(Activation kind, double x) {
  switch (kind) {
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
  }
  __builtin_unreachable();
}

void activation(const ActivationArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    const double up = args.up != nullptr ? static_cast<double>(args.up[i]) : 1.0;
    args.y[i] = static_cast<float>(activate(args.kind, static_cast<double>(args.x[i])) * up);
  }
}

}  // namespace

const KernelTable& reference_kernels() {
  static constexpr KernelTable kTable = {"reference", pack_input, matmul,    matmul,    matmul,
                                         norm,        rotary,     append_kv, attention, activation};
  return kTable;
}

}  // namespace stagecoach
