// How much of the disk staging gets, and what it costs: a store's layers streamed through slots, with
// nobody computing, in turn with bare direct reads of the same bytes through the same kind of queue.
// One line a turn, then medians: GB/s of both, their ratio, and CPU seconds per GB, which are shares
// of a core at 1 GB/s.
//
//   stager_bench STORE [TURNS]     TURNS: 5, for each of: not verified, verified
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

#include "base/error.h"
#include "stager/part_stream.h"
#include "stager/store_reader.h"

namespace stagecoach {
namespace {

constexpr std::size_t kDepth = 16;
constexpr std::int64_t kBlock = std::int64_t{1} << 20;

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Cost {
  double seconds = 0, cpu = 0;
};

template <typename Run>
Cost cost_of(const Run& run) {
  const std::int64_t begin = now_ns();
  const double cpu = cpu_seconds();
  run();
  return {seconds_since(begin), cpu_seconds() - cpu};
}

std::vector<StreamedPart> parts_of(const LayerStore& store, DirectFiles& files) {
  std::vector<StreamedPart> parts;
  for (std::int64_t layer = 0; layer < store.manifest().distinct_layers; ++layer) {
    const SlabEntry& slab = store.layer_slab(layer);
    const DirectFile file = files.open(slab);
    for (const PartEntry& part : slab.parts)
      parts.push_back({.descriptor = file.descriptor,
                       .direct = file.direct,
                       .offset = part.offset,
                       .bytes = part.bytes,
                       .kind = part.kind == PartKind::kMlp ? 1 : 0,
                       .checksum = part.checksum,
                       .name = part_label(store, slab, part),
                       .hint = store.repair_hint(slab),
                       .content = static_cast<int>(parts.size())});
  }
  return parts;
}

void read_bare(const std::vector<StreamedPart>& parts, AlignedBuffer& memory) {
  
  const auto queue = make_read_queue(kDepth);
  std::deque<std::size_t> free;
  std::size_t under_way = 0;
  for (std::size_t i = 0; i < memory.size() / kBlock; ++i) free.push_back(i);
  const auto take = [&] {
    const auto completion = queue->wait(Clock::now() + std::chrono::minutes(1));
    if (!completion || completion->error != 0) throw resource_error("the disk does not answer");
    free.push_back(static_cast<std::size_t>(completion->tag));
    --under_way;
  };
  for (const StreamedPart& part : parts)
    for (std::int64_t at = 0; at < part.bytes; at += kBlock) {
      if (under_way == kDepth) take();
      const std::size_t index = free.front();
      free.pop_front();
      ++under_way;
      queue->submit({.descriptor = part.descriptor,
                     .offset = part.offset + at,
                     .destination = memory.span().subspan(
                         index * kBlock,
                         static_cast<std::size_t>(std::min(kBlock, part.bytes - at))),
                     .tag = index});
    }
  while (under_way > 0) take();
}

// The slots' memory is touched once before: a job's ring is, too.
Cost stream(const std::vector<StreamedPart>& parts, CheckParts check) {
  Timeline timeline;
  const std::uint64_t warm = std::min<std::uint64_t>(parts.size(), 8);
  PartStream stream(parts, {.slots = {2, 2}, .check = check, .end = warm + parts.size()},
                    make_read_queue(kDepth), timeline);
  const auto pass = [&](std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t n = begin; n < end; ++n) {
      stream.wait(n);
      stream.release(n);
    }
  };
  pass(0, warm);
  return cost_of([&] { pass(warm, warm + parts.size()); });
}

// Two slots of each kind.
std::int64_t slot_bytes(const std::vector<StreamedPart>& parts) {
  std::int64_t largest[2] = {};
  for (const StreamedPart& part : parts)
    largest[part.kind] = std::max(largest[part.kind], part.bytes);
  return 2 * (largest[0] + largest[1]);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void run(const char* path, int turns) {
  const LayerStore store{path};
  DirectFiles files(store);
  const std::vector<StreamedPart> parts = parts_of(store, files);
  std::int64_t bytes = 0;
  for (const StreamedPart& part : parts) bytes += part.bytes;
  const double gb = static_cast<double>(bytes) * 1e-9;
  std::printf("%zu parts, %.2f GB, %s\n", parts.size(), gb, make_read_queue(1)->name());
  // Huge pages: of small ones, a block would be cut into several requests. As large as the slots: a
  // virtual disk copies faster into a buffer that stays in the caches.
  AlignedBuffer memory(slot_bytes(parts) / kBlock * kBlock);
  memory.advise_huge_pages();
  read_bare(parts, memory);  // touches it
  for (const CheckParts check : {CheckParts::kNever, CheckParts::kAlways}) {
    const char* const name = check == CheckParts::kAlways ? "verified" : "not verified";
    std::vector<double> ratios, rates, costs, bare_costs;
    for (int turn = 0; turn < turns; ++turn) {
      const Cost bare = cost_of([&] { read_bare(parts, memory); });
      const Cost staged = stream(parts, check);
      const Cost again = cost_of([&] { read_bare(parts, memory); });
      // Of the neighbours before and after: the disk is shared, and drifts.
      const double bare_seconds = (bare.seconds + again.seconds) / 2;
      ratios.push_back(bare_seconds / staged.seconds);
      rates.push_back(gb / staged.seconds);
      costs.push_back(staged.cpu / gb);
      bare_costs.push_back((bare.cpu + again.cpu) / 2 / gb);
      std::printf("%-12s  bare %.2f GB/s, staged %.2f GB/s, ratio %.3f, CPU %.3f and %.3f s/GB\n",
                  name, gb / bare_seconds, rates.back(), ratios.back(), bare_costs.back(),
                  costs.back());
    }
    std::printf("%-12s  median: staged %.2f GB/s, ratio %.3f, CPU %.3f s/GB (bare %.3f)\n", name,
                median(rates), median(ratios), median(costs), median(bare_costs));
  }
}

}  // namespace
}  // namespace stagecoach

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: stager_bench STORE [TURNS]\n");
    return 2;
  }
  try {
    stagecoach::run(argv[1], argc > 2 ? std::max(1, std::atoi(argv[2])) : 5);
  } catch (const stagecoach::Error& error) {
    std::fprintf(stderr, "stager_bench: %s\n", error.what());
    return error.exit_code();
  }
  return 0;
}
