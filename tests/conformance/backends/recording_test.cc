// Ops that are recorded and replayed leave what they leave when they are queued.
#include <atomic>
#include <thread>

#include "conformance/backends/backend_test.h"

namespace stagecoach {
namespace {

class Recordings : public BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (!IsSkipped() && !backend().records()) GTEST_SKIP() << "this backend records nothing";
  }
  // y = rms norm of x, of one row.
  NormArgs norm(const Buffer& x, const Buffer& weight, const Buffer& y) {
    return {.x = x.f32(),
            .weight = weight.f32(),
            .bias = nullptr,
            .y = y.f32(),
            .rows = 1,
            .cols = x.bytes() / 4,
            .epsilon = 1e-5f,
            .kind = NormKind::kRmsNorm};
  }
};
STAGECOACH_EVERY_BACKEND(Recordings);

TEST_P(Recordings, ReplayWithWhatMemoryHoldsByThen) {
  constexpr std::int64_t kCols = 700;
  const Buffer weight = on_device(random(kCols)), x = on_device(random(kCols)),
               y = backend().allocate(kCols * 4), z = backend().allocate(kCols * 4);
  const std::unique_ptr<Recording> recording = backend().record([&] {
    backend().norm(norm(x, weight, y));
    backend().norm(norm(y, weight, z));
  });
  ASSERT_NE(recording, nullptr);
  EXPECT_EQ(floats_of(z), Floats(kCols)) << "recorded ops ran";
  for (int round = 0; round < 5; ++round) {
    const Floats fresh = random(kCols);
    backend().upload(x.data(), std::as_bytes(std::span(fresh)));
    ASSERT_TRUE(recording->replay());
    const Floats replayed = floats_of(z);
    backend().norm(norm(x, weight, y));
    backend().norm(norm(y, weight, z));
    ASSERT_EQ(replayed, floats_of(z)) << "round " << round;
  }
}

// Marks among recorded ops: the times are those of the latest replay.
TEST_P(Recordings, MarksAreSetAnew) {
  constexpr std::int64_t kCols = 64;
  const Buffer weight = on_device(random(kCols)), x = on_device(random(kCols)),
               y = backend().allocate(kCols * 4);
  EventPtr begin, end;
  const std::unique_ptr<Recording> recording = backend().record([&] {
    begin = backend().mark();
    backend().norm(norm(x, weight, y));
    end = backend().mark();
  });
  ASSERT_NE(recording, nullptr);
  std::int64_t reached = 0;
  for (int round = 0; round < 3; ++round) {
    const EventPtr before = backend().mark();
    ASSERT_TRUE(recording->replay());
    const EventPtr after = backend().mark();
    backend().synchronize();
    constexpr std::int64_t kResolution = 1000;  // ns: milliseconds between events are floats
    EXPECT_LE(reached, before->passed_ns() + kResolution);
    EXPECT_LE(before->passed_ns(), begin->passed_ns() + kResolution);
    EXPECT_LE(begin->passed_ns(), end->passed_ns());
    EXPECT_LE(end->passed_ns(), after->passed_ns() + kResolution);
    reached = after->passed_ns();
  }
}

// Attention's ops over one row, whose spans and pages are others each time.
class RecordedAttention : public Recordings {
 protected:
  static constexpr std::int64_t kHeads = 2, kDim = 32, kWidth = kHeads * kDim, kPages = 12;

  void SetUp() override {
    Recordings::SetUp();
    if (IsSkipped()) return;
    const std::int64_t page_bytes = kHeads * kv_head_bytes(KvType::kF32, kDim);
    for (std::int64_t i = 0; i < 2 * kPages; ++i)
      pages_.push_back(on_device(random(page_bytes / 4)));
    q_ = on_device(random(kWidth));
    k_ = on_device(random(kWidth));
    v_ = on_device(random(kWidth));
    out_ = backend().allocate(kWidth * 4);
  }

  void step() {
    backend().append_kv({.k = k_.f32(),
                         .v = v_.f32(),
                         .stride = kWidth,
                         .spans = spans_.data(),
                         .num_spans = 1,
                         .kv_type = KvType::kF32,
                         .kv_heads = kHeads,
                         .head_dim = kDim});
    backend().attention({.q = q_.f32(),
                         .q_stride = kWidth,
                         .out = out_.f32(),
                         .out_stride = kWidth,
                         .spans = spans_.data(),
                         .num_spans = 1,
                         .kv_type = KvType::kF32,
                         .heads = kHeads,
                         .kv_heads = kHeads,
                         .head_dim = kDim,
                         .scale = 0.2f});
  }
  void send(std::int64_t position) {
    keys_.clear();
    values_.clear();
    for (std::int64_t i = 0; i < kPages; ++i) {
      keys_.push_back(pages_[static_cast<std::size_t>((i + position) % kPages)].data());
      values_.push_back(pages_[static_cast<std::size_t>(kPages + (i + position) % kPages)].data());
    }
    spans_[0] = {.row = 0,
                 .rows = 1,
                 .position = position,
                 .key_pages = keys_.data(),
                 .value_pages = values_.data()};
    backend().send_spans(spans_);
  }
  Floats queued(std::int64_t position) {
    send(position);
    step();
    return floats_of(out_);
  }
  void clear() {
    const Floats none(kWidth);
    backend().upload(out_.data(), std::as_bytes(std::span(none)));
  }

  std::vector<Buffer> pages_;
  Buffer q_, k_, v_, out_;
  std::vector<std::byte*> keys_, values_;
  std::vector<KvSpan> spans_ = std::vector<KvSpan>(1);
};
STAGECOACH_EVERY_BACKEND(RecordedAttention);

TEST_P(RecordedAttention, ReadsTheSpansThatWereSentLast) {
  std::unique_ptr<Recording> recording;
  // All of one shape: two splits of keys.
  for (const std::int64_t position : {300, 301, 319, 320, 511, 257}) {
    const Floats expected = queued(position);
    if (recording == nullptr) recording = backend().record([&] { step(); });
    ASSERT_NE(recording, nullptr);
    clear();
    send(position);
    ASSERT_TRUE(recording->replay());
    ASSERT_EQ(floats_of(out_), expected) << "position " << position;
  }
}

// Memory that the backend's ops share grows for a batch of many pages. Where it may come to lie at
// the same address, a replay finds what it needs there.
TEST_P(RecordedAttention, IsNotReplayedFromWhereItsMemoryWas) {
  constexpr std::int64_t kPosition = 300;
  const Floats expected = queued(kPosition);
  const std::unique_ptr<Recording> recording = backend().record([&] { step(); });
  ASSERT_NE(recording, nullptr);
  ASSERT_TRUE(recording->replay());
  const std::vector<std::byte*> page(1, pages_[0].data());
  const std::vector<KvSpan> many(
      50'000,
      {.row = 0, .rows = 1, .position = 0, .key_pages = page.data(), .value_pages = page.data()});
  backend().send_spans(many);
  send(kPosition);
  clear();
  if (recording->replay()) {
    EXPECT_EQ(floats_of(out_), expected);
  }
}

// As of a launch that fails: the error is the op's, and the backend goes on.
TEST_P(Recordings, AnErrorAmongTheOpsIsTheirs) {
  constexpr std::int64_t kCols = 64;
  const Buffer weight = on_device(random(kCols)), x = on_device(random(kCols)),
               y = backend().allocate(kCols * 4);
  EXPECT_THROW(backend().record([&] {
    backend().norm(norm(x, weight, y));
    throw resource_error("no such op", "another");
  }),
               Error);
  EXPECT_TRUE(backend().records());
  const auto recording = backend().record([&] { backend().norm(norm(x, weight, y)); });
  ASSERT_NE(recording, nullptr);
  ASSERT_TRUE(recording->replay());
  EXPECT_NE(floats_of(y), Floats(kCols));
}

// What a graph cannot hold is queued op by op from then on.
TEST_P(Recordings, AreGivenUpWhereTheDeviceRefusesThem) {
  EXPECT_EQ(backend().record([&] { backend().synchronize(); }), nullptr);
  EXPECT_FALSE(backend().records());
  const Floats values = random(10);
  EXPECT_EQ(floats_of(on_device(values)), values);
}

// Copies of weights go on meanwhile, by another thread.
TEST_P(Recordings, DoNotMindCopiesOfAnotherThread) {
  constexpr std::int64_t kCols = 64;
  const Buffer weight = on_device(random(kCols)), x = on_device(random(kCols)),
               y = backend().allocate(kCols * 4), slot = backend().allocate(kCols * 4);
  const Floats values = random(kCols);
  const EventPtr cleared = backend().mark();
  std::atomic<bool> stop{false};
  std::thread copying([&] {
    do backend().copy_ahead(slot.data(), std::as_bytes(std::span(values)), cleared)->synchronize();
    while (!stop);
  });
  for (int round = 0; round < 20; ++round) {
    const auto recording = backend().record([&] {
      for (int i = 0; i < 10; ++i) backend().norm(norm(x, weight, y));
    });
    EXPECT_NE(recording, nullptr);
    if (recording != nullptr) {
      EXPECT_TRUE(recording->replay());
    }
  }
  stop = true;
  copying.join();
  EXPECT_EQ(floats_of(slot), values);
}

}  // namespace
}  // namespace stagecoach
