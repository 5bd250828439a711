#include <thread>

#include "conformance/backends/backend_test.h"

namespace stagecoach {
namespace {

class Elementwise : public BackendTest {};
STAGECOACH_EVERY_BACKEND(Elementwise);

TEST_P(Elementwise, MemoryIsZeroedAndComesBack) {
  const Buffer fresh = backend().allocate(1000);
  EXPECT_EQ(bytes_of(fresh), Bytes(1000));
  const Floats values = random(333);
  EXPECT_EQ(floats_of(on_device(values)), values);
}

// Any length at any address, more than is in flight at once, and from both kinds of memory.
TEST_P(Elementwise, UploadsReadMemoryWhileItIsTheirs) {
  constexpr std::int64_t kMost = 3 << 20;
  const Bytes zeros(kMost);
  Bytes bytes(kMost);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 251);
  Bytes locked = bytes;
  const std::shared_ptr<void> lock = backend().pin(locked);
  for (const std::int64_t count :
       {std::int64_t{1}, std::int64_t{16}, std::int64_t{4099}, kMost - 1})
    for (const std::int64_t offset : {0, 1}) {
      const Buffer plain = backend().allocate(kMost), pinned = backend().allocate(kMost);
      {
        Bytes source(bytes.begin(), bytes.begin() + count);
        backend().upload(plain.data() + offset, source);
        source.assign(source.size(), std::byte{0xee});
      }
      backend().upload(pinned.data() + offset, std::span(locked).first(count));
      Bytes expected = zeros;
      std::copy_n(bytes.begin(), count, expected.begin() + offset);
      ASSERT_TRUE(bytes_of(plain) == expected) << count << " bytes at " << offset;
      ASSERT_TRUE(bytes_of(pinned) == expected) << count << " bytes at " << offset;
      const Buffer copy = backend().allocate(kMost);
      backend().copy(copy.data(), {pinned.data(), static_cast<std::size_t>(offset + count)});
      ASSERT_TRUE(bytes_of(copy) == expected) << count << " bytes at " << offset;
    }
}

// Page-locked at both ends, and not between: the caller's again when upload returns.
TEST_P(Elementwise, MemoryThatIsLockedInPartsIsReadAtOnce) {
  constexpr std::size_t kPart = 4096;
  Bytes source(3 * kPart);
  for (std::size_t i = 0; i < source.size(); ++i)
    source[i] = static_cast<std::byte>(i * 7 + i / 251);
  const Bytes expected = source;
  const std::span<std::byte> all(source);
  const std::shared_ptr<void> first = backend().pin(all.first(kPart)),
                              last = backend().pin(all.last(kPart));
  const Buffer buffer = backend().allocate(static_cast<std::int64_t>(source.size()));
  backend().upload(buffer.data(), source);
  source.assign(source.size(), std::byte{0xee});
  EXPECT_TRUE(bytes_of(buffer) == expected);
}

// A lock may be held by what lives longer, and given up by another thread.
TEST_P(Elementwise, LocksMayOutliveTheBackend) {
  Bytes memory(10'000);
  std::shared_ptr<void> lock = backend().pin(memory);
  backend_.reset();
  std::thread([&] { lock.reset(); }).join();
  SetUp();
  lock = backend().pin(memory);
  EXPECT_EQ(lock != nullptr, is_gpu()) << "it was locked still";
}

TEST_P(Elementwise, CopiesGoAheadAndOpsWaitForThem) {
  // Two slots that a chain of copies and ops takes turns with.
  constexpr std::int64_t kCount = 5000, kRounds = 12;
  Buffer slots[2] = {backend().allocate(kCount * 4), backend().allocate(kCount * 4)};
  Buffer sum = backend().allocate(kCount * 4), normed = backend().allocate(kCount * 4);
  const Buffer ones = on_device(Floats(kCount, 1.0f));
  std::vector<Floats> host;
  for (std::int64_t i = 0; i < kRounds; ++i) host.push_back(random(kCount));
  std::vector<std::shared_ptr<void>> pinned;
  for (Floats& values : host)
    pinned.push_back(backend().pin(std::as_writable_bytes(std::span(values))));
  // Memory is zeroed in the order of ops.
  EventPtr used[2] = {backend().mark(), backend().mark()};
  for (std::size_t i = 0; i < kRounds; ++i) {
    Buffer& slot = slots[i % 2];
    const EventPtr copied =
        backend().copy_ahead(slot.data(), std::as_bytes(std::span(host[i])), used[i % 2]);
    backend().wait_for(copied);
    backend().activation({.x = slot.f32(),
                          .up = ones.f32(),
                          .y = normed.f32(),
                          .count = kCount,
                          .kind = Activation::kRelu});
    const std::int32_t row = 0;
    backend().gather_rows({.data = normed.data(),
                           .type = DType::kF32,
                           .layout = Layout::kRows,
                           .rows = 1,
                           .cols = kCount},
                          {&row, 1}, sum.f32(), true);
    used[i % 2] = backend().mark();
  }
  const Floats result = floats_of(sum);
  for (std::size_t k = 0; k < kCount; ++k) {
    float expected = 0.0f;
    for (const Floats& values : host) expected += std::max(values[k], 0.0f);
    ASSERT_EQ(result[k], expected) << k;
  }
  std::int64_t before = 0;
  for (const EventPtr& event : used)
    if (event != nullptr) {
      EXPECT_GE(event->passed_ns(), before);
      before = event->passed_ns();
    }
}

TEST_P(Elementwise, GathersRowsOfEveryTypeAndLayout) {
  constexpr std::int64_t kRows = 37, kCols = 77;
  const Floats source = random(kRows * kCols);
  const std::vector<std::int32_t> ids{36, 0, 17, 17, 5, 16};
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4})
    for (const Layout layout : {Layout::kRows, matrix_layout(type)}) {
      if (!layout_holds(layout, type)) continue;
      Bytes packed(static_cast<std::size_t>(layout_bytes(layout, type, kRows, kCols)));
      pack_rows(layout, type, source.data(), kRows, kCols, packed.data());
      const Buffer table = on_device(packed);
      const Floats old = random(static_cast<std::int64_t>(ids.size()) * kCols);
      for (const bool accumulate : {false, true}) {
        const Buffer out = on_device(old);
        backend().gather_rows(
            {.data = table.data(), .type = type, .layout = layout, .rows = kRows, .cols = kCols},
            ids, out.f32(), accumulate);
        const Floats result = floats_of(out);
        Floats row(kCols);
        for (std::size_t i = 0; i < ids.size(); ++i) {
          unpack_rows(layout, type, packed.data(), kCols, ids[i], 1, row.data());
          for (std::size_t k = 0; k < kCols; ++k)
            ASSERT_EQ(result[i * kCols + k], accumulate ? old[i * kCols + k] + row[k] : row[k]);
        }
      }
    }
}

// Tables of row ids go through a ring of memory: each of these fills most of a segment, there are
// more of them than segments, and nobody waits.
TEST_P(Elementwise, TablesOfManyOpsDoNotMix) {
  constexpr std::int64_t kRows = 997, kIds = 50'000, kOps = 10;
  const Floats source = random(kRows);
  const Buffer table = on_device(source);
  std::vector<Buffer> results;
  std::vector<std::vector<std::int32_t>> ids(kOps);
  for (auto& some : ids) {
    for (std::int64_t i = 0; i < kIds; ++i)
      some.push_back(static_cast<std::int32_t>(uniform(0, kRows - 1)));
    results.push_back(backend().allocate(kIds * 4));
  }
  for (std::size_t op = 0; op < kOps; ++op)
    backend().gather_rows({.data = table.data(),
                           .type = DType::kF32,
                           .layout = Layout::kRows,
                           .rows = kRows,
                           .cols = 1},
                          ids[op], results[op].f32(), false);
  for (std::size_t op = 0; op < kOps; ++op) {
    const Floats result = floats_of(results[op]);
    for (std::size_t i = 0; i < kIds; ++i)
      ASSERT_EQ(result[i], source[static_cast<std::size_t>(ids[op][i])]) << "op " << op;
  }
}

TEST_P(Elementwise, PacksInputsBitForBit) {
  constexpr std::int64_t kRows = 3, kStride = 130;
  for (const std::int64_t cols : {1, 31, 32, 77, 129}) {
    Floats x = random(kRows * kStride, 3.0f);
    x[0] = 1e6f;                                      // saturates f16
    x[static_cast<std::size_t>(kStride)] = INFINITY;  // poisons a group
    for (std::int64_t k = 0; k < std::min<std::int64_t>(cols, 32); ++k)
      x[static_cast<std::size_t>(2 * kStride + k)] = 1e-35f;  // too small for a scale
    const Buffer device_x = on_device(x);
    for (const InputType type :
         {InputType::kF32, InputType::kBF16, InputType::kInt8, InputType::kF16}) {
      if (type == InputType::kF16 && !is_gpu()) continue;  // of GPUs only
      const std::int64_t stride = packed_row_stride(type, cols);
      Bytes expected(static_cast<std::size_t>(kRows * stride));
      PackInputArgs args{.x = x.data(),
                         .x_stride = kStride,
                         .packed = expected.data(),
                         .rows = kRows,
                         .cols = cols,
                         .type = type};
      reference_kernels().pack_input(args, 0, kRows);
      const Buffer packed = backend().allocate(kRows * stride);
      args.x = device_x.f32();
      args.packed = packed.data();
      backend().pack_input(args);
      const Bytes result = bytes_of(packed);
      for (std::int64_t row = 0; row < kRows; ++row)
        for (std::int64_t k = 0; k < cols; ++k) {
          const auto at = static_cast<std::size_t>(row * stride);
          if (type == InputType::kInt8) {
            const auto* a = reinterpret_cast<const InputGroup*>(&expected[at]) + k / kGroupCols;
            const auto* b = reinterpret_cast<const InputGroup*>(&result[at]) + k / kGroupCols;
            ASSERT_TRUE(a->scale == b->scale || (std::isnan(a->scale) && std::isnan(b->scale)));
            ASSERT_EQ(a->minus_8_sum, b->minus_8_sum);
            ASSERT_EQ(a->quant[k % kGroupCols], b->quant[k % kGroupCols]);
          } else {
            const std::size_t width = type == InputType::kF32 ? 4 : 2;
            const auto element = at + static_cast<std::size_t>(k) * width;
            ASSERT_EQ(std::memcmp(&expected[element], &result[element], width), 0)
                << "row " << row << " column " << k << " type " << static_cast<int>(type);
          }
        }
    }
  }
}

TEST_P(Elementwise, NormsAgree) {
  for (const std::int64_t cols : {1, 7, 64, 512, 513, 2000})
    for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm})
      for (const bool with_bias : {false, true}) {
        constexpr std::int64_t kRows = 11;
        Floats x = random(kRows * cols);
        for (std::int64_t i = 0; i < cols; ++i) x[static_cast<std::size_t>(i)] += 100.0f;
        const Floats weight = random(cols), bias = random(cols);
        Floats expected(x.size());
        NormArgs args{.x = x.data(),
                      .weight = weight.data(),
                      .bias = with_bias ? bias.data() : nullptr,
                      .y = expected.data(),
                      .rows = kRows,
                      .cols = cols,
                      .epsilon = 1e-5f,
                      .kind = kind};
        reference_kernels().norm(args, 0, kRows);
        const Buffer device_x = on_device(x), device_weight = on_device(weight),
                     device_bias = on_device(bias);
        args.x = device_x.f32();
        args.y = device_x.f32();  // in place
        args.weight = device_weight.f32();
        args.bias = with_bias ? device_bias.f32() : nullptr;
        backend().norm(args);
        const Floats result = floats_of(device_x);
        for (std::size_t i = 0; i < result.size(); ++i) {
          // The mean of values around 100 is off by some roundings of 100, relative to a spread
          // of about 1 (of a single column: to sqrt(epsilon)).
          const double spread = cols == 1 ? std::sqrt(1e-5) : 0.5;
          const double off = 400.0 / spread * std::abs(weight[i % static_cast<std::size_t>(cols)]);
          const double tolerance = kRoundoff * (64.0 * std::abs(expected[i]) + off);
          ASSERT_NEAR(result[i], expected[i], tolerance) << cols << " columns, element " << i;
        }
      }
}

// Two ops in one leave the bits that they leave one after the other.
TEST_P(Elementwise, NormsAndActivationsPackWhatTheyWouldWrite) {
  constexpr std::int64_t kRows = 11;
  for (const std::int64_t cols : {1, 31, 64, 77, 512, 513, 2001})
    for (const InputType type :
         {InputType::kF32, InputType::kBF16, InputType::kInt8, InputType::kF16}) {
      if (type == InputType::kF16 && !is_gpu()) continue;  // of GPUs only
      SCOPED_TRACE(std::to_string(cols) + " columns, type " +
                   std::to_string(static_cast<int>(type)));
      Floats x = random(kRows * cols, 3.0f);
      x[static_cast<std::size_t>(cols)] = INFINITY;  // poisons a row
      const Buffer device_x = on_device(x), weight = on_device(random(cols)),
                   bias = on_device(random(cols)), up = on_device(random(kRows * cols));
      const std::int64_t packed_bytes = kRows * packed_row_stride(type, cols);
      const Buffer y = backend().allocate(kRows * cols * 4), same_y = on_device(x),
                   packed = backend().allocate(packed_bytes),
                   same_packed = backend().allocate(packed_bytes);
      const auto pack = [&](const Buffer& from, const Buffer& to) {
        return PackInputArgs{.x = from.f32(),
                             .x_stride = cols,
                             .packed = to.data(),
                             .rows = kRows,
                             .cols = cols,
                             .type = type};
      };
      for (const bool with_bias : {false, true})
        for (const Backend::Unpacked unpacked :
             {Backend::Unpacked::kKept, Backend::Unpacked::kNotRead}) {
          NormArgs args{.x = device_x.f32(),
                        .weight = weight.f32(),
                        .bias = with_bias ? bias.f32() : nullptr,
                        .y = y.f32(),
                        .rows = kRows,
                        .cols = cols,
                        .epsilon = 1e-5f,
                        .kind = with_bias ? NormKind::kLayerNorm : NormKind::kRmsNorm};
          backend().norm(args);
          backend().pack_input(pack(y, packed));
          args.y = same_y.f32();
          backend().norm_and_pack(args, pack(same_y, same_packed), unpacked);
          ASSERT_EQ(bytes_of(packed), bytes_of(same_packed));
          if (unpacked == Backend::Unpacked::kKept) {
            ASSERT_EQ(bytes_of(y), bytes_of(same_y));
          }
        }
      for (const Activation kind :
           {Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu, Activation::kSilu})
        for (const bool gated : {false, true}) {
          ActivationArgs args{.x = device_x.f32(),
                              .up = gated ? up.f32() : nullptr,
                              .y = y.f32(),
                              .count = kRows * cols,
                              .kind = kind};
          backend().activation(args);
          backend().pack_input(pack(y, packed));
          const Buffer in_place = on_device(x);
          args.x = args.y = in_place.f32();
          backend().activation_and_pack(args, pack(in_place, same_packed));
          ASSERT_EQ(bytes_of(packed), bytes_of(same_packed));
        }
    }
}

TEST_P(Elementwise, RotaryAgrees) {
  constexpr std::int64_t kRows = 9, kHeads = 3, kHeadDim = 24, kStride = 80;
  for (const std::int64_t rotary_dim : {2, 8, 24}) {
    const std::int64_t half = rotary_dim / 2;
    Floats inv_freq;
    for (std::int64_t i = 0; i < half; ++i)
      inv_freq.push_back(
          std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(rotary_dim)));
    std::vector<std::int64_t> positions;
    for (std::int64_t r = 0; r < kRows; ++r) positions.push_back(r * 977);
    Floats cos(static_cast<std::size_t>(kRows * half)), sin(cos.size());
    rotary_table(positions.data(), kRows, inv_freq.data(), half, cos.data(), sin.data());
    const Buffer device_cos = backend().allocate(kRows * half * 4),
                 device_sin = backend().allocate(kRows * half * 4);
    backend().rotary_table(positions, inv_freq, device_cos.f32(), device_sin.f32());
    EXPECT_EQ(floats_of(device_cos), cos);
    EXPECT_EQ(floats_of(device_sin), sin);
    Floats x = random(kRows * kStride);
    const Buffer device_x = on_device(x);
    RotaryArgs args{.x = x.data(),
                    .x_stride = kStride,
                    .cos = cos.data(),
                    .sin = sin.data(),
                    .rows = kRows,
                    .heads = kHeads,
                    .head_dim = kHeadDim,
                    .rotary_dim = rotary_dim};
    reference_kernels().rotary(args, 0, kRows);
    args.x = device_x.f32();
    args.cos = device_cos.f32();
    args.sin = device_sin.f32();
    backend().rotary(args);
    const Floats result = floats_of(device_x);
    for (std::size_t i = 0; i < x.size(); ++i)
      ASSERT_NEAR(result[i], x[i], 4 * kRoundoff * (2.0 + std::abs(x[i])));
  }
}

TEST_P(Elementwise, ActivationsAgree) {
  constexpr std::int64_t kCount = 1037;
  Floats x = random(kCount, 4.0f);
  x[0] = 90.0f;
  x[1] = -90.0f;
  x[2] = 0.0f;
  const Floats up = random(kCount);
  const Buffer device_up = on_device(up);
  for (const Activation kind :
       {Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu, Activation::kSilu})
    for (const bool gated : {false, true}) {
      Floats expected(kCount);
      ActivationArgs args{.x = x.data(),
                          .up = gated ? up.data() : nullptr,
                          .y = expected.data(),
                          .count = kCount,
                          .kind = kind};
      reference_kernels().activation(args, 0, kCount);
      const Buffer device_x = on_device(x);
      args.x = args.y = device_x.f32();
      args.y = device_x.f32();
      args.up = gated ? device_up.f32() : nullptr;
      backend().activation(args);
      const Floats result = floats_of(device_x);
      for (std::size_t i = 0; i < kCount; ++i) {
        // GELU's sum 1 + tanh loses what is below a rounding of 1, times x and the gate.
        const double size = std::abs(x[i]) * (gated ? std::abs(up[i]) : 1.0f);
        ASSERT_NEAR(result[i], expected[i], 16 * kRoundoff * (size + 1e-3))
            << static_cast<int>(kind) << " of " << x[i];
      }
    }
}

}  // namespace
}  // namespace stagecoach
