// Attention and what fills its pages.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/cuda_kernels.h"

namespace stagecoach::cuda_bench {
namespace {

// The pages of one layer's keys and values of one sequence, on the host and, `copies` times, on the
// device, where each copy has its tables of pages.
class Pages {
 public:
  Pages(Bench& bench, KvType type, std::int64_t heads, std::int64_t head_dim, std::int64_t tokens,
        std::int64_t copies)
      : page_bytes_(heads * kv_head_bytes(type, head_dim)),
        count_((tokens + kKvPageTokens - 1) / kKvPageTokens),
        host_(static_cast<std::size_t>(2 * count_ * page_bytes_), std::byte{0xff}),
        device_(bench.unwritten(copies * bytes())) {
    host_pages_ = pages_of(host_.data());
    std::vector<std::byte*> all;
    for (std::int64_t c = 0; c < copies; ++c) {
      const auto pages = pages_of(device_.data() + c * bytes());
      all.insert(all.end(), pages.begin(), pages.end());
    }
    tables_ = bench.on_device(std::as_bytes(std::span(all)));
    bench.synchronize();
  }

  std::int64_t bytes() const { return 2 * count_ * page_bytes_; }
  Bytes& host() { return host_; }
  std::byte* device(std::int64_t copy) const { return device_.data() + copy * bytes(); }

  KvSpan host_span(std::int64_t row, std::int64_t rows, std::int64_t position) {
    return {.row = row,
            .rows = rows,
            .position = position,
            .key_pages = host_pages_.data(),
            .value_pages = host_pages_.data() + count_};
  }
  // Its tables lie on the device, as kernels read them.
  KvSpan device_span(std::int64_t copy, std::int64_t row, std::int64_t rows,
                     std::int64_t position) const {
    auto* const tables = reinterpret_cast<std::byte**>(tables_.data()) + copy * 2 * count_;
    return {.row = row,
            .rows = rows,
            .position = position,
            .key_pages = tables,
            .value_pages = tables + count_};
  }

 private:
  // Keys, then values.
  std::vector<std::byte*> pages_of(std::byte* data) const {
    std::vector<std::byte*> pages;
    for (std::int64_t p = 0; p < 2 * count_; ++p) pages.push_back(data + p * page_bytes_);
    return pages;
  }

  std::int64_t page_bytes_, count_;
  Bytes host_;
  Memory device_;
  std::vector<std::byte*> host_pages_;
  Memory tables_;
};

// Spans on the device, and what launching needs to know of them.
struct SentSpans {
  Memory memory;
  cuda::DeviceSpans spans;
};

SentSpans send(Bench& bench, const std::vector<KvSpan>& spans) {
  SentSpans sent{.memory = bench.on_device(std::as_bytes(std::span(spans))), .spans = {}};
  bench.synchronize();
  sent.spans.spans = reinterpret_cast<const KvSpan*>(sent.memory.data());
  sent.spans.count = static_cast<std::int64_t>(spans.size());
  std::int64_t longest = 0;
  for (const KvSpan& span : spans) {
    sent.spans.rows += span.rows;
    sent.spans.largest_rows = std::max(sent.spans.largest_rows, span.rows);
    if (span.rows == 1) longest = std::max(longest, span.position + 1);
  }
  sent.spans.splits = decode_splits(longest);
  return sent;
}

struct Names {
  std::string append, prefill, decode, decode_8;

  Names(const Model& model, KvType type) {
    const std::string heads =
        " x " + std::to_string(model.heads) + " x " + std::to_string(model.head_dim);
    const auto line = [&](const char* kernel, const std::string& rows) {
      return std::string(model.name) + " " + kernel + " " + name_of(type) + " " + rows + heads;
    };
    append = line("append_kv", std::to_string(std::max(model.rows, model.context)));
    prefill = line("attention_prefill", std::to_string(model.rows));
    decode = line("attention_decode", "1 at " + std::to_string(model.context));
    decode_8 = line("attention_decode", "8 at " + std::to_string(model.context));
  }
  bool any_wanted(const Bench& bench) const {
    return bench.wanted(append) || bench.wanted(prefill) || bench.wanted(decode) ||
           bench.wanted(decode_8);
  }
};

class AttentionBench {
 public:
  AttentionBench(Bench& bench, const Model& model, KvType type)
      : bench_(bench),
        model_(model),
        type_(type),
        width_(model.heads * model.head_dim),
        tokens_(std::max(model.rows, model.context)),
        copies_(std::max<std::int64_t>(2, bench.copies_of(2 * tokens_ * width_ * 2))),
        pages_(bench, type, model.heads, model.head_dim, tokens_, copies_) {}

  // Fills all pages, on the device with its own kernel: the oracle's bits are expected. To be
  // called first.
  void append(const std::string& name) {
    const Floats k = bench_.random(tokens_ * width_), v = bench_.random(tokens_ * width_);
    const Memory device_k = bench_.on_device(k), device_v = bench_.on_device(v);
    const KvSpan host_span = pages_.host_span(0, tokens_, 0);
    AppendKvArgs args = {.k = k.data(),
                         .v = v.data(),
                         .stride = width_,
                         .spans = &host_span,
                         .num_spans = 1,
                         .kv_type = type_,
                         .kv_heads = model_.heads,
                         .head_dim = model_.head_dim};
    reference_kernels().append_kv(args, 0, model_.heads);
    args.k = device_k.f32();
    args.v = device_v.f32();
    std::vector<SentSpans> spans;
    for (std::int64_t c = 0; c < copies_; ++c) {
      spans.push_back(send(bench_, {pages_.device_span(c, 0, tokens_, 0)}));
      cuda::append_kv(args, spans.back().spans, bench_.stream());
    }
    Bytes found(pages_.host().size());
    double wrong = 0;
    for (const std::int64_t copy : {std::int64_t{0}, copies_ - 1}) {
      bench_.download(found, pages_.device(copy));
      for (std::size_t i = 0; i < found.size(); ++i) wrong += found[i] != pages_.host()[i];
    }
    if (!bench_.wanted(name)) return;
    bench_.report(name, {.bytes = static_cast<double>(pages_.bytes() + 2 * tokens_ * width_ * 4)},
                  {wrong, 0}, copies_, [&](std::int64_t copy) {
                    cuda::append_kv(args, spans[static_cast<std::size_t>(copy)].spans,
                                    bench_.stream());
                  });
  }

  void prefill(const std::string& name) {
    if (!bench_.wanted(name)) return;
    const std::int64_t rows = model_.rows;
    const Floats q = bench_.random(rows * width_);
    const Memory device_q = bench_.on_device(q), out = bench_.unwritten(rows * width_ * 4);
    // The oracle: a few rows at the beginning, in the middle and at the end, of three heads.
    const std::int64_t few = std::min<std::int64_t>(4, rows / 3);
    std::vector<KvSpan> sampled;
    for (const std::int64_t row : {std::int64_t{0}, rows / 2 + 1, rows - few})
      sampled.push_back(pages_.host_span(row, few, row));
    AttentionArgs args = this->args(q, sampled);
    const SentSpans spans = send(bench_, {pages_.device_span(0, 0, rows, 0)});
    args.q = device_q.f32();
    args.out = out.f32();
    cuda::attention_prefill(args, spans.spans, bench_.stream());
    check(cudaGetLastError(), "starting a kernel");
    // Queries, keys and weights of softmax are rounded to halves, by u = 2⁻¹¹ each; a score of
    // numbers up to 1 is a sum of dims products of a quarter, over √dims.
    const bool halves = type_ != KvType::kF32;
    const double scores = std::sqrt(static_cast<double>(model_.head_dim)) / 4;
    const double rounded = halves ? 0x1p-11 * (2 * scores + 1) : 0;
    const Error error = this->error(q, out, rows, sampled, rounded);
    const auto n = static_cast<double>(rows), width = static_cast<double>(width_);
    bench_.report(name,
                  {.bytes = static_cast<double>(pages_.bytes()) + 8 * n * width,
                   .flops = 4 * width * n * (n + 1) / 2,
                   .peak = halves ? bench_.limits().f16 : bench_.limits().f32},
                  error, 1, [&](std::int64_t) {
                    cuda::attention_prefill(args, spans.spans, bench_.stream());
                  });
  }

  // One row of each of `sequences`, which read different copies of the pages while there are any.
  void decode(const std::string& name, std::int64_t sequences) {
    if (!bench_.wanted(name)) return;
    const std::int64_t position = model_.context - 1;
    const Floats q = bench_.random(sequences * width_);
    const Memory device_q = bench_.on_device(q), out = bench_.unwritten(sequences * width_ * 4);
    std::vector<KvSpan> sampled;
    for (std::int64_t s = 0; s < sequences; ++s)
      sampled.push_back(pages_.host_span(s, 1, position));
    AttentionArgs args = this->args(q, sampled);
    args.q = device_q.f32();
    args.out = out.f32();
    std::vector<SentSpans> spans;
    for (std::int64_t c = 0; c < copies_; ++c) {
      std::vector<KvSpan> device_spans;
      for (std::int64_t s = 0; s < sequences; ++s)
        device_spans.push_back(pages_.device_span((c * sequences + s) % copies_, s, 1, position));
      spans.push_back(send(bench_, device_spans));
    }
    const Memory scratch(4 * cuda::decode_scratch_floats(args, spans[0].spans));
    const auto queue = [&](std::int64_t copy) {
      cuda::attention_decode(args, spans[static_cast<std::size_t>(copy)].spans,
                             reinterpret_cast<float*>(scratch.data()), bench_.stream());
    };
    queue(0);
    check(cudaGetLastError(), "starting a kernel");
    const Error error = this->error(q, out, sequences, sampled, 0);
    const auto n = static_cast<double>(sequences), width = static_cast<double>(width_);
    const double read = static_cast<double>(pages_.bytes()) * static_cast<double>(model_.context) /
                        static_cast<double>(tokens_);
    bench_.report(name,
                  {.bytes = n * (read + 8 * width),
                   .flops = 4 * n * width * static_cast<double>(model_.context),
                   .peak = bench_.limits().f32},
                  error, copies_, queue);
  }

 private:
  AttentionArgs args(const Floats& q, const std::vector<KvSpan>& spans) const {
    return {.q = q.data(),
            .q_stride = width_,
            .out = nullptr,
            .out_stride = width_,
            .spans = spans.data(),
            .num_spans = static_cast<std::int64_t>(spans.size()),
            .kv_type = type_,
            .heads = model_.heads,
            .kv_heads = model_.heads,
            .head_dim = model_.head_dim,
            .scale = 1.0f / std::sqrt(static_cast<float>(model_.head_dim))};
  }

  // Of the rows of `spans`, in the first, a middle and the last head; `rounded`: by rounding
  // inputs.
  Error error(const Floats& q, const Memory& out, std::int64_t rows,
              const std::vector<KvSpan>& spans, double rounded) {
    Floats expected(static_cast<std::size_t>(rows * width_)), should, actual;
    AttentionArgs args = this->args(q, spans);
    args.out = expected.data();
    const Floats found = bench_.floats_of(out);
    for (const std::int64_t head : {std::int64_t{0}, model_.heads / 2, model_.heads - 1}) {
      reference_kernels().attention(args, head, head + 1);
      for (const KvSpan& span : spans)
        for (std::int64_t r = span.row; r < span.row + span.rows; ++r)
          for (std::int64_t d = 0; d < model_.head_dim; ++d) {
            const auto at = static_cast<std::size_t>(r * width_ + head * model_.head_dim + d);
            actual.push_back(found[at]);
            should.push_back(expected[at]);
          }
    }
    // Every other row was written, too.
    double worst = relative_error(actual, [&](std::size_t i) { return should[i]; });
    for (const float value : found)
      if (!std::isfinite(value)) worst = NAN;
    return {worst, 1e-4 + rounded};
  }

  Bench& bench_;
  const Model& model_;
  KvType type_;
  std::int64_t width_, tokens_, copies_;
  Pages pages_;
};

}  // namespace

void bench_attention(Bench& bench, const Model& model) {
  std::vector<KvType> types{KvType::kF16, KvType::kQ8};
  if (!bench.options().quick) types.push_back(KvType::kF32);
  for (const KvType type : types) {
    const Names names(model, type);
    if (!names.any_wanted(bench)) continue;
    bench.attempt(names.append, [&] {
      AttentionBench attention(bench, model, type);
      attention.append(names.append);
      attention.prefill(names.prefill);
      attention.decode(names.decode, 1);
      attention.decode(names.decode_8, 8);
    });
  }
}

}  // namespace stagecoach::cuda_bench
