// The points of a job at which all ranks must agree before anyone goes on: after opening stores,
// and after loading slices. One rank's error becomes one message and one exit code for all.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "pipeline/control_channel.h"

namespace stagecoach {

// What a rank says of itself. Everything that must be equal among ranks, and what may differ with a
// warning.
struct RankStatus {
  std::string version;           // of Stagecoach
  std::string command;           // "score": ranks of one job may have been given different ones
  std::uint64_t plan_hash = 0;   // of the StagePlan and the run's flags
  std::uint64_t model_hash = 0;  // of the ModelSpec and the weight type
  // Checksum of each slab that the rank's store holds: layers, then embedding, then head; 0: not
  // held.
  std::vector<std::uint64_t> slab_checksums;
  std::string isa, device;
  bool split = false;  // computes some layers on one device, and some on another

  int error_code = 0;  // of the error that this rank has met, or 0
  std::string error, hint;
  bool lasting = false;  // the next job would meet it, too

  template <class Archive>
  void serialize(Archive& archive) {
    archive(version, command, plan_hash, model_hash, slab_checksums, isa, device, split, error_code,
            error, hint, lasting);
  }
};

// An error that every rank knows of and that rank 0 has told the user already.
class AgreedError : public Error {
 public:
  explicit AgreedError(const Error& error, bool lasting = false)
      : Error(error), lasting_(lasting) {}
  bool lasting() const { return lasting_; }  // the next job would meet it, too

 private:
  bool lasting_;
};

// An error that the next job would meet, too: a device that is lost, a table that cannot be
// written.
class LastingError : public Error {
 public:
  explicit LastingError(const Error& error) : Error(error) {}
};

// What rank 0 does with the outcome. `error` runs before the other ranks hear of it: a rank that
// exits first makes mpirun end the others, the message with them.
struct AgreementEvents {
  std::function<void(const Error&)> error;
  std::function<void(const std::string&)> warning;
};

// Collective. Throws AgreedError on every rank if any rank brought an error or differs. Waits as
// long as peers live: loading may take minutes.
void agree(ControlChannel& control, const RankStatus& status, const AgreementEvents& events);

// Status of a rank that has met `error`.
RankStatus failed_status(const Error& error);

}  // namespace stagecoach
