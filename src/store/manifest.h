// manifest.json: what a store holds. Machine-written, read with suspicion.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "model/model_spec.h"
#include "model/tensor_catalog.h"

namespace stagecoach {

inline constexpr std::int64_t kStoreVersion = 2;
inline constexpr std::int64_t kSlabAlignment = 4096;
inline constexpr const char* kManifestFile = "manifest.json";
inline constexpr const char* kJournalFile = "import.journal";  // there: an import is not finished

struct TensorEntry {
  TensorSpec spec;
  std::int64_t offset = 0;  // bytes from the start of its part
  std::uint64_t checksum = 0;
};

struct PartEntry {
  PartKind kind = PartKind::kEmbedding;
  std::int64_t offset = 0;  // bytes from the start of the slab, 4 KiB-aligned
  std::int64_t bytes = 0;   // length of the extent, padded to 4 KiB; the checksum covers all of it
  std::uint64_t checksum = 0;
  std::vector<TensorEntry> tensors;
};

struct SlabEntry {
  std::string file;      // "layer-003.slab": a bare name inside the store
  std::uint64_t id = 0;  // also in the slab's header
  SlabKind kind = SlabKind::kLayer;
  std::int64_t bytes = 0;  // length of the file
  std::vector<PartEntry> parts;

  const PartEntry* part(PartKind kind) const;
};

struct Manifest {
  std::string name;     // "gpt-j-6b"
  std::string version;  // free ("1", "2024-05-01")
  std::map<std::string, std::string> metadata;
  ModelSpec spec;
  DType weights = DType::kF32;
  std::int64_t distinct_layers = 0;  // slabs that the layers share; == num_hidden_layers normally

  std::vector<SlabEntry> slabs;
  // layer → index into slabs, or -1 where this store does not hold the layer.
  std::vector<int> layer_slab;
  int embedding_slab = -1;  // index into slabs, or -1
  int head_slab = -1;

  bool has_layers(std::int64_t begin, std::int64_t end) const;
  // Equal on all ranks of a job: spec, weights and the checksums of a slab.
  std::uint64_t slab_checksum(int slab) const;
};

Json to_json(const Manifest& manifest);
// The file's content: one tensor a line, so that people can read and compare manifests.
std::string manifest_text(const Manifest& manifest);
// Throws data_error on anything that does not add up: unknown version (says "newer"), names that
// leave the folder, extents that overlap or leave the file, tensors that differ from the catalog of
// the spec.
Manifest manifest_from_json(const Json& json, const std::string& where);

// Throws data_error when `store` holds no complete store, saying what is there instead.
Manifest read_manifest(const std::filesystem::path& store);

}  // namespace stagecoach
