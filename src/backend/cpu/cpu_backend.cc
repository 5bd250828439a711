#include "backend/cpu/cpu_backend.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "backend/cpu/cpu_memory.h"
#include "backend/cpu/thread_pool.h"
#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kCacheLineFloats = 16;
// Elements below which an elementwise op is not worth waking a thread.
constexpr std::int64_t kMinElements = 16 * 1024;

// Panels whose partial sums, 12 KiB each in the widest kernels, leave room in a core's L2 for the
// block of x that they share.
std::int64_t chunk_panels() {
  constexpr std::int64_t kLargeL2 = 1 << 20;
  const std::int64_t l2 = ::sysconf(_SC_LEVEL2_CACHE_SIZE);  // 0 or -1 where it is not known
  return l2 >= kLargeL2 ? kMostChunkPanels : l2 >= kLargeL2 / 2 ? kMostChunkPanels / 2 : 8;
}

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const KernelTable& kernels, const BackendOptions& options)
      : kernels_(kernels), pool_(options.threads, options.cpus) {}

  std::string name() const override { return "cpu"; }
  std::string isa() const override { return kernels_.isa; }
  int threads() const override { return pool_.threads(); }

  Buffer allocate(std::int64_t bytes) override {
    return Buffer(this, allocate_zeroed(bytes), bytes);
  }
  void upload(std::byte* device, std::span<const std::byte> host) override {
    if (!host.empty()) std::memcpy(device, host.data(), host.size());
  }
  void download(std::span<std::byte> host, const std::byte* device) override {
    if (!host.empty()) std::memcpy(host.data(), device, host.size());
  }
  void copy(std::byte* to, std::span<const std::byte> from) override { upload(to, from); }
  void synchronize() override {}

  bool is_host() const override { return true; }
  std::int64_t free_bytes() const override { return 0; }
  int sharers() const override { return 1; }
  void use() override {}
  std::shared_ptr<void> pin(std::span<std::byte>) override { return nullptr; }
  EventPtr copy_ahead(std::byte* device, std::span<const std::byte> host,
                      const EventPtr&) override {
    upload(device, host);
    return nullptr;
  }
  EventPtr mark() override { return nullptr; }  // ops are done when they return
  void wait_for(const EventPtr&) override {}
  void send_spans(std::span<const KvSpan>) override {}

  void gather_rows(const TensorView& table, std::span<const std::int32_t> ids, float* out,
                   bool accumulate) override;
  bool multiplies(InputType input, DType weights) const override {
    switch (input) {
      case InputType::kF32:
        return true;
      case InputType::kBF16:
        return kernels_.matmul_bf16 != nullptr &&
               (is_quantized(weights) || weights == DType::kBF16);
      case InputType::kInt8:
        return is_quantized(weights);
      case InputType::kF16:
        return false;
    }
    return false;
  }
  void pack_input(const PackInputArgs& args) override {
    pool_.parallel_for(
        args.rows, rows_per_chunk(args.rows, args.cols),
        [&](std::int64_t begin, std::int64_t end) { kernels_.pack_input(args, begin, end); });
  }
  void matmul(const MatmulArgs& args) override { matmuls({&args, 1}); }
  void matmuls(std::span<const MatmulArgs> products) override;

  void norm(const NormArgs& args) override {
    pool_.parallel_for(
        args.rows, rows_per_chunk(args.rows, args.cols),
        [&](std::int64_t begin, std::int64_t end) { kernels_.norm(args, begin, end); });
  }
  void rotary(const RotaryArgs& args) override {
    pool_.parallel_for(
        args.rows, rows_per_chunk(args.rows, args.heads * args.rotary_dim),
        [&](std::int64_t begin, std::int64_t end) { kernels_.rotary(args, begin, end); });
  }
  void append_kv(const AppendKvArgs& args) override {
    std::int64_t rows = 0;
    for (std::int64_t s = 0; s < args.num_spans; ++s) rows += args.spans[s].rows;
    pool_.parallel_for(
        args.kv_heads, rows_per_chunk(args.kv_heads, rows * args.head_dim),
        [&](std::int64_t begin, std::int64_t end) { kernels_.append_kv(args, begin, end); });
  }
  void attention(const AttentionArgs& args) override;
  void activation(const ActivationArgs& args) override {
    // Chunks end on cache lines, so that no two threads write one.
    const std::int64_t lines = divide_up(args.count, kCacheLineFloats);
    pool_.parallel_for(lines, rows_per_chunk(lines, kCacheLineFloats),
                       [&](std::int64_t begin, std::int64_t end) {
                         kernels_.activation(args, begin * kCacheLineFloats,
                                             std::min(end * kCacheLineFloats, args.count));
                       });
  }
  void rotary_table(std::span<const std::int64_t> positions, std::span<const float> inv_freq,
                    float* cos, float* sin) override {
    stagecoach::rotary_table(positions.data(), static_cast<std::int64_t>(positions.size()),
                             inv_freq.data(), static_cast<std::int64_t>(inv_freq.size()), cos, sin);
  }

 protected:
  void free(std::byte* data, std::int64_t bytes) override { free_zeroed(data, bytes); }

 private:
  // How a product is shared out: groups of panels, large ones first, for blocks of rows.
  struct Pieces {
    std::int64_t panels = 0, group = 0;
    std::int64_t large = 0, small = 0;  // how many large groups, panels of the others
    std::int64_t groups = 0;
    std::int64_t rows = 0;   // of a block
    std::int64_t count = 0;  // groups · blocks
  };
  Pieces pieces_of(const MatmulArgs& args) const;
  void multiply_piece(const MatmulArgs& args, const Pieces& pieces, std::int64_t i);
  // About four chunks a thread, so that a thread that was descheduled holds up little; never so
  // small that handing a chunk out costs more than computing it.
  std::int64_t rows_per_chunk(std::int64_t rows, std::int64_t elements_per_row) const {
    const std::int64_t even = divide_up(rows, 4 * static_cast<std::int64_t>(threads()));
    const std::int64_t worthwhile =
        divide_up(kMinElements, std::max<std::int64_t>(elements_per_row, 1));
    return std::max<std::int64_t>({even, worthwhile, 1});
  }

  const KernelTable& kernels_;
  const std::int64_t chunk_panels_ = chunk_panels();
  ThreadPool pool_;
};

void CpuBackend::gather_rows(const TensorView& table, std::span<const std::int32_t> ids, float* out,
                             bool accumulate) {
  const auto count = static_cast<std::int64_t>(ids.size());
  const std::int64_t cols = table.cols;
  pool_.parallel_for(count, rows_per_chunk(count, cols), [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> row(accumulate ? static_cast<std::size_t>(cols) : 0);
    for (std::int64_t i = begin; i < end; ++i) {
      float* const target = out + i * cols;
      unpack_rows(table.layout, table.type, table.data, cols, ids[static_cast<std::size_t>(i)], 1,
                  accumulate ? row.data() : target);
      if (!accumulate) continue;
      for (std::int64_t k = 0; k < cols; ++k) target[k] += row[static_cast<std::size_t>(k)];
    }
  });
}

// Groups of panels: few for a few rows, whose weights all threads read; as many as share a block of
// x in L2 for more, but enough groups for the threads. Where there are too few of them
// nevertheless, rows are split too; they are independent.
CpuBackend::Pieces CpuBackend::pieces_of(const MatmulArgs& args) const {
  constexpr std::int64_t kRowBlock = 48, kSmallGroup = 8;
  Pieces pieces;
  pieces.panels = divide_up(args.out, kPanelRows);
  const std::int64_t wanted = 4 * static_cast<std::int64_t>(threads());
  std::int64_t& group = pieces.group;
  group = kSmallGroup;
  if (args.rows <= kRowBlock)
    group = pieces.panels < kSmallGroup * wanted ? kSmallGroup / 2 : kSmallGroup;
  else
    while (2 * group <= chunk_panels_ && divide_up(pieces.panels, 2 * group) >= wanted) group *= 2;
  // The last large groups are handed out in small ones: no thread waits long for another's last.
  pieces.large = group > kSmallGroup ? pieces.panels / group - threads() : 0;
  pieces.small = std::min(group, kSmallGroup);
  pieces.groups = pieces.large + divide_up(pieces.panels - pieces.large * group, pieces.small);
  const std::int64_t row_blocks =
      pieces.groups >= wanted
          ? 1
          : std::min(divide_up(args.rows, kRowBlock), divide_up(wanted, pieces.groups));
  pieces.rows = divide_up(divide_up(args.rows, row_blocks), kRowBlock) * kRowBlock;
  pieces.count = pieces.groups * row_blocks;
  return pieces;
}

void CpuBackend::multiply_piece(const MatmulArgs& args, const Pieces& pieces, std::int64_t i) {
  const std::int64_t first = i / pieces.groups * pieces.rows;
  if (first >= args.rows) return;
  MatmulArgs part = args;
  part.x.data += first * args.x.stride;
  part.y += first * args.y_stride;
  part.rows = std::min(pieces.rows, args.rows - first);
  const std::int64_t g = i % pieces.groups;
  const bool large = g < pieces.large;
  const std::int64_t panel =
      large ? g * pieces.group : pieces.large * pieces.group + (g - pieces.large) * pieces.small;
  kernels_.matmul(part, panel,
                  std::min(panel + (large ? pieces.group : pieces.small), pieces.panels));
}

// Threads wait for each other once.
void CpuBackend::matmuls(std::span<const MatmulArgs> products) {
  if (products.front().rows == 0) return;
  std::vector<Pieces> all;
  std::int64_t count = 0;
  for (const MatmulArgs& product : products) count += all.emplace_back(pieces_of(product)).count;
  pool_.parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::int64_t piece = i;
      std::size_t p = 0;
      for (; piece >= all[p].count; ++p) piece -= all[p].count;
      multiply_piece(products[p], all[p], piece);
    }
  });
}

void CpuBackend::attention(const AttentionArgs& args) {
  // Heads that share keys stay together in decode, where they read them once, if that leaves
  // enough for all threads.
  const std::int64_t shared = args.heads / args.kv_heads;
  const bool decode = std::all_of(args.spans, args.spans + args.num_spans,
                                  [](const KvSpan& span) { return span.rows == 1; });
  const std::int64_t chunk = decode && args.kv_heads >= threads() ? shared : 1;
  pool_.parallel_for(args.heads, chunk, [&](std::int64_t begin, std::int64_t end) {
    kernels_.attention(args, begin, end);
  });
}

const KernelTable& choose_kernels(const BackendOptions& options) {
  const IsaList isas = supported_isas();
  std::string wanted = options.isa, source = "the forced instruction set";
  if (wanted.empty()) {
    const char* variable = std::getenv("STAGECOACH_ISA");
    if (variable == nullptr || *variable == '\0') return *kernel_table(isas.names[0]);
    wanted = variable;
    source = "STAGECOACH_ISA";
  }
  if (const KernelTable* table = kernel_table(wanted.c_str())) return *table;
  std::string known;
  for (int i = 0; i < isas.count; ++i) known += (i == 0 ? "" : ", ") + std::string(isas.names[i]);
  throw usage_error(
      fmt::format("{} asks for instruction set '{}'; this processor and build have: {}", source,
                  wanted, known),
      fmt::format("use one of them, or leave it out for {}", isas.names[0]));
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  if (options.threads < 1)
    throw usage_error(fmt::format("a CPU backend needs at least 1 thread, not {}", options.threads),
                      fmt::format("this process may use {}", allowed_cpus()));
  return std::make_unique<CpuBackend>(choose_kernels(options), options);
}

}  // namespace stagecoach
