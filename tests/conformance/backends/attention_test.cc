#include <algorithm>
#include <limits>

#include "conformance/backends/backend_test.h"

namespace stagecoach {
namespace {

struct Case {
  const char* name;
  std::int64_t heads, kv_heads, head_dim;
  struct Run {
    std::int64_t position, rows;
  };
  std::vector<Run> runs;
  bool slopes = false;
  std::int64_t window = 0;
};

// More spans than a warp has lanes.
std::vector<Case::Run> many_runs() {
  std::vector<Case::Run> runs;
  for (std::int64_t i = 0; i < 70; ++i) runs.push_back({i, i == 40 ? 70 : 1 + i % 2});
  return runs;
}

const Case kCases[] = {
    {"one row at the beginning", 2, 2, 16, {{0, 1}}},
    {"decode of different lengths", 3, 3, 20, {{70, 1}, {0, 1}, {300, 1}, {255, 1}, {256, 1}}},
    {"decode, grouped heads", 12, 2, 64, {{130, 1}, {517, 1}}},
    {"decode, a group that no tile divides", 10, 2, 33, {{64, 1}}},
    {"decode, large heads", 2, 1, 256, {{200, 1}}},
    {"decode, window", 4, 2, 80, {{400, 1}, {30, 1}, {64, 1}}, false, 64},
    {"decode, window of one", 2, 2, 8, {{100, 1}}, false, 1},
    {"decode, slopes", 8, 8, 16, {{290, 1}}, true},
    {"prefill from the beginning", 2, 2, 16, {{0, 70}}},
    {"prefill further on", 4, 2, 40, {{61, 37}, {0, 5}}},
    {"prefill, large heads", 2, 2, 256, {{10, 33}}},
    {"prefill, middle heads", 2, 1, 128, {{0, 65}}},
    {"prefill, window", 2, 2, 24, {{90, 70}}, false, 50},
    {"prefill, slopes", 4, 4, 12, {{3, 64}}, true},
    {"prefill, tiles of queries", 2, 1, 64, {{0, 70}, {130, 129}}},
    {"prefill, tiles of large heads", 2, 1, 256, {{31, 66}}, true},
    {"prefill, window over tiles", 2, 2, 136, {{100, 90}}, false, 33},
    {"prefill, window of one", 1, 1, 128, {{62, 5}}, false, 1},
    {"prefill, heads that fill no product", 2, 2, 33, {{50, 30}}, true},
    {"prefill, heads of several products", 4, 2, 80, {{0, 17}, {64, 64}}},
    {"both", 4, 2, 32, {{100, 1}, {0, 33}, {17, 1}, {64, 40}}},
    {"both, of many sequences", 1, 1, 8, many_runs()},
};

using Doubles = std::vector<double>;

AttentionArgs scores_of(KvType type, std::int64_t heads, std::int64_t kv_heads,
                        std::int64_t head_dim, std::int64_t window) {
  return {.q = nullptr,
          .q_stride = 0,
          .out = nullptr,
          .out_stride = 0,
          .spans = nullptr,
          .num_spans = 0,
          .kv_type = type,
          .heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
          .slopes = nullptr,
          .window = window};
}

// One position's keys (or values) of one head, as kv_page.h has them; f16 and q8.
Doubles stored(const AttentionArgs& args, const std::byte* head, bool keys, std::int64_t slot) {
  Doubles all;
  for (std::int64_t d = 0; d < args.head_dim; ++d) {
    if (args.kv_type == KvType::kF16) {
      std::uint16_t half = 0;
      std::memcpy(&half, head + 2 * (keys ? d * kKvPageTokens + slot : slot * args.head_dim + d),
                  2);
      all.push_back(f16_to_f32(half));
      continue;
    }
    const std::int64_t group = d / kKvGroupDims, in_group = d % kKvGroupDims;
    const std::int64_t dims = std::min(kKvGroupDims, args.head_dim - group * kKvGroupDims);
    const std::byte* const at = head + group * kKvGroupBytes;
    std::uint16_t scale = 0;
    std::memcpy(&scale, at + 2 * slot, 2);
    const std::int64_t index = keys ? in_group * kKvPageTokens + slot : slot * dims + in_group;
    all.push_back(static_cast<double>(bf16_to_f32(scale)) *
                  static_cast<double>(static_cast<std::int8_t>(at[kKvScalesBytes + index])));
  }
  return all;
}

// By how much each dimension of a row's output may err where queries, keys, values and the weights
// of softmax are rounded to halves, by u = 2⁻¹¹ each: a score s by e = scale · 2u · Σ |q · k|, so a
// weight p by a factor of up to exp(e + u), and an output, Σ p · v / Σ p, by at most
// Σ p · (exp(e + u) − 1) · |v − output| / Σ p · exp(−e − u), and by u · Σ p · |v|.
Doubles errors_of_halves(const AttentionArgs& args, const KvSpan& span, std::int64_t row,
                         std::int64_t head) {
  constexpr double kHalfRoundoff = 0x1p-11;
  const std::int64_t position = span.position + row - span.row;
  const std::int64_t first =
      args.window > 0 ? std::max<std::int64_t>(0, position + 1 - args.window) : 0;
  const std::int64_t offset =
      head / (args.heads / args.kv_heads) * kv_head_bytes(args.kv_type, args.head_dim);
  const auto dims = static_cast<std::size_t>(args.head_dim);
  Doubles scores, errors;
  std::vector<Doubles> values;
  for (std::int64_t key = first; key <= position; ++key) {
    const auto of_page = [&](std::byte* const* pages, bool keys) {
      return stored(args, pages[key / kKvPageTokens] + offset, keys, key % kKvPageTokens);
    };
    const Doubles k = of_page(span.key_pages, true);
    double score = 0, magnitude = 0;
    for (std::size_t d = 0; d < dims; ++d) {
      const double product =
          k[d] *
          static_cast<double>(
              args.q[row * args.q_stride + head * args.head_dim + static_cast<std::int64_t>(d)]);
      score += product;
      magnitude += std::abs(product);
    }
    const double slope = args.slopes != nullptr ? static_cast<double>(args.slopes[head]) : 0.0;
    scores.push_back(score * static_cast<double>(args.scale) -
                     slope * static_cast<double>(position - key));
    errors.push_back(static_cast<double>(args.scale) * 2 * kHalfRoundoff * magnitude +
                     kHalfRoundoff);
    values.push_back(of_page(span.value_pages, false));
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0, least = 0;
  Doubles output(dims, 0.0), result(dims, 0.0);
  for (std::size_t j = 0; j < scores.size(); ++j) {
    const double weight = std::exp(scores[j] - largest);
    sum += weight;
    least += weight * std::exp(-errors[j]);
    for (std::size_t d = 0; d < dims; ++d) output[d] += weight * values[j][d];
  }
  for (double& value : output) value /= sum;
  for (std::size_t j = 0; j < scores.size(); ++j) {
    const double weight = std::exp(scores[j] - largest);
    for (std::size_t d = 0; d < dims; ++d)
      result[d] += weight * std::expm1(errors[j]) * std::abs(values[j][d] - output[d]) / least +
                   weight / sum * kHalfRoundoff * std::abs(values[j][d]);
  }
  return result;
}

class Attention : public BackendTest {
 protected:
  // Keys and values of a whole sequence in pages of the oracle's making; slots that were never
  // written are NaN.
  struct Sequence {
    std::vector<Bytes> keys, values;
    std::vector<std::byte*> key_pages, value_pages;
    std::vector<Buffer> device_keys, device_values;
    std::vector<std::byte*> device_key_pages, device_value_pages;
  };

  // Rows of one sequence, appended and attended to run by run. args: heads and what else a score
  // depends on; k and v: (rows, kv_heads · head_dim).
  Floats attend(AttentionArgs args, const Floats& q, const Floats& k, const Floats& v,
                const std::vector<std::int64_t>& runs) {
    const std::int64_t kv_width = args.kv_heads * args.head_dim, width = args.heads * args.head_dim;
    const auto rows = static_cast<std::int64_t>(q.size()) / width;
    const Bytes page(
        static_cast<std::size_t>(args.kv_heads * kv_head_bytes(args.kv_type, args.head_dim)),
        std::byte{0xff});
    std::vector<Buffer> pages;
    std::vector<std::byte*> tables[2];
    for (std::int64_t p = 0; p * kKvPageTokens < rows; ++p)
      for (auto& table : tables) table.push_back(pages.emplace_back(on_device(page)).data());
    const Buffer device_q = on_device(q), device_k = on_device(k), device_v = on_device(v),
                 out = on_device(Floats(q.size(), -7.0f));
    KvSpan span{.row = 0,
                .rows = 0,
                .position = 0,
                .key_pages = tables[0].data(),
                .value_pages = tables[1].data()};
    args.q_stride = args.out_stride = width;
    args.spans = &span;
    args.num_spans = 1;
    for (const std::int64_t run : runs) {
      span.rows = run;
      backend().send_spans({&span, 1});
      backend().append_kv({.k = device_k.f32() + span.position * kv_width,
                           .v = device_v.f32() + span.position * kv_width,
                           .stride = kv_width,
                           .spans = &span,
                           .num_spans = 1,
                           .kv_type = args.kv_type,
                           .kv_heads = args.kv_heads,
                           .head_dim = args.head_dim});
      args.q = device_q.f32() + span.position * width;
      args.out = out.f32() + span.position * width;
      backend().attention(args);
      span.position += run;
    }
    return floats_of(out);
  }
};
STAGECOACH_EVERY_BACKEND(Attention);

TEST_P(Attention, AppendsTheOraclesBitsAndAgreesWithIt) {
  for (const Case& c : kCases)
    for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8}) {
      SCOPED_TRACE(std::string(c.name) + ", keys of type " +
                   std::to_string(static_cast<int>(type)));
      const std::int64_t kv_width = c.kv_heads * c.head_dim, width = c.heads * c.head_dim;
      const std::int64_t page_bytes = c.kv_heads * kv_head_bytes(type, c.head_dim);
      std::vector<Sequence> sequences(c.runs.size());
      std::vector<KvSpan> spans, device_spans;
      std::int64_t rows = 0;
      for (std::size_t s = 0; s < c.runs.size(); ++s) {
        Sequence& sequence = sequences[s];
        const std::int64_t end = c.runs[s].position + c.runs[s].rows;
        for (std::int64_t p = 0; p * kKvPageTokens < end; ++p) {
          sequence.keys.emplace_back(static_cast<std::size_t>(page_bytes), std::byte{0xff});
          sequence.values.emplace_back(static_cast<std::size_t>(page_bytes), std::byte{0xff});
        }
        for (Bytes& page : sequence.keys) sequence.key_pages.push_back(page.data());
        for (Bytes& page : sequence.values) sequence.value_pages.push_back(page.data());
        // What came before.
        const std::int64_t before = c.runs[s].position;
        const Floats k = random(before * kv_width), v = random(before * kv_width);
        const KvSpan past{.row = 0,
                          .rows = before,
                          .position = 0,
                          .key_pages = sequence.key_pages.data(),
                          .value_pages = sequence.value_pages.data()};
        reference_kernels().append_kv({.k = k.data(),
                                       .v = v.data(),
                                       .stride = kv_width,
                                       .spans = &past,
                                       .num_spans = 1,
                                       .kv_type = type,
                                       .kv_heads = c.kv_heads,
                                       .head_dim = c.head_dim},
                                      0, c.kv_heads);
        for (std::size_t p = 0; p < sequence.keys.size(); ++p) {
          sequence.device_keys.push_back(on_device(sequence.keys[p]));
          sequence.device_values.push_back(on_device(sequence.values[p]));
          sequence.device_key_pages.push_back(sequence.device_keys.back().data());
          sequence.device_value_pages.push_back(sequence.device_values.back().data());
        }
        KvSpan span{.row = rows,
                    .rows = c.runs[s].rows,
                    .position = before,
                    .key_pages = sequence.key_pages.data(),
                    .value_pages = sequence.value_pages.data()};
        spans.push_back(span);
        span.key_pages = sequence.device_key_pages.data();
        span.value_pages = sequence.device_value_pages.data();
        device_spans.push_back(span);
        rows += c.runs[s].rows;
      }

      Floats k = random(rows * kv_width), v = random(rows * kv_width), q = random(rows * width);
      k[0] = 70000.0f;  // beyond f16
      k[0] *= type == KvType::kF16 ? 1.0f : 1e-4f;
      const Floats slopes = random(c.heads, 0.2f);
      AppendKvArgs append{.k = k.data(),
                          .v = v.data(),
                          .stride = kv_width,
                          .spans = spans.data(),
                          .num_spans = static_cast<std::int64_t>(spans.size()),
                          .kv_type = type,
                          .kv_heads = c.kv_heads,
                          .head_dim = c.head_dim};
      reference_kernels().append_kv(append, 0, c.kv_heads);
      Floats expected(static_cast<std::size_t>(rows * width), -7.0f);
      AttentionArgs attend{.q = q.data(),
                           .q_stride = width,
                           .out = expected.data(),
                           .out_stride = width,
                           .spans = spans.data(),
                           .num_spans = static_cast<std::int64_t>(spans.size()),
                           .kv_type = type,
                           .heads = c.heads,
                           .kv_heads = c.kv_heads,
                           .head_dim = c.head_dim,
                           .scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim)),
                           .slopes = c.slopes ? slopes.data() : nullptr,
                           .window = c.window};
      reference_kernels().attention(attend, 0, c.heads);

      const Buffer device_k = on_device(k), device_v = on_device(v), device_q = on_device(q),
                   device_slopes = on_device(slopes),
                   out = on_device(Floats(expected.size(), -7.0f));
      // As of two layers, of which this is the second.
      std::vector<KvSpan> sent(device_spans.size(), device_spans.front());
      sent.insert(sent.end(), device_spans.begin(), device_spans.end());
      const KvSpan* const of_layer = sent.data() + device_spans.size();
      backend().send_spans(sent);
      append.k = device_k.f32();
      append.v = device_v.f32();
      append.spans = of_layer;
      backend().append_kv(append);
      attend.q = device_q.f32();
      attend.out = out.f32();
      attend.spans = of_layer;
      if (c.slopes) attend.slopes = device_slopes.f32();
      backend().attention(attend);
      for (Sequence& sequence : sequences)
        for (std::size_t p = 0; p < sequence.keys.size(); ++p) {
          ASSERT_EQ(bytes_of(sequence.device_keys[p]), sequence.keys[p]) << "keys, page " << p;
          ASSERT_EQ(bytes_of(sequence.device_values[p]), sequence.values[p])
              << "values, page " << p;
        }
      // Scores of up to some units err by head_dim roundings, and so do their weights; a sum of up
      // to 600 values adds its own.
      const Floats result = floats_of(out);
      const double tolerance = kRoundoff * 8.0 * (static_cast<double>(c.head_dim) + 600.0);
      attend.q = q.data();
      attend.slopes = c.slopes ? slopes.data() : nullptr;
      for (const KvSpan& span : spans)
        for (std::int64_t r = span.row; r < span.row + span.rows; ++r)
          for (std::int64_t head = 0; head < c.heads; ++head) {
            const std::int64_t begin = r * width + head * c.head_dim;
            Doubles errors(static_cast<std::size_t>(c.head_dim), 0.0);
            if (is_gpu() && type != KvType::kF32 && span.rows > 1)
              errors = errors_of_halves(attend, span, r, head);
            for (std::int64_t d = 0; d < c.head_dim; ++d) {
              const auto i = static_cast<std::size_t>(begin + d);
              ASSERT_NEAR(result[i], expected[i], tolerance + errors[static_cast<std::size_t>(d)])
                  << "row " << r << " head " << head << " dimension " << d;
            }
          }
    }
}

TEST_P(Attention, RowsDoNotDependOnHowThePromptIsCut) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8})
    for (const std::int64_t head_dim : {40, 160})
      for (const std::int64_t window : {0, 50}) {
        const std::int64_t rows = 150;
        const AttentionArgs args = scores_of(type, 2, 1, head_dim, window);
        const Floats q = random(rows * 2 * head_dim), k = random(rows * head_dim),
                     v = random(rows * head_dim);
        const Floats whole = attend(args, q, k, v, {rows});
        for (const std::vector<std::int64_t>& runs :
             {std::vector<std::int64_t>{3, 147}, {64, 86}, {70, 13, 67}})
          ASSERT_EQ(attend(args, q, k, v, runs), whole)
              << "keys of type " << static_cast<int>(type) << ", heads of " << head_dim
              << ", window " << window << ", first run " << runs[0];
      }
}

// 0 · ∞ is NaN, in a row that does not see the value.
TEST_P(Attention, WhatARowDoesNotSeeDoesNotReachIt) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8})
    for (const std::int64_t head_dim : {64, 160}) {
      // The CPU multiplies what lies before a window in its first page by 0.
      const std::int64_t rows = 100, window = is_gpu() ? 40 : 0, overflown = 37;
      const AttentionArgs args = scores_of(type, 1, 1, head_dim, window);
      const Floats q = random(rows * head_dim), k = random(rows * head_dim);
      Floats v = random(rows * head_dim);
      const Floats finite = attend(args, q, k, v, {rows});
      v[static_cast<std::size_t>(overflown * head_dim + 5)] =
          std::numeric_limits<float>::infinity();
      const Floats result = attend(args, q, k, v, {rows});
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t d = 0; d < head_dim; ++d) {
          const auto i = static_cast<std::size_t>(r * head_dim + d);
          const bool sees = r >= overflown && (window == 0 || r < overflown + window);
          const bool in_group = type == KvType::kQ8 && d < kKvGroupDims;
          if (sees && d == 5) {
            ASSERT_FALSE(std::isfinite(result[i])) << "row " << r;
          } else if (!sees || !in_group) {
            ASSERT_EQ(result[i], finite[i])
                << "row " << r << " dimension " << d << ", type " << static_cast<int>(type);
          }
        }
    }
}

// Rotated on the way into the cache, by the bits of one op after the other.
TEST_P(Attention, RotatesAndAppends) {
  struct Shape {
    std::int64_t heads, kv_heads, head_dim, rotary_dim;
  };
  for (const Shape shape : {Shape{4, 2, 16, 16}, {2, 2, 40, 24}, {3, 1, 80, 2}, {2, 1, 256, 256}})
    for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8}) {
      SCOPED_TRACE("heads of " + std::to_string(shape.head_dim) + ", keys of type " +
                   std::to_string(static_cast<int>(type)));
      const auto [heads, kv_heads, head_dim, rotary_dim] = shape;
      const std::int64_t width = heads * head_dim, kv_width = kv_heads * head_dim;
      // Two sequences: 1 row at position 64, on its second page, and 5 rows from 61 on, over both.
      constexpr std::int64_t kRows = 6;
      const Floats q = random(kRows * width), k = random(kRows * kv_width);
      const Buffer v = on_device(random(kRows * kv_width)),
                   cos = on_device(random(kRows * rotary_dim / 2)),
                   sin = on_device(random(kRows * rotary_dim / 2));
      std::vector<Bytes> left[2];  // of both ways: queries, then pages
      for (const bool fused : {false, true}) {
        const Buffer device_q = on_device(q), device_k = on_device(k);
        std::vector<Buffer> pages;
        std::vector<std::byte*> tables[4];  // keys and values of each sequence
        for (auto& table : tables)
          for (int page = 0; page < 2; ++page) {
            pages.push_back(backend().allocate(kv_heads * kv_head_bytes(type, head_dim)));
            table.push_back(pages.back().data());
          }
        const std::vector<KvSpan> spans{{.row = 0,
                                         .rows = 1,
                                         .position = 64,
                                         .key_pages = tables[0].data(),
                                         .value_pages = tables[1].data()},
                                        {.row = 1,
                                         .rows = 5,
                                         .position = 61,
                                         .key_pages = tables[2].data(),
                                         .value_pages = tables[3].data()}};
        backend().send_spans(spans);
        const auto rotary = [&](const Buffer& x, std::int64_t count) {
          return RotaryArgs{.x = x.f32(),
                            .x_stride = count * head_dim,
                            .cos = cos.f32(),
                            .sin = sin.f32(),
                            .rows = kRows,
                            .heads = count,
                            .head_dim = head_dim,
                            .rotary_dim = rotary_dim};
        };
        const AppendKvArgs append{.k = device_k.f32(),
                                  .v = v.f32(),
                                  .stride = kv_width,
                                  .spans = spans.data(),
                                  .num_spans = 2,
                                  .kv_type = type,
                                  .kv_heads = kv_heads,
                                  .head_dim = head_dim};
        if (fused) {
          backend().rotate_and_append(rotary(device_q, heads), rotary(device_k, kv_heads), append);
        } else {
          backend().rotary(rotary(device_q, heads));
          backend().rotary(rotary(device_k, kv_heads));
          backend().append_kv(append);
        }
        left[fused].push_back(bytes_of(device_q));
        for (const Buffer& page : pages) left[fused].push_back(bytes_of(page));
      }
      ASSERT_EQ(left[0], left[1]);
    }
}

}  // namespace
}  // namespace stagecoach
