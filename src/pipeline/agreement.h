// The points of a job at which all ranks must agree before anyone goes on: after opening stores, and
// after loading slices. One rank's error becomes one message and one exit code for all.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "pipeline/control_channel.h"

namespace stagecoach {

// What a rank says of itself. Everything that must be equal among ranks, and what may differ with a
// warning.
struct RankStatus {
  std::string version;            // of Stagecoach
  std::uint64_t plan_hash = 0;    // of the StagePlan and the run's flags
  std::uint64_t model_hash = 0;   // of the ModelSpec and the weight type
  // Checksum of each slab that the rank's store holds: layers, then embedding, then head; 0: not held.
  std::vector<std::uint64_t> slab_checksums;
  std::string isa, device;

  int error_code = 0;  // of the error that this rank has met, or 0
  std::string error, hint;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(version, plan_hash, model_hash, slab_checksums, isa, device, error_code, error, hint);
  }
};

// A verdict that every rank gets: an error that has been reported already by rank 0 (other ranks stay
// silent), or agreement.
class AgreedError : public Error {
 public:
  AgreedError(ErrorKind kind, const std::string& problem, std::string hint, bool report)
      : Error(kind, problem, std::move(hint)), report_(report) {}
  bool report() const { return report_; }  // whether this rank prints it

 private:
  bool report_;
};

// Collective. Throws AgreedError on every rank if any rank brought an error or differs; `warnings` (on
// rank 0) receives what is merely worth knowing. Waits as long as peers live: loading may take minutes.
void agree(ControlChannel& control, const RankStatus& status, std::vector<std::string>* warnings);

// Status of a rank that has met `error`.
RankStatus failed_status(const Error& error);

}  // namespace stagecoach
