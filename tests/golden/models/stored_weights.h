// A source seen through a store: each matrix as its weight type holds it.
#pragma once

#include "checkpoint/weight_source.h"

namespace stagecoach {

// A row is stored as itself alone, so any rows can be read.
class StoredWeights : public WeightSource {
 public:
  StoredWeights(WeightSource& source, DType weights) : source_(source), weights_(weights) {}

  const ModelSpec& spec() const override { return source_.spec(); }
  DType native_type() const override { return weights_; }
  std::string identity() const override { return source_.identity(); }
  std::string default_name() const override { return source_.default_name(); }
  const std::map<std::string, std::string>& tokenizer_files() const override {
    return source_.tokenizer_files();
  }
  void read_rows(TensorRole role, std::int64_t layer, std::int64_t row_begin, std::int64_t row_end,
                 float* destination) override {
    source_.read_rows(role, layer, row_begin, row_end, destination);
    const TensorSpec spec = find(role);
    const std::int64_t rows = row_end - row_begin;
    std::vector<std::byte> packed(
        static_cast<std::size_t>(layout_bytes(spec.layout, spec.type, rows, spec.cols)));
    pack_rows(spec.layout, spec.type, destination, rows, spec.cols, packed.data());
    unpack_rows(spec.layout, spec.type, packed.data(), spec.cols, 0, rows, destination);
  }

 private:
  TensorSpec find(TensorRole role) const {
    for (const SlabKind slab : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead})
      for (const TensorSpec& tensor : slab_tensors(spec(), slab, weights_))
        if (tensor.role == role) return tensor;
    throw std::logic_error("no such tensor");
  }

  WeightSource& source_;
  DType weights_;
};

}  // namespace stagecoach
