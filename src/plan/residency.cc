#include "plan/residency.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace stagecoach {
namespace {

std::int64_t layers_of(const ResidencyRequest& request) {
  return std::accumulate(request.windows.begin(), request.windows.end(), std::int64_t{0});
}

// `count` of `layers`, as evenly as can be: a window then never has much more to stream than
// another.
std::vector<bool> spread(std::int64_t count, std::int64_t layers) {
  std::vector<bool> chosen(static_cast<std::size_t>(layers));
  for (std::int64_t i = 0; i < layers; ++i)
    chosen[static_cast<std::size_t>(i)] = (i + 1) * count / layers > i * count / layers;
  return chosen;
}

struct Ring {
  int attention = 1, mlp = 1;
  std::int64_t bytes = 0, memory = 0;  // of parts, and what they take
};

// As many slots as `room` holds, in the order in which parts come; more than `streamed` layers
// would be of no use.
Ring fill_ring(const WeightSizes& sizes, std::int64_t room, std::int64_t streamed) {
  Ring ring{.attention = 1, .mlp = 1, .bytes = sizes.layer(), .memory = sizes.layer_memory()};
  while (true) {
    const bool attention = ring.attention <= ring.mlp;
    int& slots = attention ? ring.attention : ring.mlp;
    const std::int64_t part = attention ? sizes.attention : sizes.mlp;
    const std::int64_t memory = part + (attention ? sizes.attention_rounding : sizes.mlp_rounding);
    if (slots >= streamed || ring.memory + memory > room) return ring;
    ++slots;
    ring.bytes += part;
    ring.memory += memory;
  }
}

// See docs/staging.md. In one of k turns a rank streams O/k. Between its turns the ring fills with
// what it holds beside the part in use; the turn itself waits for the rest, and no turn can be
// shorter than its share of a disk that never rests.
std::int64_t waited_bytes(const ResidencyRequest& request, std::int64_t streamed,
                          const Ring& ring) {
  const WeightSizes& sizes = request.sizes;
  const auto turns = static_cast<std::int64_t>(request.windows.size());
  if (!request.one_micro_batch || request.ranks == 1) {
    // A layer's parts are used by all micro-batches before they make room: reading goes on beside
    // it only where the next layer has slots too.
    const bool overlaps = request.one_micro_batch || (ring.attention > 1 && ring.mlp > 1);
    return overlaps ? streamed : 2 * streamed;
  }
  const std::int64_t ahead = ring.bytes - std::max(sizes.attention, sizes.mlp);
  const std::int64_t turn = std::max(streamed / turns - ahead, streamed / (request.ranks * turns));
  return std::max(streamed, turn * request.ranks * turns);
}

struct Ends {
  bool embedding_in_memory, head_in_memory;
  std::int64_t memory, streamed;
};

std::vector<Ends> choices_of_ends(const ResidencyRequest& request) {
  const WeightSizes& sizes = request.sizes;
  std::vector<Ends> choices{
      {true, true, sizes.embedding_in_memory + sizes.head_in_memory - sizes.shared, 0}};
  if (sizes.embedding_in_memory > 0)
    choices.push_back({false, true, sizes.embedding_on_disk + sizes.head_in_memory, 0});
  if (sizes.head_in_memory > 0)
    choices.push_back({sizes.embedding_in_memory == 0, false,
                       sizes.embedding_on_disk + sizes.head_on_disk,
                       request.head_sweeps * sizes.head_matrix});
  return choices;
}

}  // namespace

std::optional<Residency> plan_residency(const ResidencyRequest& request) {
  const WeightSizes& sizes = request.sizes;
  const std::int64_t layers = layers_of(request);
  STAGECOACH_CHECK(layers > 0 && sizes.layer() > 0);
  std::optional<Residency> best;
  const auto consider = [&](Residency candidate) {
    if (!best || candidate.waited < best->waited) best = std::move(candidate);
  };
  for (const Ends& ends : choices_of_ends(request)) {
    for (std::int64_t pinned = layers; pinned >= 0; --pinned) {
      const std::int64_t room = request.memory - ends.memory - pinned * sizes.layer_memory();
      const std::int64_t streamed = (layers - pinned) * sizes.layer();
      Residency candidate{.pinned = spread(pinned, layers),
                          .embedding_in_memory = ends.embedding_in_memory,
                          .head_in_memory = ends.head_in_memory,
                          .memory = request.memory - room,
                          .streamed = streamed + ends.streamed,
                          .waited = ends.streamed};
      if (pinned == layers) {
        if (room >= 0) consider(std::move(candidate));
        continue;
      }
      if (room < sizes.layer_memory()) continue;
      const Ring ring = fill_ring(sizes, room, layers - pinned);
      candidate.attention_slots = ring.attention;
      candidate.mlp_slots = ring.mlp;
      candidate.memory += ring.memory;
      candidate.waited += waited_bytes(request, streamed, ring);
      consider(std::move(candidate));
    }
  }
  return best;
}

std::int64_t smallest_memory(const ResidencyRequest& request) {
  const WeightSizes& sizes = request.sizes;
  return std::min(sizes.embedding_in_memory, sizes.embedding_on_disk) +
         std::min(sizes.head_in_memory, sizes.head_on_disk) + sizes.layer_memory();
}

double streamed_bound(double slice, double memory, int ranks, int rounds) {
  const double nk = static_cast<double>(ranks) * rounds;
  return std::clamp((slice - memory) * nk / (nk - ranks + 1), 0.0, slice);
}

std::vector<int> candidate_rounds(std::int64_t layers, int ranks) {
  const int most = static_cast<int>((layers + ranks - 1) / ranks);
  std::vector<int> rounds;
  for (int step = 1; step < most; step *= 2)
    for (const int k : {step, step + step / 2})
      if (k < most && (rounds.empty() || k > rounds.back())) rounds.push_back(k);
  rounds.push_back(most);
  return rounds;
}

}  // namespace stagecoach
