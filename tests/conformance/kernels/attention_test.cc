#include <limits>
#include <memory>

#include "conformance/kernels/kernel_test.h"

namespace stagecoach {
namespace {

struct Heads {
  std::int64_t heads, kv_heads, head_dim;
  std::int64_t window = 0;
  bool slopes = false;
};

// The pages of one sequence. Slots never written hold NaN: reading one beyond a row's own position
// would show in its output.
class Sequence {
 public:
  Sequence(const Heads& shape, std::int64_t tokens) {
    const std::int64_t size = shape.kv_heads * shape.head_dim * kKvPageTokens;
    for (std::int64_t page = 0; page * kKvPageTokens < tokens; ++page) {
      keys_.emplace_back(size, std::numeric_limits<float>::quiet_NaN());
      values_.emplace_back(size, std::numeric_limits<float>::quiet_NaN());
    }
    for (Floats& page : keys_) key_pages_.push_back(page.data());
    for (Floats& page : values_) value_pages_.push_back(page.data());
  }
  KvSpan span(std::int64_t row, std::int64_t rows, std::int64_t position) {
    return {.row = row,
            .rows = rows,
            .position = position,
            .key_pages = key_pages_.data(),
            .value_pages = value_pages_.data()};
  }
  const std::vector<Floats>& keys() const { return keys_; }
  const std::vector<Floats>& values() const { return values_; }

 private:
  std::vector<Floats> keys_, values_;
  std::vector<float*> key_pages_, value_pages_;
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
                             // Windows that end within a page, on its edge and beyond the text.
                             {4, 2, 16, 1},
                             {3, 1, 20, 10},
                             {2, 2, 8, 64},
                             {6, 3, 17, 70},
                             {2, 1, 8, 500},
                             {5, 5, 12, 0, true},
                             {6, 2, 16, 40, true}};

TEST_P(AttentionTest, AgreesWithTheOracle) {
  for (const Heads& h : kShapes)
    for (const std::int64_t rows : {1, 5, 63, 64, 65, 131}) {
      const Tokens t = make(h, rows);
      const Floats out = prefill(kernels(), h, t, rows);
      const Floats expected = prefill(reference_kernels(), h, t, rows);
      // Outputs are weighted means of values of magnitude about 1 to 5; weights err by the
      // roundings of a score, itself a sum of head_dim products of mean magnitude below 1.
      const double allowed =
          5.0 * kRoundoff * (static_cast<double>(rows) + 4.0 * std::sqrt(h.head_dim) + 16.0);
      for (std::size_t i = 0; i < out.size(); ++i)
        ASSERT_NEAR(out[i], expected[i], allowed)
            << "head_dim " << h.head_dim << " heads " << h.heads << " rows " << rows << " at " << i;
    }
}

TEST_P(AttentionTest, SharpAndHugeScoresStayFinite) {
  const Heads h = {2, 1, 16};
  const Tokens t = make(h, 150, 40.0f);  // scores in the thousands: all weight on one key
  const Floats out = prefill(kernels(), h, t, 150),
               expected = prefill(reference_kernels(), h, t, 150);
  for (std::size_t i = 0; i < out.size(); ++i)
    ASSERT_NEAR(out[i], expected[i], 5.0 * 16 * 40 * 40 * 10 * kRoundoff) << i;
}

TEST_P(AttentionTest, DecodeAndAnyChunkingEqualPrefill) {
  for (const Heads& h : {Heads{4, 2, 20}, Heads{3, 3, 32}, Heads{6, 1, 9}, Heads{4, 2, 20, 1},
                         Heads{3, 1, 9, 7}, Heads{3, 3, 32, 64}, Heads{6, 2, 9, 65},
                         Heads{4, 1, 20, 0, true}, Heads{6, 3, 9, 30, true}}) {
    const std::int64_t rows = 150;
    const Tokens t = make(h, rows);
    const Floats whole = prefill(kernels(), h, t, rows);
    for (const std::int64_t chunk : {1, 2, 7, 13, 24, 63, 64, 65, 100}) {
      Sequence sequence(h, rows);
      Floats out(t.q.size(), -1.0f);
      for (std::int64_t first = 0; first < rows; first += chunk) {
        const std::vector<KvSpan> spans = {
            sequence.span(first, std::min(chunk, rows - first), first)};
        append(kernels(), h, t, spans);
        attend(kernels(), h, t, spans, out, 0, h.heads);
      }
      ASSERT_TRUE(same_bits(out, whole)) << "chunks of " << chunk;
    }
  }
}

TEST_P(AttentionTest, SequencesInOneBatchDoNotMix) {
  const Heads h = {4, 2, 24};
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
  EXPECT_TRUE(same_bits(together, alone));
}

TEST_P(AttentionTest, SplitsOfHeadsChangeNoBit) {
  const Heads h = {12, 3, 10};
  const Tokens t = make(h, 90);
  const Floats whole = prefill(kernels(), h, t, 90);
  Sequence sequence(h, 90);
  append(kernels(), h, t, {sequence.span(0, 90, 0)});
  for (int repetition = 0; repetition < 6; ++repetition) {
    Floats out(t.q.size(), -1.0f);
    for (std::int64_t begin = 0; begin < h.heads;) {
      const std::int64_t end = uniform(begin + 1, h.heads);
      attend(kernels(), h, t, {sequence.span(0, 89, 0), sequence.span(89, 1, 89)}, out, begin, end);
      begin = end;
    }
    ASSERT_TRUE(same_bits(out, whole));
  }
}

TEST_P(AttentionTest, AppendWritesWhatTheOracleWritesAndNoMore) {
  const Heads h = {3, 3, 21};
  const Tokens t = make(h, 140);
  for (const std::int64_t first : {0, 30, 64}) {
    Sequence actual(h, 200), expected(h, 200);
    append(kernels(), h, t, {actual.span(2, 100, first), actual.span(120, 5, first + 101)});
    append(reference_kernels(), h, t,
           {expected.span(2, 100, first), expected.span(120, 5, first + 101)});
    for (std::size_t page = 0; page < actual.keys().size(); ++page) {
      EXPECT_TRUE(same_bits(actual.keys()[page], expected.keys()[page]));
      EXPECT_TRUE(same_bits(actual.values()[page], expected.values()[page]));
    }
  }
}

STAGECOACH_EVERY_ISA(AttentionTest);

}  // namespace
}  // namespace stagecoach
