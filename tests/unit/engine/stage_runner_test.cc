#include "engine/stage_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <thread>
#include <utility>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kHidden = 8;
constexpr std::int64_t kVocab = 5;

// A head that tells rows apart: row r's hidden state is the unit vector r mod 8, which the norm
// scales by √8, and the matrix has 10·k + v at (v, k), so that its logit v is √8 · (10 · (r mod 8)
// + v).
class HeadOnly : public LayerSource {
 public:
  HeadOnly() {
    norm_.assign(kHidden, 1.0f);
    std::vector<float> rows(static_cast<std::size_t>(kVocab * kHidden));
    for (std::int64_t v = 0; v < kVocab; ++v)
      for (std::int64_t k = 0; k < kHidden; ++k)
        rows[static_cast<std::size_t>(v * kHidden + k)] = static_cast<float>(10 * k + v);
    matrix_.resize(
        static_cast<std::size_t>(layout_bytes(Layout::kPanels16, DType::kF32, kVocab, kHidden)));
    pack_rows(Layout::kPanels16, DType::kF32, rows.data(), kVocab, kHidden, matrix_.data());
    head_.views[static_cast<int>(TensorRole::kFinalNorm)] = {
        reinterpret_cast<const std::byte*>(norm_.data()), DType::kF32, Layout::kRows, 1, kHidden};
    head_.views[static_cast<int>(TensorRole::kHead)] = {matrix_.data(), DType::kF32,
                                                        Layout::kPanels16, kVocab, kHidden};
  }
  LayerLease lease(std::int64_t, PartKind, NextUse) override {
    throw std::logic_error("no layers");
  }
  LayerLease lease_ends(PartKind part) override {
    EXPECT_EQ(part, PartKind::kHead);
    ++leases_;
    return {head_, nullptr};
  }
  void gather(TensorRole, std::span<const std::int32_t>, const UseRows&) override {
    throw std::logic_error("no embedding");
  }
  void head_matrix(const UseTile& use) override {
    std::this_thread::sleep_for(disk);
    use(0, head_[TensorRole::kHead]);
  }
  int leases() const { return leases_; }
  std::chrono::milliseconds disk{0};  // how long it takes to come

 private:
  std::vector<float> norm_;
  std::vector<std::byte> matrix_;
  PartTensors head_;
  int leases_ = 0;
};

class RunHead : public testing::Test {
 protected:
  RunHead() {
    spec_.vocab_size = kVocab;
    spec_.hidden_size = spec_.embedding_size = kHidden;
    spec_.intermediate_size = 16;
    spec_.num_hidden_layers = 1;
    spec_.num_attention_heads = spec_.num_key_value_heads = 1;
    spec_.head_dim = 8;
    spec_.max_position_embeddings = 256;
    spec_.norm = NormAxis::kRmsNorm;
    spec_.norm_epsilon = 0;
    spec_.norm_bias = false;
    spec_.attention_scale = 1;
    runner_.emplace(spec_, *backend_, head_, timeline_,
                    StageRunner::Limits{.max_rows = 64, .kv_type = KvType::kF32});
    std::vector<float> hidden(static_cast<std::size_t>(64 * kHidden));
    for (std::int64_t row = 0; row < 64; ++row)
      hidden[static_cast<std::size_t>(row * kHidden + row % kHidden)] = 1;
    runner_->set_hidden(hidden);
  }

  static TokenRun run(SequenceId id, std::int64_t count, std::vector<TokenId> targets,
                      bool sample) {
    return {.sequence = id,
            .position = 0,
            .ids = std::vector<TokenId>(static_cast<std::size_t>(count)),
            .targets = std::move(targets),
            .sample = sample};
  }

  // (sequence, row in run) of every row that was used, in order; checks that its logits are its
  // own.
  std::vector<std::pair<SequenceId, std::int64_t>> rows_used(const std::vector<TokenRun>& runs) {
    std::vector<std::pair<SequenceId, std::int64_t>> used;
    runner_->run_head(runs, {},
                      [&](const TokenRun& run, std::int64_t row, std::span<float> logits) {
                        used.emplace_back(run.sequence, row);
                        std::int64_t first = 0;
                        for (const TokenRun& before : runs) {
                          if (&before == &run) break;
                          first += before.count();
                        }
                        ASSERT_EQ(static_cast<std::int64_t>(logits.size()), kVocab);
                        const auto mark = static_cast<float>((first + row) % kHidden);
                        for (std::int64_t v = 0; v < kVocab; ++v)
                          EXPECT_NEAR(logits[static_cast<std::size_t>(v)],
                                      std::sqrt(8.0f) * (10 * mark + static_cast<float>(v)), 1e-3);
                        std::fill(logits.begin(), logits.end(), -1.0f);  // allowed
                      });
    return used;
  }

  ModelSpec spec_;
  std::unique_ptr<Backend> backend_ = make_cpu_backend({.threads = 1, .isa = {}});
  HeadOnly head_;
  Timeline timeline_;
  std::optional<StageRunner> runner_;
};

using Rows = std::vector<std::pair<SequenceId, std::int64_t>>;

// A window of many layers and rows takes minutes, and Ctrl-C is heard between two of them.
TEST_F(RunHead, ALayerIsNotBegunWhenTheJobShallEnd) {
  StageRunner runner(
      spec_, *backend_, head_, timeline_,
      StageRunner::Limits{.max_rows = 4, .kv_type = KvType::kF32, .before_layer = [] {
                            throw Error(ErrorKind::kInterrupted, "interrupted");
                          }});
  runner.add_layers(0, 1);
  runner.set_hidden(std::vector<float>(static_cast<std::size_t>(4 * kHidden)));
  const std::vector<TokenRun> runs{run(0, 4, {}, false)};
  try {
    runner.run_layers(0, 1, runs, {});
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInterrupted);
  }
}

TEST_F(RunHead, NothingWantedRunsNothing) {
  EXPECT_EQ(rows_used({run(0, 4, {}, false), run(1, 2, {-1, -1}, false)}), Rows{});
  EXPECT_EQ(head_.leases(), 0);
  EXPECT_EQ(rows_used({}), Rows{});
}

TEST_F(RunHead, WaitingForTheMatrixIsNotItsComputation) {
  head_.disk = std::chrono::milliseconds(2);
  rows_used({run(0, 1, {}, true)});
  std::int64_t reached = 0, bytes = 0, flops = 0, waited = 0;
  for (const Span& span : timeline_.take()) {
    EXPECT_LE(reached, span.begin_ns);  // side by side
    EXPECT_LE(span.begin_ns, span.end_ns);
    reached = span.end_ns;
    bytes += span.bytes;
    flops += span.flops;
    if (span.kind == SpanKind::kWeightWait) waited += span.end_ns - span.begin_ns;
  }
  EXPECT_GE(waited, 2'000'000);
  EXPECT_EQ(bytes, layout_bytes(Layout::kPanels16, DType::kF32, kVocab, kHidden));
  EXPECT_EQ(flops, 2 * kVocab * kHidden);
}

TEST_F(RunHead, SamplesAfterTheLastRowOfARun) {
  EXPECT_EQ(rows_used({run(4, 3, {}, true), run(5, 1, {}, false), run(6, 1, {}, true)}),
            (Rows{{4, 2}, {6, 0}}));
}

TEST_F(RunHead, ScoresRowsWithATarget) {
  EXPECT_EQ(rows_used({run(1, 4, {2, -1, 0, -1}, false)}), (Rows{{1, 0}, {1, 2}}));
}

TEST_F(RunHead, ARowThatIsScoredAndSampledIsUsedOnce) {
  EXPECT_EQ(rows_used({run(1, 2, {3, 4}, true)}), (Rows{{1, 0}, {1, 1}}));
}

TEST_F(RunHead, ManyRowsGoAFewAtATime) {
  const auto used =
      rows_used({run(0, 40, std::vector<TokenId>(40, 1), false), run(1, 1, {}, true)});
  EXPECT_EQ(used.size(), 41U);
  std::int64_t spans = 0, tokens = 0;
  for (const Span& span : timeline_.take()) {
    spans += 1;
    tokens += span.tokens;
  }
  EXPECT_EQ(tokens, 41);
  EXPECT_EQ(spans, 3) << "16 + 16 + 9";
}

}  // namespace
}  // namespace stagecoach
