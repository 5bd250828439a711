// What travels round the ring: hidden state with what the ranks must know to compute on it.
//
//   0   u32 magic "SCMB"      4   u32 version        8   u32 bytes of the description
//   12  u32 wire type (0 f32, 1 bf16)                16  i64 rows     24  i64 width
//   32  description (cereal archive), zero padding to a multiple of 64, hidden state (rows, width)
//
// The transport adds length and checksum.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/page_allocator.h"
#include "engine/batch.h"
#include "engine/sampler.h"

namespace stagecoach {

enum class WireType : std::uint32_t { kF32 = 0, kBF16 = 1 };

// Said to every rank on the way.
struct Control {
  enum class Kind : std::uint8_t { kAdmit, kDrop };
  Kind kind = Kind::kAdmit;
  SequenceId sequence = 0;
  std::int64_t prompt_length = 0;  // kAdmit
  SamplingParams sampling;         // kAdmit

  template <class Archive>
  void serialize(Archive& archive) {
    archive(kind, sequence, prompt_length, sampling);
  }
};

// Where a micro-batch stands in its pass, in jobs that go in passes (plan/scheduler.h).
struct PassPlace {
  std::int64_t row = 0;     // rows of the pass before it
  std::int64_t rows = 0;    // of the pass; 0: the job does not go in passes
  bool last = true;         // of its pass
  bool forget_kv = false;   // no later pass reads the keys and values of this one
  bool keep = false;        // hidden states go to the checkpoint folder, where there is one
  std::int32_t resume = 0;  // windows before this one were finished by a run before

  template <class Archive>
  void serialize(Archive& archive) {
    archive(row, rows, last, forget_kv, keep, resume);
  }
};

struct MicroBatch {
  std::int32_t window = 0;  // of the plan: which layers come next
  BatchLabel label;
  PassPlace pass;
  std::vector<TokenRun> runs;
  std::vector<Control> controls;
  bool last = false;  // nothing follows: finish, and tell the next rank

  // Through windows that a run before has finished, a micro-batch travels without hidden state.
  std::int64_t hidden_rows() const {
    return window <= pass.resume && pass.resume > 0 ? 0 : total_rows(runs);
  }

  template <class Archive>
  void serialize(Archive& archive) {
    archive(window, label.micro_batch, label.pass, label.phase, pass, runs, controls, last);
  }
};

// Without the hidden state, which follows by another way: what is before it, rows declared.
std::vector<std::byte> encode_description(const MicroBatch& batch, std::int64_t width,
                                          WireType wire);
// `hidden`: (batch.hidden_rows(), width) float32; empty when there are no rows.
std::vector<std::byte> encode_micro_batch(const MicroBatch& batch, std::span<const float> hidden,
                                          std::int64_t width, WireType wire);

// Throws data_error on anything that does not add up. `hidden` is resized to (rows, width); to
// nothing where the hidden state is not among `bytes`: then it is `elsewhere` bytes of float32.
MicroBatch decode_micro_batch(std::span<const std::byte> bytes, std::int64_t width,
                              PageFloats& hidden, std::size_t elsewhere = 0);

// From the rank with the last window back to rank 0.
struct BatchResult {
  struct Token {
    SequenceId sequence = 0;
    TokenId id = 0;
    template <class Archive>
    void serialize(Archive& archive) {
      archive(sequence, id);
    }
  };
  struct LogProbs {
    SequenceId sequence = 0;
    std::int64_t position = 0;  // of the row that predicts the first of `values`
    std::vector<double> values;
    template <class Archive>
    void serialize(Archive& archive) {
      archive(sequence, position, values);
    }
  };
  std::int64_t micro_batch = -1;
  std::vector<Token> tokens;
  std::vector<LogProbs> log_probs;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(micro_batch, tokens, log_probs);
  }
};

std::vector<std::byte> encode_result(const BatchResult& result);
BatchResult decode_result(std::span<const std::byte> bytes);
bool is_micro_batch(std::span<const std::byte> bytes);

}  // namespace stagecoach
