// Which host has which slab, which it lacks, and how they get there.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "launcher/hosts.h"
#include "plan/stage_plan.h"

namespace stagecoach {

// What a rank's host must have on its disk: names of slabs.
using SlabNames = std::set<std::string>;

// For the rank's own work, and for second copies (empty without replicas). Throws data_error when
// the manifest does not list what is needed.
std::vector<SlabNames> own_slabs(const StagePlan& plan, const Manifest& manifest);
std::vector<SlabNames> replica_slabs(const StagePlan& plan, const Manifest& manifest);

// The manifest with these slabs only.
Manifest subset(const Manifest& manifest, const SlabNames& slabs);

// The model of a job, as all of its hosts and this machine's store have it together.
class Model {
 public:
  // Looks into the stores of all hosts that are reached, and of this machine. Throws data_error
  // when none has the model, or two have different ones.
  explicit Model(Hosts& hosts);

  const Manifest& manifest() const { return *manifest_; }
  // Names of `wanted` that the host lacks.
  std::vector<std::string> missing(const Host& host, const SlabNames& wanted) const;
  std::int64_t bytes(const std::vector<std::string>& slabs) const;

  // Ships each host what it lacks of `wanted`, by host as in Hosts::all(), and the tokenizer.
  // Throws when a slab is nowhere, or cannot be shipped. Hosts that are not reached are passed
  // over.
  void ship(Hosts& hosts, const std::vector<SlabNames>& wanted, const Report& report);

 private:
  const SlabEntry& entry(const std::string& slab) const;
  void look_into(Host& host);
  void ship_tokenizer(Host& host);
  std::vector<SlabSource> sources_of(const std::string& slab, const Host& except) const;

  std::optional<Manifest> manifest_;
  std::map<const Host*, SlabNames> holdings_;  // of this content
  std::map<std::string, std::vector<std::byte>> tokenizer_;
  std::map<const Host*, std::map<std::string, std::int64_t>> tokenizer_files_;
};

}  // namespace stagecoach
