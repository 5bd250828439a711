#include "pipeline/checkpoint_resume.h"

#include <algorithm>

#include "base/archive.h"

namespace stagecoach {
namespace {

constexpr std::uint32_t kContents = archive_magic("CKPT");
constexpr std::uint32_t kOrigin = archive_magic("ORIG");
constexpr std::uint32_t kResume = archive_magic("RESU");

bool at(const std::vector<std::uint8_t>& flags, std::size_t index) {
  return index < flags.size() && flags[index] != 0;
}

}  // namespace

CheckpointContents checkpoint_contents(const PassCheckpoint& checkpoint, const StagePlan& plan,
                                       int rank, bool with_kv) {
  CheckpointContents contents;
  for (std::size_t w = 0; w < plan.windows.size(); ++w) {
    // The last window's hidden state stays with its rank, which has the head.
    const Window& receiver = plan.windows[std::min(w + 1, plan.windows.size() - 1)];
    contents.hidden.push_back(receiver.rank == rank &&
                              checkpoint.has_hidden(static_cast<std::int64_t>(w)));
    bool kv = plan.windows[w].rank == rank;
    if (kv && with_kv)
      for (std::int64_t layer = plan.windows[w].begin; layer < plan.windows[w].end; ++layer)
        kv = kv && checkpoint.has_kv(layer);
    contents.kv.push_back(kv);
  }
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

std::int32_t agree_on_resume(ControlChannel& control, const CheckpointContents& mine,
                             std::int32_t windows) {
  if (control.rank() > 0) {
    control.send(0, to_archive(kContents, mine));
    return std::clamp(
        from_archive<std::int32_t>(kResume, control.receive_from(0), "where to go on"), 0, windows);
  }
  std::vector<CheckpointContents> all{mine};
  for (int rank = 1; rank < control.size(); ++rank)
    all.push_back(from_archive<CheckpointContents>(kContents, control.receive_from(rank),
                                                   "contents of a checkpoint"));
  std::int32_t resume = 0;
  for (std::size_t w = 0; w < static_cast<std::size_t>(windows); ++w) {
    const auto any = [&](auto member) {
      return std::any_of(all.begin(), all.end(), [&](const CheckpointContents& contents) {
        return at(contents.*member, w);
      });
    };
    if (!any(&CheckpointContents::kv)) break;
    if (any(&CheckpointContents::hidden)) resume = static_cast<std::int32_t>(w) + 1;
  }
  for (int rank = 1; rank < control.size(); ++rank) control.send(rank, to_archive(kResume, resume));
  return resume;
}

}  // namespace stagecoach
