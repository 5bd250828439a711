// Where an import's weights come from: a Hugging Face checkpoint, or a random generator. Later
// containers (PyTorch .bin, GGUF) are further implementations of this interface.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/tensor_catalog.h"

namespace stagecoach {

class WeightSource {
 public:
  virtual ~WeightSource() = default;

  virtual const ModelSpec& spec() const = 0;
  // The type the source itself stores its matrices in: the default of --weights.
  virtual DType native_type() const = 0;
  // Names the source and its state (files, sizes, times, seed): what a resumed import compares.
  virtual std::string identity() const = 0;
  virtual std::string default_name() const = 0;  // "gpt-j-6b"
  // Files to copy into STORE/tokenizer/, name → content. May be empty.
  virtual const std::map<std::string, std::string>& tokenizer_files() const = 0;

  // Rows [row_begin, row_end) of a canonical tensor as float32 row-major. Called with ascending
  // rows of one tensor after the other; thread-safe for disjoint row ranges of one tensor.
  virtual void read_rows(TensorRole role, std::int64_t layer, std::int64_t row_begin,
                         std::int64_t row_end, float* destination) = 0;
};

}  // namespace stagecoach
