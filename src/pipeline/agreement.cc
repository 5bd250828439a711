#include "pipeline/agreement.h"

#include <algorithm>

#include "base/archive.h"

namespace stagecoach {
namespace {

constexpr std::uint32_t kStatus = archive_magic("STAT");
constexpr std::uint32_t kVerdict = archive_magic("VRDT");

struct Verdict {
  int code = 0;
  std::string problem, hint;
  bool lasting = false;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(code, problem, hint, lasting);
  }
};

std::string who(const Transport& transport, int rank) {
  return transport.size() == 1 ? std::string()
                               : fmt::format("rank {} on {}: ", rank, transport.host(rank));
}

std::string slab_label(std::size_t index, std::size_t count) {
  if (index + 2 == count) return "the embedding";
  if (index + 1 == count) return "the head";
  return fmt::format("layer {}", index);
}

// The first difference between rank 0 and rank `r`, as a verdict.
std::optional<Verdict> difference(const Transport& transport, const RankStatus& ours,
                                  const RankStatus& theirs, int r) {
  const auto data = [&](const std::string& problem, const std::string& hint) {
    return Verdict{static_cast<int>(ErrorKind::kData), who(transport, r) + problem, hint};
  };
  if (theirs.version != ours.version)
    return data(fmt::format("runs Stagecoach {}, rank 0 on {} runs {}", theirs.version,
                            transport.host(0), ours.version),
                "install the same version on all hosts");
  if (theirs.command != ours.command)
    return data(fmt::format("runs stagecoach {}, rank 0 on {} runs stagecoach {}", theirs.command,
                            transport.host(0), ours.command),
                "give all ranks the same command");
  if (theirs.model_hash != ours.model_hash)
    return data(fmt::format("its store holds another model than the one on {}", transport.host(0)),
                "import the same checkpoint with the same --weights on all hosts");
  if (theirs.plan_hash != ours.plan_hash)
    return data(
        fmt::format("its plan or flags differ from those of rank 0 on {}", transport.host(0)),
        "give all ranks the same flags, job file and STAGECOACH_ environment");
  if (theirs.slab_checksums.size() != ours.slab_checksums.size())
    return data(
        fmt::format("its store names {} slabs, the one on {} {}", theirs.slab_checksums.size(),
                    transport.host(0), ours.slab_checksums.size()),
        "import the same checkpoint on all hosts");
  return std::nullopt;
}

// The first slab that two ranks hold with different weights. Rank 0 need not hold it: stores may be
// slices.
std::optional<Verdict> slab_difference(const Transport& transport,
                                       const std::vector<RankStatus>& all) {
  const std::size_t slabs = all[0].slab_checksums.size();
  for (std::size_t i = 0; i < slabs; ++i) {
    int holder = -1;
    for (int r = 0; r < transport.size(); ++r) {
      const auto checksum = [&](int rank) {
        return all[static_cast<std::size_t>(rank)].slab_checksums.at(i);
      };
      if (checksum(r) == 0) continue;
      if (holder < 0) holder = r;
      if (checksum(r) != checksum(holder))
        return Verdict{
            static_cast<int>(ErrorKind::kData),
            who(transport, r) + fmt::format("its store has other weights for {} than the one on {}",
                                            slab_label(i, slabs), transport.host(holder)),
            "import the same checkpoint on all hosts"};
    }
  }
  return std::nullopt;
}

Verdict judge(const Transport& transport, const std::vector<RankStatus>& all) {
  for (int r = 0; r < transport.size(); ++r) {
    const RankStatus& status = all[static_cast<std::size_t>(r)];
    if (status.error_code == 0) continue;
    // What all have is nobody's (a store on a shared disk), and what rank 0 says of flags and texts
    // is about the whole job: no host named.
    const bool shared = r == 0 && (status.error_code == static_cast<int>(ErrorKind::kUsage) ||
                                   std::ranges::all_of(all, [&](const RankStatus& other) {
                                     return other.error == status.error;
                                   }));
    return {status.error_code, (shared ? "" : who(transport, r)) + status.error, status.hint,
            status.lasting};
  }
  for (int r = 1; r < transport.size(); ++r)
    if (auto verdict = difference(transport, all[0], all[static_cast<std::size_t>(r)], r))
      return *verdict;
  return slab_difference(transport, all).value_or(Verdict{});
}

// What may differ, at the price of bits: the first such rank.
std::string difference_worth_knowing(const Transport& transport,
                                     const std::vector<RankStatus>& all) {
  for (int r = 0; r < transport.size(); ++r) {
    const RankStatus& theirs = all[static_cast<std::size_t>(r)];
    if (theirs.split)
      return fmt::format(
          "{} on {} ({}): results depend on how layers are split",
          transport.size() == 1 ? "layers are computed" : who(transport, r) + "computes",
          theirs.device, theirs.isa);
    if (theirs.isa == all[0].isa && theirs.device == all[0].device) continue;
    return fmt::format(
        "{}computes on {} ({}), rank 0 on {} ({}): results depend on how layers are split",
        who(transport, r), theirs.device, theirs.isa, all[0].device, all[0].isa);
  }
  return {};
}

// A status that cannot be read comes from another Stagecoach: that is its rank's error.
RankStatus read_status(ControlChannel& control, int rank) {
  const std::vector<std::byte> payload = control.receive_from(rank);
  try {
    return from_archive<RankStatus>(kStatus, payload, "rank status");
  } catch (const Error& error) {
    return failed_status(error);
  }
}

}  // namespace

void agree(ControlChannel& control, const RankStatus& status, const AgreementEvents& events) {
  Verdict verdict;
  if (control.rank() == 0) {
    std::vector<RankStatus> all{status};
    for (int r = 1; r < control.size(); ++r) all.push_back(read_status(control, r));
    verdict = judge(control.transport(), all);
    if (verdict.code != 0) {
      events.error(Error(static_cast<ErrorKind>(verdict.code), verdict.problem, verdict.hint));
    } else if (const std::string warning = difference_worth_knowing(control.transport(), all);
               !warning.empty()) {
      events.warning(warning);
    }
    for (int r = 1; r < control.size(); ++r) control.send(r, to_archive(kVerdict, verdict));
  } else {
    control.send(0, to_archive(kStatus, status));
    verdict = from_archive<Verdict>(kVerdict, control.receive_from(0), "verdict");
  }
  if (verdict.code != 0)
    throw AgreedError(Error(static_cast<ErrorKind>(verdict.code), verdict.problem, verdict.hint),
                      verdict.lasting);
}

RankStatus failed_status(const Error& error) {
  RankStatus status;
  status.error_code = error.exit_code();
  status.error = error.what();
  status.hint = error.hint();
  return status;
}

}  // namespace stagecoach
