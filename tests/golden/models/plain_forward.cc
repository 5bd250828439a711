#include "plain_forward.h"

#include <algorithm>
#include <cmath>

namespace stagecoach {
namespace {

using enum TensorRole;
using Values = std::vector<double>;

class PlainForward {
 public:
  explicit PlainForward(WeightSource& weights) : weights_(weights), spec_(weights.spec()) {}

  Values logits(const std::vector<std::int32_t>& tokens) {
    std::vector<Values> x;
    for (std::size_t t = 0; t < tokens.size(); ++t) x.push_back(embed(tokens[t], t));
    for (layer_ = 0; layer_ < spec_.num_hidden_layers; ++layer_) block(x);
    layer_ = 0;
    Values all;
    for (const Values& row : x) {
      const Values one = head(row);
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }

 private:
  Values tensor(TensorRole role, std::int64_t rows, std::int64_t cols) {
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    weights_.read_rows(role, layer_, 0, rows, values.data());
    return {values.begin(), values.end()};
  }
  Values vector_if(bool there, TensorRole role, std::int64_t size) {
    return there ? tensor(role, 1, size) : Values(static_cast<std::size_t>(size), 0.0);
  }
  Values row_of(TensorRole role, std::int64_t row, std::int64_t cols) {
    std::vector<float> values(static_cast<std::size_t>(cols));
    weights_.read_rows(role, 0, row, row + 1, values.data());
    return {values.begin(), values.end()};
  }

  // W x + b
  Values linear(TensorRole weight, const Values& x, const Values& bias) {
    const auto in = static_cast<std::int64_t>(x.size());
    const auto out = static_cast<std::int64_t>(bias.size());
    const Values w = tensor(weight, out, in);
    Values y = bias;
    for (std::size_t n = 0; n < y.size(); ++n)
      for (std::size_t k = 0; k < x.size(); ++k) y[n] += w[n * x.size() + k] * x[k];
    return y;
  }

  Values norm(NormAxis kind, const Values& x, const Values& weight, const Values& bias) const {
    double mean = 0, variance = 0;
    if (kind == NormAxis::kLayerNorm)
      for (const double value : x) mean += value / static_cast<double>(x.size());
    for (const double value : x)
      variance += (value - mean) * (value - mean) / static_cast<double>(x.size());
    Values y(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
      y[i] = (x[i] - mean) / std::sqrt(variance + static_cast<double>(spec_.norm_epsilon)) *
                 weight[i] +
             bias[i];
    return y;
  }
  Values hidden_norm(TensorRole weight, TensorRole bias, const Values& x) {
    return norm(spec_.norm, x, tensor(weight, 1, spec_.hidden_size),
                vector_if(spec_.norm_bias, bias, spec_.hidden_size));
  }

  Values embed(std::int32_t token, std::size_t position) {
    Values x = row_of(kTokenEmbedding, token, spec_.embedding_size);
    if (spec_.projected_embedding())
      x = linear(kEmbeddingProjection, x,
                 vector_if(false, kEmbeddingProjection, spec_.hidden_size));
    if (spec_.position == PositionKind::kLearned) {
      const Values at =
          row_of(kPositionEmbedding, static_cast<std::int64_t>(position), spec_.hidden_size);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += at[i];
    }
    if (spec_.embedding_norm) x = hidden_norm(kEmbeddingNorm, kEmbeddingNormBias, x);
    return x;
  }

  // Normalises and rotates the heads of a query or key.
  Values prepare(Values x, TensorRole norm_role, std::size_t position) {
    const auto dim = static_cast<std::size_t>(spec_.head_dim);
    for (std::size_t head = 0; head < x.size(); head += dim) {
      Values part(x.begin() + static_cast<std::ptrdiff_t>(head),
                  x.begin() + static_cast<std::ptrdiff_t>(head + dim));
      if (spec_.query_key_norm)
        part =
            norm(NormAxis::kRmsNorm, part, tensor(norm_role, 1, spec_.head_dim), Values(dim, 0.0));
      const std::size_t half = spec_.rotary_inv_freq.size();
      for (std::size_t i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(position) * static_cast<double>(spec_.rotary_inv_freq[i]);
        const double a = part[i], b = part[half + i];
        part[i] = a * std::cos(angle) - b * std::sin(angle);
        part[half + i] = b * std::cos(angle) + a * std::sin(angle);
      }
      std::copy(part.begin(), part.end(), x.begin() + static_cast<std::ptrdiff_t>(head));
    }
    return x;
  }

  Values attend(const Values& query, const std::vector<Values>& keys,
                const std::vector<Values>& values) const {
    const auto dim = static_cast<std::size_t>(spec_.head_dim);
    const auto group =
        static_cast<std::size_t>(spec_.num_attention_heads / spec_.num_key_value_heads);
    const std::size_t own = keys.size() - 1;
    const auto window = static_cast<std::size_t>(spec_.sliding_window);
    const std::size_t first = window > 0 && own + 1 > window ? own + 1 - window : 0;
    Values out(query.size(), 0.0);
    for (std::size_t head = 0; head * dim < query.size(); ++head) {
      const std::size_t kv = head / group * dim;
      Values scores;
      for (std::size_t key = first; key <= own; ++key) {
        double score = 0;
        for (std::size_t d = 0; d < dim; ++d) score += query[head * dim + d] * keys[key][kv + d];
        score *= static_cast<double>(spec_.attention_scale);
        if (!spec_.alibi_slopes.empty())
          score += static_cast<double>(spec_.alibi_slopes[head]) * static_cast<double>(key);
        scores.push_back(score);
      }
      const double max = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (double& score : scores) sum += score = std::exp(score - max);
      for (std::size_t i = 0; i < scores.size(); ++i)
        for (std::size_t d = 0; d < dim; ++d)
          out[head * dim + d] += scores[i] / sum * values[first + i][kv + d];
    }
    return out;
  }

  double activate(double x) const {
    switch (spec_.activation) {
      case ActivationKind::kGeluTanh:
        return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
      case ActivationKind::kGeluErf:
        return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
      case ActivationKind::kRelu:
        return std::max(x, 0.0);
      case ActivationKind::kSilu:
        return x / (1 + std::exp(-x));
    }
    return 0;
  }

  Values mlp(const Values& x) {
    const auto bias = [&](TensorRole role, std::int64_t size) {
      return vector_if(spec_.mlp_bias, role, size);
    };
    Values inner = linear(kUp, x, bias(kUpBias, spec_.intermediate_size));
    if (spec_.mlp == MlpKind::kGated) {
      const Values gate = linear(kGate, x, bias(kGateBias, spec_.intermediate_size));
      for (std::size_t i = 0; i < inner.size(); ++i) inner[i] *= activate(gate[i]);
    } else {
      for (double& value : inner) value = activate(value);
    }
    return linear(kDown, inner, bias(kDownBias, spec_.hidden_size));
  }

  void block(std::vector<Values>& x) {
    const bool before = spec_.norm_placement == NormPlacement::kBefore;
    std::vector<Values> keys, values;
    for (std::size_t t = 0; t < x.size(); ++t) {
      const Values original = x[t];
      const Values normed =
          before ? hidden_norm(kAttentionNorm, kAttentionNormBias, original) : original;
      const Values query = prepare(
          linear(kQuery, normed, vector_if(spec_.query_bias, kQueryBias, spec_.query_size())),
          kQueryNorm, t);
      keys.push_back(
          prepare(linear(kKey, normed, vector_if(spec_.key_bias, kKeyBias, spec_.key_value_size())),
                  kKeyNorm, t));
      values.push_back(
          linear(kValue, normed, vector_if(spec_.value_bias, kValueBias, spec_.key_value_size())));
      const Values attended =
          linear(kAttentionOutput, attend(query, keys, values),
                 vector_if(spec_.attention_output_bias, kAttentionOutputBias, spec_.hidden_size));
      add(x[t], attended);
      if (!before) x[t] = hidden_norm(kAttentionNorm, kAttentionNormBias, x[t]);

      Values input = x[t];
      if (spec_.residual == ResidualForm::kParallelSharedNorm) input = normed;
      if (spec_.residual == ResidualForm::kParallelTwoNorms)
        input = hidden_norm(kMlpNorm, kMlpNormBias, original);
      if (spec_.residual == ResidualForm::kSequential && before)
        input = hidden_norm(kMlpNorm, kMlpNormBias, x[t]);
      add(x[t], mlp(input));
      if (!before) x[t] = hidden_norm(kMlpNorm, kMlpNormBias, x[t]);
    }
  }

  Values head(Values x) {
    if (spec_.final_norm) x = hidden_norm(kFinalNorm, kFinalNormBias, x);
    if (spec_.projected_embedding())
      x = linear(kHeadProjection, x, vector_if(false, kHeadProjection, spec_.embedding_size));
    return linear(spec_.tied_head ? kTokenEmbedding : kHead, x,
                  vector_if(spec_.head_bias, kHeadBias, spec_.vocab_size));
  }

  static void add(Values& x, const Values& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  WeightSource& weights_;
  const ModelSpec& spec_;
  std::int64_t layer_ = 0;
};

}  // namespace

std::vector<double> plain_forward(WeightSource& weights, const std::vector<std::int32_t>& tokens) {
  return PlainForward(weights).logits(tokens);
}

}  // namespace stagecoach
