#include "pipeline/checkpoint_resume.h"

#include <algorithm>

#include "base/archive.h"
#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::uint32_t kContents = archive_magic("CKPT");
constexpr std::uint32_t kOrigin = archive_magic("ORIG");
constexpr std::uint32_t kResume = archive_magic("RESU");
constexpr std::uint32_t kBlock = archive_magic("HIDN");
constexpr std::int64_t kBlockBytes = std::int64_t{1} << 20;
// Blocks on their way: what both ranks hold of them is in what the budget reserves for messages.
constexpr int kBlocksAhead = 4;

const std::vector<std::byte> kWhole{std::byte{1}}, kDamaged{std::byte{0}};

bool at(const std::vector<std::uint8_t>& flags, std::size_t index) {
  return index < flags.size() && flags[index] != 0;
}

// A part of a file on its way; the last one is empty, and says what went wrong.
struct Block {
  std::vector<std::byte> bytes;
  std::string error;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(bytes, error);
  }
};

// The window that goes on after the first `layers`; at the end of all, the last one, which has the
// head.
std::size_t window_after(const StagePlan& plan, std::int64_t layers) {
  const auto found = std::find_if(plan.windows.begin(), plan.windows.end(),
                                  [&](const Window& window) { return layers < window.end; });
  return static_cast<std::size_t>(found - plan.windows.begin());
}

std::int32_t rank_after(const StagePlan& plan, std::int64_t layers) {
  return plan.windows[std::min(window_after(plan, layers), plan.windows.size() - 1)].rank;
}

}  // namespace

CheckpointContents checkpoint_contents(const PassCheckpoint& checkpoint, const StagePlan& plan,
                                       int rank, bool with_kv) {
  const std::int64_t layers = plan.layer_end();
  CheckpointContents contents{.hidden = {0}, .kv = {}};
  for (std::int64_t done = 1; done <= layers; ++done)
    contents.hidden.push_back(checkpoint.has_hidden(done));
  contents.kv.assign(static_cast<std::size_t>(layers), 0);
  for (const Window& window : plan.windows)
    for (std::int64_t layer = window.begin; window.rank == rank && layer < window.end; ++layer)
      contents.kv[static_cast<std::size_t>(layer)] = !with_kv || checkpoint.has_kv(layer);
  return contents;
}

CheckpointOrigin gather_origin(ControlChannel& control, const CheckpointOrigin& mine) {
  constexpr const char* kWhat = "the origin of a checkpoint";
  if (control.rank() > 0) {
    control.send(0, to_archive(kOrigin, mine));
    return from_archive<CheckpointOrigin>(kOrigin, control.receive_from(0), kWhat);
  }
  CheckpointOrigin all = mine;
  for (int rank = 1; rank < control.size(); ++rank) {
    const auto other = from_archive<CheckpointOrigin>(kOrigin, control.receive_from(rank), kWhat);
    // They agreed on the slabs that several of them hold.
    for (std::size_t i = 0; i < std::min(all.slab_checksums.size(), other.slab_checksums.size());
         ++i)
      all.slab_checksums[i] = std::max(all.slab_checksums[i], other.slab_checksums[i]);
    all.isas.insert(all.isas.end(), other.isas.begin(), other.isas.end());
  }
  for (int rank = 1; rank < control.size(); ++rank) control.send(rank, to_archive(kOrigin, all));
  return all;
}

CheckpointPoint agree_on_resume(ControlChannel& control, const CheckpointContents& mine,
                                const StagePlan& plan) {
  if (control.rank() > 0) {
    control.send(0, to_archive(kContents, mine));
    return from_archive<CheckpointPoint>(kResume, control.receive_from(0), "where to go on");
  }
  std::vector<CheckpointContents> all{mine};
  for (int rank = 1; rank < control.size(); ++rank)
    all.push_back(from_archive<CheckpointContents>(kContents, control.receive_from(rank),
                                                   "contents of a checkpoint"));
  const auto has_kv = [&](std::int64_t layer) {
    return std::any_of(all.begin(), all.end(), [&](const CheckpointContents& contents) {
      return at(contents.kv, static_cast<std::size_t>(layer));
    });
  };
  CheckpointPoint point;
  // A rank that could not look will say why, and can send and receive nothing.
  const bool complete = std::all_of(
      all.begin(), all.end(), [](const CheckpointContents& one) { return !one.hidden.empty(); });
  for (std::int64_t layers = 1; complete && layers <= plan.layer_end() && has_kv(layers - 1);
       ++layers) {
    const std::int32_t needs = rank_after(plan, layers);
    // The rank itself, if it can be.
    for (int i = 0; i < control.size(); ++i) {
      const int rank = (needs + i) % control.size();
      if (!at(all[static_cast<std::size_t>(rank)].hidden, static_cast<std::size_t>(layers)))
        continue;
      point = {.layers = layers,
               .window = static_cast<std::int32_t>(window_after(plan, layers)),
               .has = rank,
               .needs = needs,
               .discarded = 0};
      break;
    }
  }
  for (const CheckpointContents& contents : all)
    point.discarded = std::max(point.discarded, contents.discarded);
  for (int rank = 1; rank < control.size(); ++rank) control.send(rank, to_archive(kResume, point));
  return point;
}

// Others wait for the answer: whatever goes wrong, there is one.
bool is_whole(const PassCheckpoint& checkpoint, std::int64_t layers, CheckpointContents& mine,
              const std::function<void(const std::string&)>& warn) {
  try {
    const std::string damage = checkpoint.damage_of_hidden(layers);
    if (damage.empty()) return true;
    warn(damage + "; it is dropped, and the layers before it count");
    checkpoint.drop_hidden(layers);
  } catch (const Error& error) {
    warn(fmt::format("{}; the layers before it count", error.what()));
  }
  mine.hidden[static_cast<std::size_t>(layers)] = 0;
  return false;
}

void forget_gone(const PassCheckpoint& checkpoint, CheckpointContents& mine) {
  const auto is_there = [&](std::int64_t layers) {
    try {
      return checkpoint.has_hidden(layers);
    } catch (const Error&) {  // gone between two looks, or it cannot be read
      return false;
    }
  };
  for (std::size_t layers = 1; layers < mine.hidden.size(); ++layers)
    mine.hidden[layers] = mine.hidden[layers] != 0 && is_there(static_cast<std::int64_t>(layers));
}

bool all_hear(ControlChannel& control, const CheckpointPoint& point, bool intact) {
  if (control.rank() != point.has) return control.receive_from(point.has) != kDamaged;
  for (int rank = 0; rank < control.size(); ++rank)
    if (rank != point.has) control.send(rank, intact ? kWhole : kDamaged);
  return intact;
}

void share_hidden(ControlChannel& control, const PassCheckpoint& checkpoint,
                  const CheckpointPoint& point) {
  if (point.layers == 0 || point.has == point.needs) return;
  if (control.rank() == point.has) {
    int ahead = 0;  // blocks that the other one has not taken
    const auto send = [&](const Block& block) {
      control.send(point.needs, to_archive(kBlock, block));
      for (++ahead; ahead >= kBlocksAhead; --ahead) control.receive_from(point.needs);
    };
    const auto end = [&](const std::string& error) {
      send({.bytes = {}, .error = error});
      for (; ahead > 0; --ahead) control.receive_from(point.needs);
    };
    try {
      const File file = checkpoint.open_hidden(point.layers);
      const std::int64_t bytes = file.size();
      for (std::int64_t at = 0; at < bytes; at += kBlockBytes) {
        Block block{.bytes = std::vector<std::byte>(
                        static_cast<std::size_t>(std::min(kBlockBytes, bytes - at))),
                    .error = {}};
        file.read_at(at, block.bytes);
        send(block);
      }
    } catch (const Error& error) {
      end(error.what());  // the other one waits for it
      throw;
    }
    end({});
  } else if (control.rank() == point.needs) {
    bool ended = false;
    const auto next = [&] {
      Block block =
          from_archive<Block>(kBlock, control.receive_from(point.has), "a kept hidden state");
      control.send(point.has, {});
      ended = block.bytes.empty();
      if (!block.error.empty())
        throw data_error(fmt::format("the checkpoint of rank {}: {}", point.has, block.error));
      return std::move(block.bytes);
    };
    try {
      checkpoint.adopt_hidden(point.layers, next);
    } catch (const Error&) {
      while (!ended) next();  // what is under way would be taken for something else
      throw;
    }
  }
}

}  // namespace stagecoach
