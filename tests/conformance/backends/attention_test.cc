#include <algorithm>

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
    {"both", 4, 2, 32, {{100, 1}, {0, 33}, {17, 1}, {64, 40}}},
};

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
      for (std::size_t i = 0; i < result.size(); ++i)
        ASSERT_NEAR(result[i], expected[i], tolerance)
            << "row " << i / static_cast<std::size_t>(width) << " dimension "
            << i % static_cast<std::size_t>(width);
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
