#include "backend/cpu/cpu_backend.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/include/pack.h"

namespace stagecoach {
namespace {

using Floats = std::vector<float>;

// Sets an environment variable and puts the old value back.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old, had_ = true;
    ::setenv(name, value, 1);
  }
  ~ScopedVariable() {
    if (had_)
      ::setenv(name_, old_.c_str(), 1);
    else
      ::unsetenv(name_);
  }

 private:
  const char* name_;
  std::string old_;
  bool had_ = false;
};

Floats random_floats(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Floats values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

std::vector<std::byte> packed(Layout layout, DType type, const Floats& values, std::int64_t rows,
                              std::int64_t cols) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(layout_bytes(layout, type, rows, cols)));
  pack_rows(layout, type, values.data(), rows, cols, bytes.data());
  return bytes;
}

TEST(CpuBackend, AllocatesZeroedAlignedMemoryOfAnySize) {
  const auto backend = make_cpu_backend({});
  for (const std::int64_t bytes : {0, 1, 63, 4097, 1 << 20, (5 << 20) + 1}) {
    const Buffer buffer = backend->allocate(bytes);
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0u);
    for (std::int64_t i = 0; i < bytes; ++i) ASSERT_EQ(buffer.data()[i], std::byte{0});
    if (bytes > 0) std::memset(buffer.data(), 1, static_cast<std::size_t>(bytes));
  }
}

TEST(CpuBackend, AllocationBeyondTheMachineIsAResourceError) {
  const auto backend = make_cpu_backend({});
  try {
    backend->allocate(std::int64_t{1} << 60);
    FAIL() << "allocated an exbibyte";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResources);
  }
}

TEST(CpuBackend, UploadsAndDownloads) {
  const auto backend = make_cpu_backend({});
  const Floats source = random_floats(100, 1);
  const Buffer buffer = backend->allocate(400);
  backend->upload(buffer.data(), std::as_bytes(std::span(source)));
  Floats back(100);
  backend->download(std::as_writable_bytes(std::span(back)), buffer.data());
  EXPECT_EQ(back, source);
}

TEST(CpuBackend, GathersRowsFromEveryLayoutAndType) {
  const std::int64_t rows = 50, cols = 21;
  const Floats table = random_floats(rows * cols, 2);
  const std::int32_t ids[] = {0, 49, 17, 17, 16, 15, 48};
  for (const int threads : {1, 3})
    for (const Layout layout : {Layout::kRows, Layout::kPanels16})
      for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
        for (const bool accumulate : {false, true}) {
          const auto backend = make_cpu_backend({.threads = threads, .isa = {}});
          const std::vector<std::byte> bytes = packed(layout, type, table, rows, cols);
          Floats out = random_floats(7 * cols, 3);
          const Floats old = out;
          backend->gather_rows(
              {.data = bytes.data(), .type = type, .layout = layout, .rows = rows, .cols = cols},
              ids, out.data(), accumulate);
          for (std::size_t i = 0; i < 7; ++i)
            for (std::size_t k = 0; k < static_cast<std::size_t>(cols); ++k) {
              const float value = table[static_cast<std::size_t>(ids[i] * cols) + k];
              const float stored = type == DType::kF32   ? value
                                   : type == DType::kF16 ? f16_to_f32(f32_to_f16(value))
                                                         : bf16_to_f32(f32_to_bf16(value));
              const std::size_t at = i * static_cast<std::size_t>(cols) + k;
              ASSERT_EQ(out[at], accumulate ? old[at] + stored : stored);
            }
        }
}

// Every op on shapes large enough to be split, on one thread and on several.
struct PassResult {
  Floats product, few_rows, normed, rotated, attended, activated;
  bool operator==(const PassResult&) const = default;
};

PassResult run_pass(const std::string& isa, int threads) {
  constexpr std::int64_t kRows = 210, kIn = 256, kOut = 520, kHeads = 8, kHeadDim = 32;
  const auto backend = make_cpu_backend({.threads = threads, .isa = isa});
  const Floats x = random_floats(kRows * kIn, 4), bias = random_floats(kOut, 5);
  const std::vector<std::byte> weight =
      packed(Layout::kPanels16, DType::kF16, random_floats(kOut * kIn, 6), kOut, kIn);
  PassResult r;
  MatmulArgs matmul = {.x = f32_rows(x.data(), kIn),
                       .weight = weight.data(),
                       .weight_type = DType::kF16,
                       .bias = bias.data(),
                       .y = nullptr,
                       .y_stride = kOut,
                       .rows = kRows,
                       .in = kIn,
                       .out = kOut,
                       .accumulate = false};
  r.product.resize(kRows * kOut);
  matmul.y = r.product.data();
  backend->matmul(matmul);
  r.few_rows.resize(2 * kOut);
  matmul.y = r.few_rows.data();
  matmul.rows = 2;
  backend->matmul(matmul);

  r.normed.resize(x.size());
  backend->norm({.x = x.data(),
                 .weight = x.data(),
                 .bias = nullptr,
                 .y = r.normed.data(),
                 .rows = kRows,
                 .cols = kIn,
                 .epsilon = 1e-5f,
                 .kind = NormKind::kLayerNorm});

  std::vector<std::int64_t> positions(kRows);
  for (std::int64_t i = 0; i < kRows; ++i) positions[static_cast<std::size_t>(i)] = i;
  const Floats inv_freq(kHeadDim / 2, 0.01f);
  Floats cos(kRows * kHeadDim / 2), sin(cos.size());
  backend->rotary_table(positions, inv_freq, cos.data(), sin.data());
  r.rotated = x;
  backend->rotary({.x = r.rotated.data(),
                   .x_stride = kIn,
                   .cos = cos.data(),
                   .sin = sin.data(),
                   .rows = kRows,
                   .heads = kHeads,
                   .head_dim = kHeadDim,
                   .rotary_dim = kHeadDim});

  std::vector<Floats> pages(8, Floats(kKvPageTokens * kIn));
  std::vector<std::byte*> keys, values;
  for (std::size_t page = 0; page < 4; ++page) {
    keys.push_back(reinterpret_cast<std::byte*>(pages[page].data()));
    values.push_back(reinterpret_cast<std::byte*>(pages[page + 4].data()));
  }
  const KvSpan span = {.row = 0,
                       .rows = kRows,
                       .position = 0,
                       .key_pages = keys.data(),
                       .value_pages = values.data()};
  backend->append_kv({.k = x.data(),
                      .v = r.normed.data(),
                      .stride = kIn,
                      .spans = &span,
                      .num_spans = 1,
                      .kv_type = KvType::kF32,
                      .kv_heads = kHeads,
                      .head_dim = kHeadDim});
  r.attended.resize(x.size());
  backend->attention({.q = r.rotated.data(),
                      .q_stride = kIn,
                      .out = r.attended.data(),
                      .out_stride = kIn,
                      .spans = &span,
                      .num_spans = 1,
                      .kv_type = KvType::kF32,
                      .heads = kHeads,
                      .kv_heads = kHeads,
                      .head_dim = kHeadDim,
                      .scale = 0.2f});
  r.activated.resize(r.product.size());
  backend->activation({.x = r.product.data(),
                       .up = nullptr,
                       .y = r.activated.data(),
                       .count = static_cast<std::int64_t>(r.product.size()) - 3,
                       .kind = Activation::kSilu});
  return r;
}

TEST(CpuBackend, ThreadsChangeNoBit) {
  const IsaList isas = supported_isas();
  for (int i = 0; i < isas.count; ++i) {
    const PassResult one = run_pass(isas.names[i], 1);
    EXPECT_TRUE(std::equal(one.few_rows.begin(), one.few_rows.end(), one.product.begin()));
    for (const int threads : {2, 3, 8})
      EXPECT_TRUE(run_pass(isas.names[i], threads) == one)
          << isas.names[i] << ", " << threads << " threads";
  }
}

TEST(CpuBackend, InstructionSetByOptionThenVariableThenBest) {
  const IsaList isas = supported_isas();
  const ScopedVariable variable("STAGECOACH_ISA", "scalar");
  EXPECT_EQ(make_cpu_backend({})->isa(), "scalar");
  EXPECT_EQ(make_cpu_backend({.threads = 1, .isa = isas.names[0]})->isa(), isas.names[0]);
  const ScopedVariable empty("STAGECOACH_ISA", "");
  EXPECT_EQ(make_cpu_backend({})->isa(), isas.names[0]);
}

TEST(CpuBackend, UnknownInstructionSetIsAUsageErrorThatListsWhatRuns) {
  const auto expect_refused = [](const BackendOptions& options) {
    try {
      make_cpu_backend(options);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find("avx1024"), std::string::npos);
      EXPECT_NE(std::string(error.what()).find("scalar"), std::string::npos);
      EXPECT_FALSE(error.hint().empty());
    }
  };
  expect_refused({.threads = 1, .isa = "avx1024"});
  const ScopedVariable variable("STAGECOACH_ISA", "avx1024");
  expect_refused({});
}

TEST(CpuBackend, RefusesZeroThreads) {
  EXPECT_THROW(make_cpu_backend({.threads = 0, .isa = {}}), Error);
}

TEST(AllowedCpus, FollowsTheAffinityMask) {
  EXPECT_GE(allowed_cpus(), 1);
  cpu_set_t old, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof old, &old), 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &old)) {
      CPU_SET(cpu, &one);
      break;
    }
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(allowed_cpus(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof old, &old), 0);
}

TEST(OwnCpus, AreDisjointAndOnlyWhereTheyAddUp) {
  cpu_set_t old;
  ASSERT_EQ(sched_getaffinity(0, sizeof old, &old), 0);
  const int all = CPU_COUNT(&old);
  if (allowed_cpus() < all) GTEST_SKIP() << "a quota leaves less than the mask";
  EXPECT_EQ(own_cpus(all, 0, 1).size(), static_cast<std::size_t>(all));
  EXPECT_TRUE(own_cpus(all + 1, 0, 1).empty());
  EXPECT_TRUE(own_cpus(all, 0, 2).empty());
  std::set<int> seen;
  for (int rank = 0; rank < all; ++rank)
    for (const int cpu : own_cpus(1, rank, all)) {
      EXPECT_TRUE(CPU_ISSET(cpu, &old));
      EXPECT_TRUE(seen.insert(cpu).second) << "processor " << cpu << " twice";
    }
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(all));
}

}  // namespace
}  // namespace stagecoach
