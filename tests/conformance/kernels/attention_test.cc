#include <limits>
#include <memory>

#include "conformance/kernels/kernel_test.h"

namespace stagecoach {
namespace {

constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kQ8};

std::string name_of(KvType type) {
  return type == KvType::kF32 ? "f32" : type == KvType::kF16 ? "f16" : "q8";
}

struct Heads {
  std::int64_t heads, kv_heads, head_dim;
  std::int64_t window = 0;
  bool slopes = false;
  KvType type = KvType::kF32;

  Heads with(KvType kv_type) const {
    Heads other = *this;
    other.type = kv_type;
    return other;
  }
};

using Bytes = std::vector<std::byte>;

// The pages of one sequence. Slots never written hold ones, which is NaN in every type (in q8 as a
// scale): reading one beyond a row's own position would show in its output.
class Sequence {
 public:
  Sequence(const Heads& shape, std::int64_t tokens) {
    const std::int64_t size = shape.kv_heads * kv_head_bytes(shape.type, shape.head_dim);
    for (std::int64_t page = 0; page * kKvPageTokens < tokens; ++page) {
      keys_.emplace_back(size, std::byte{0xff});
      values_.emplace_back(size, std::byte{0xff});
    }
    for (Bytes& page : keys_) key_pages_.push_back(page.data());
    for (Bytes& page : values_) value_pages_.push_back(page.data());
  }
  KvSpan span(std::int64_t row, std::int64_t rows, std::int64_t position) {
    return {.row = row,
            .rows = rows,
            .position = position,
            .key_pages = key_pages_.data(),
            .value_pages = value_pages_.data()};
  }
  const std::vector<Bytes>& keys() const { return keys_; }
  const std::vector<Bytes>& values() const { return values_; }

 private:
  std::vector<Bytes> keys_, values_;
  std::vector<std::byte*> key_pages_, value_pages_;
};

class AttentionTest : public KernelTest {
 protected:
  // Rows of q, k and v of one or more sequences, one after the other.
  struct Tokens {
    Floats q, k, v;
  };
  Tokens make(const Heads& h, std::int64_t rows, float scale = 1.0f) {
    return {random(rows * h.heads * h.head_dim, scale),
            random(rows * h.kv_heads * h.head_dim, scale), random(rows * h.kv_heads * h.head_dim)};
  }

  void append(const KernelTable& table, const Heads& h, const Tokens& t,
              const std::vector<KvSpan>& spans) {
    table.append_kv({.k = t.k.data(),
                     .v = t.v.data(),
                     .stride = h.kv_heads * h.head_dim,
                     .spans = spans.data(),
                     .num_spans = static_cast<std::int64_t>(spans.size()),
                     .kv_type = h.type,
                     .kv_heads = h.kv_heads,
                     .head_dim = h.head_dim},
                    0, h.kv_heads);
  }
  void attend(const KernelTable& table, const Heads& h, const Tokens& t,
              const std::vector<KvSpan>& spans, Floats& out, std::int64_t begin, std::int64_t end) {
    const std::int64_t stride = h.heads * h.head_dim;
    Floats slopes;
    for (std::int64_t head = 0; h.slopes && head < h.heads; ++head)
      slopes.push_back(0.7f / static_cast<float>(head + 1));
    table.attention({.q = t.q.data(),
                     .q_stride = stride,
                     .out = out.data(),
                     .out_stride = stride,
                     .spans = spans.data(),
                     .num_spans = static_cast<std::int64_t>(spans.size()),
                     .kv_type = h.type,
                     .heads = h.heads,
                     .kv_heads = h.kv_heads,
                     .head_dim = h.head_dim,
                     .scale = 1.0f / std::sqrt(static_cast<float>(h.head_dim)),
                     .slopes = h.slopes ? slopes.data() : nullptr,
                     .window = h.window},
                    begin, end);
  }
  // One prefill of `rows` tokens.
  Floats prefill(const KernelTable& table, const Heads& h, const Tokens& t, std::int64_t rows) {
    Sequence sequence(h, rows);
    const std::vector<KvSpan> spans = {sequence.span(0, rows, 0)};
    append(table, h, t, spans);
    Floats out(t.q.size(), -1.0f);
    attend(table, h, t, spans, out, 0, h.heads);
    return out;
  }
};

constexpr Heads kShapes[] = {{1, 1, 1},
                             {2, 1, 7},
                             {4, 2, 16},
                             {6, 2, 20},
                             {3, 3, 64},
                             {8, 1, 33},
                             {2, 2, 128},
                             {1, 1, 515},
                             {26, 1, 8},
                             {50, 1, 40},
                             {2, 1, 80},
                             {3, 3, 100},
                             // Windows that end within a page, on its edge and beyond the text.
                             {4, 2, 16, 1},
                             {3, 1, 20, 10},
                             {2, 2, 8, 64},
                             {6, 3, 17, 70},
                             {2, 1, 8, 500},
                             {5, 5, 12, 0, true},
                             {6, 2, 16, 40, true}};

// The oracle reads what is stored: whatever the type lost when it was written is no error here.
TEST_P(AttentionTest, AgreesWithTheOracle) {
  for (const KvType type : kTypes)
    for (const Heads& shape : kShapes)
      for (const std::int64_t rows : {1, 5, 63, 64, 65, 131}) {
        const Heads h = shape.with(type);
        const Tokens t = make(h, rows);
        const Floats out = prefill(kernels(), h, t, rows);
        const Floats expected = prefill(reference_kernels(), h, t, rows);
        // Outputs are weighted means of values of magnitude about 1 to 5; weights err by the
        // roundings of a score, itself a sum of head_dim products of mean magnitude below 1.
        const double allowed =
            5.0 * kRoundoff * (static_cast<double>(rows) + 4.0 * std::sqrt(h.head_dim) + 16.0);
        for (std::size_t i = 0; i < out.size(); ++i)
          ASSERT_NEAR(out[i], expected[i], allowed)
              << name_of(type) << " head_dim " << h.head_dim << " heads " << h.heads << " rows "
              << rows << " at " << i;
      }
}

TEST_P(AttentionTest, SharpAndHugeScoresStayFinite) {
  for (const KvType type : kTypes) {
    const Heads h = Heads{2, 1, 16}.with(type);
    const Tokens t = make(h, 150, 40.0f);  // scores in the thousands: all weight on one key
    const Floats out = prefill(kernels(), h, t, 150),
                 expected = prefill(reference_kernels(), h, t, 150);
    for (std::size_t i = 0; i < out.size(); ++i)
      ASSERT_NEAR(out[i], expected[i], 5.0 * 16 * 40 * 40 * 10 * kRoundoff) << i;
  }
}

// How far a stored element may lie from x, a dimension of the head `all` at one position: half a
// step, of 2⁻¹⁰ of its power of two in f16, of the scale in q8, itself rounded up by 2⁻⁹ at most.
double storage_error(KvType type, const float* all, std::int64_t head_dim, std::int64_t d) {
  if (type == KvType::kF32) return 0;
  if (type == KvType::kF16)
    return std::max(0x1p-11 * std::abs(static_cast<double>(all[d])), 0x1p-25);
  const std::int64_t begin = d / kKvGroupDims * kKvGroupDims;
  float largest = 0;
  for (std::int64_t i = begin; i < std::min(begin + kKvGroupDims, head_dim); ++i)
    largest = std::max(largest, std::abs(all[i]));
  return static_cast<double>(largest) / 127 * (1 + 0x1p-8) / 2;
}

// Against f32: a key off by δ moves a score by at most ε = scale Σ |q| δ, and all weights by no
// more than a factor of e^(±2ε); so a row's output moves by the largest error of a value and
// (e^(2ε) − 1) times the largest value.
TEST_P(AttentionTest, StorageCostsNoMoreThanItsRounding) {
  const Heads exact = {2, 2, 80};
  const std::int64_t rows = 100, width = exact.kv_heads * exact.head_dim;
  const Tokens t = make(exact, rows);
  const Floats expected = prefill(kernels(), exact, t, rows);
  for (const KvType type : {KvType::kF16, KvType::kQ8}) {
    const Floats out = prefill(kernels(), exact.with(type), t, rows);
    EXPECT_FALSE(same_bits(out, expected));
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t head = 0; head < exact.heads; ++head) {
        const float* const q = &t.q[static_cast<std::size_t>(row * width + head * exact.head_dim)];
        double epsilon = 0, value_error = 0, value = 0;
        for (std::int64_t key = 0; key <= row; ++key) {
          const std::size_t at = static_cast<std::size_t>(key * width + head * exact.head_dim);
          double moved = 0;
          for (std::int64_t d = 0; d < exact.head_dim; ++d) {
            moved += std::abs(static_cast<double>(q[d])) *
                     storage_error(type, &t.k[at], exact.head_dim, d);
            value_error = std::max(value_error, storage_error(type, &t.v[at], exact.head_dim, d));
            value = std::max<double>(value, std::abs(t.v[at + static_cast<std::size_t>(d)]));
          }
          epsilon = std::max(epsilon, moved / std::sqrt(static_cast<double>(exact.head_dim)));
        }
        const double allowed = value_error + std::expm1(2 * epsilon) * value + 1e-5;
        for (std::int64_t d = 0; d < exact.head_dim; ++d) {
          const auto i = static_cast<std::size_t>(row * width + head * exact.head_dim + d);
          ASSERT_NEAR(out[i], expected[i], allowed) << name_of(type) << " row " << row;
        }
      }
  }
}

TEST_P(AttentionTest, DecodeAndAnyChunkingEqualPrefill) {
  for (const KvType type : kTypes)
    for (const Heads& shape :
         {Heads{4, 2, 20}, Heads{3, 3, 32}, Heads{6, 1, 9}, Heads{2, 1, 80}, Heads{2, 2, 144},
          Heads{4, 2, 20, 1}, Heads{3, 1, 9, 7}, Heads{3, 3, 32, 64}, Heads{6, 2, 9, 65},
          Heads{4, 1, 20, 0, true}, Heads{6, 3, 9, 30, true}}) {
      const Heads h = shape.with(type);
      const std::int64_t rows = 150;
      const Tokens t = make(h, rows);
      Sequence at_once(h, rows);
      const std::vector<KvSpan> all = {at_once.span(0, rows, 0)};
      Floats whole(t.q.size(), -1.0f);
      append(kernels(), h, t, all);
      attend(kernels(), h, t, all, whole, 0, h.heads);
      for (const std::int64_t chunk : {1, 2, 7, 13, 24, 49, 63, 64, 65, 100}) {
        Sequence sequence(h, rows);
        Floats out(t.q.size(), -1.0f);
        for (std::int64_t first = 0; first < rows; first += chunk) {
          const std::vector<KvSpan> spans = {
              sequence.span(first, std::min(chunk, rows - first), first)};
          append(kernels(), h, t, spans);
          attend(kernels(), h, t, spans, out, 0, h.heads);
        }
        ASSERT_TRUE(same_bits(out, whole)) << name_of(type) << ", chunks of " << chunk;
        ASSERT_EQ(sequence.keys(), at_once.keys()) << name_of(type) << ", chunks of " << chunk;
        ASSERT_EQ(sequence.values(), at_once.values()) << name_of(type) << ", chunks of " << chunk;
      }
    }
}

TEST_P(AttentionTest, SequencesInOneBatchDoNotMix) {
  for (const KvType type : kTypes) {
    const Heads h = Heads{4, 2, 24}.with(type);
    const std::int64_t lengths[] = {70, 1, 64, 33};
    const std::int64_t total = 168;
    const Tokens t = make(h, total);
    std::vector<std::unique_ptr<Sequence>> sequences;
    std::vector<KvSpan> spans;
    std::int64_t row = 0;
    for (const std::int64_t length : lengths) {
      sequences.push_back(std::make_unique<Sequence>(h, length));
      spans.push_back(sequences.back()->span(row, length, 0));
      row += length;
    }
    append(kernels(), h, t, spans);
    Floats together(t.q.size(), -1.0f), alone = together;
    attend(kernels(), h, t, spans, together, 0, h.heads);
    for (const KvSpan& span : spans) attend(kernels(), h, t, {span}, alone, 0, h.heads);
    EXPECT_TRUE(same_bits(together, alone)) << name_of(type);
  }
}

TEST_P(AttentionTest, SplitsOfHeadsChangeNoBit) {
  for (const KvType type : kTypes) {
    const Heads h = Heads{12, 3, 10}.with(type);
    const Tokens t = make(h, 90);
    const Floats whole = prefill(kernels(), h, t, 90);
    Sequence sequence(h, 90);
    append(kernels(), h, t, {sequence.span(0, 90, 0)});
    for (int repetition = 0; repetition < 6; ++repetition) {
      Floats out(t.q.size(), -1.0f);
      for (std::int64_t begin = 0; begin < h.heads;) {
        const std::int64_t end = uniform(begin + 1, h.heads);
        attend(kernels(), h, t, {sequence.span(0, 89, 0), sequence.span(89, 1, 89)}, out, begin,
               end);
        begin = end;
      }
      ASSERT_TRUE(same_bits(out, whole)) << name_of(type);
    }
  }
}

TEST_P(AttentionTest, AppendWritesWhatTheOracleWritesAndNoMore) {
  for (const KvType type : kTypes)
    for (const std::int64_t head_dim : {1, 21, 32, 33, 80, 100}) {
      const Heads h = Heads{3, 3, head_dim}.with(type);
      Tokens t = make(h, 140);
      // Magnitudes of all sizes: none that the types do not hold, which are tested below.
      for (float& k : t.k) k *= std::ldexp(1.0f, static_cast<int>(uniform(-30, 12)));
      for (const std::int64_t first : {0, 30, 64}) {
        Sequence actual(h, 200), expected(h, 200);
        append(kernels(), h, t, {actual.span(2, 100, first), actual.span(120, 5, first + 101)});
        append(reference_kernels(), h, t,
               {expected.span(2, 100, first), expected.span(120, 5, first + 101)});
        EXPECT_EQ(actual.keys(), expected.keys()) << name_of(type) << " head_dim " << head_dim;
        EXPECT_EQ(actual.values(), expected.values()) << name_of(type) << " head_dim " << head_dim;
      }
    }
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// One kv head whose value at position 0 is `x`; returns its page of values.
Bytes stored(const KernelTable& table, KvType type, const Floats& x) {
  const auto head_dim = static_cast<std::int64_t>(x.size());
  Sequence sequence(Heads{1, 1, head_dim}.with(type), 1);
  const KvSpan span = sequence.span(0, 1, 0);
  table.append_kv({.k = x.data(),
                   .v = x.data(),
                   .stride = head_dim,
                   .spans = &span,
                   .num_spans = 1,
                   .kv_type = type,
                   .kv_heads = 1,
                   .head_dim = head_dim},
                  0, 1);
  return sequence.values().front();
}

template <typename T>
T element(const Bytes& page, std::size_t byte, std::size_t index) {
  T value;
  std::memcpy(&value, page.data() + byte + index * sizeof(T), sizeof(T));
  return value;
}

TEST_P(AttentionTest, F16SaturatesAndKeepsInfinityAndNan) {
  const Floats x = {1e6f,       -1e6f,      65519.0f,      65520.0f,     -70000.0f,
                    3e38f,      kInfinity,  -kInfinity,    kNan,         0.0f,
                    -0.0f,      0x1p-24f,   0x1.8p-24f,    0x1p-26f,     1.0f,
                    0x1.002p0f, 0x1.006p0f, -0x1.ff8p-15f, -0x1.ffcp-15f};
  const std::uint16_t expected[] = {0x7bff, 0xfbff, 0x7bff, 0x7bff, 0xfbff, 0x7bff, 0x7c00,
                                    0xfc00, 0x7e00, 0x0000, 0x8000, 0x0001, 0x0002, 0x0000,
                                    0x3c00, 0x3c00, 0x3c02, 0x83ff, 0x8400};
  for (const KernelTable* table : {&kernels(), &reference_kernels()}) {
    const Bytes page = stored(*table, KvType::kF16, x);
    for (std::size_t i = 0; i < x.size(); ++i)
      EXPECT_EQ(element<std::uint16_t>(page, 0, i), expected[i]) << table->isa << ", " << x[i];
  }
}

TEST_P(AttentionTest, Q8ScalesReachOverAllOfFloat32) {
  for (const KernelTable* table : {&kernels(), &reference_kernels()})
    for (const float largest :
         {3.4e38f, 1e6f, 1.0f, 1e-6f, 0x1p-99f, 0x1p-100f, 0x1.fp-101f, 0.0f}) {
      Floats x(40, largest / 3);  // two groups
      x[7] = -largest;
      x[35] = largest;
      const Bytes page = stored(*table, KvType::kQ8, x);
      for (std::size_t d = 0; d < x.size(); ++d) {
        const std::size_t group = d / 32 * static_cast<std::size_t>(kKvGroupBytes);
        const float scale = bf16_to_f32(element<std::uint16_t>(page, group, 0));
        const auto quant = element<std::int8_t>(page, group + kKvScalesBytes, d % 32);
        const double allowed =
            largest < 0x1p-100f ? largest : storage_error(KvType::kQ8, x.data(), 40, d);
        EXPECT_NEAR(static_cast<float>(quant) * scale, x[d], allowed)
            << table->isa << ", " << largest;
        EXPECT_EQ(scale == 0.0f, largest < 0x1p-100f);
      }
    }
}

TEST_P(AttentionTest, Q8GroupsWithInfinityOrNanAreNan) {
  for (const float bad : {kInfinity, -kInfinity, kNan, -kNan})
    for (const std::size_t at : {0, 13, 31}) {
      Floats x(70, 0.5f);
      x[at] = bad;
      const Bytes page = stored(kernels(), KvType::kQ8, x);
      EXPECT_EQ(page, stored(reference_kernels(), KvType::kQ8, x));
      EXPECT_TRUE(std::isnan(bf16_to_f32(element<std::uint16_t>(page, 0, 0))));
      EXPECT_EQ(bf16_to_f32(element<std::uint16_t>(page, kKvGroupBytes, 0)), 0.00393676757812f);
    }
}

// In f16 an outlier among the keys must not become an infinity, whose product with a zero is NaN.
TEST_P(AttentionTest, OutliersStayFinite) {
  for (const KvType type : kTypes) {
    const Heads h = Heads{2, 1, 36}.with(type);
    Tokens t = make(h, 90);
    for (const std::size_t token : {3, 40, 70}) {
      t.k[token * 36 + 5] = 2e5f;
      t.v[token * 36 + 35] = -3e6f;
      t.q[token * 72 + 5] = 0;
    }
    const Floats out = prefill(kernels(), h, t, 90);
    for (const float value : out) ASSERT_TRUE(std::isfinite(value)) << name_of(type);
  }
}

// A NaN among the values is the matter of the rows that see it.
TEST_P(AttentionTest, NanStaysWithTheRowsThatSeeIt) {
  for (const KvType type : kTypes) {
    const Heads h = Heads{1, 1, 40}.with(type);
    Tokens t = make(h, 80);
    const std::int64_t token = 50;
    t.v[static_cast<std::size_t>(token * 40 + 33)] = kNan;
    const Floats out = prefill(kernels(), h, t, 80);
    for (std::int64_t row = 0; row < 80; ++row)
      for (std::int64_t d = 0; d < 40; ++d) {
        const bool shares = type == KvType::kQ8 ? d >= 32 : d == 33;
        ASSERT_EQ(std::isnan(out[static_cast<std::size_t>(row * 40 + d)]), row >= token && shares)
            << name_of(type) << " row " << row << " dimension " << d;
      }
  }
}

STAGECOACH_EVERY_ISA(AttentionTest);

}  // namespace
}  // namespace stagecoach
