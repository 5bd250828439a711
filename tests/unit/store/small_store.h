// A store of a few kilobytes, and a folder to put it in.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "store/layer_store.h"
#include "store/slab_format.h"
#include "store/store_writer.h"
#include "support_temporary_folder.h"

namespace stagecoach {

inline std::string file_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void set_file_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Relative name → content of every file below a folder.
inline std::map<std::string, std::string> folder_contents(const std::filesystem::path& root) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root))
    if (entry.is_regular_file())
      contents[entry.path().lexically_relative(root).string()] = file_bytes(entry.path());
  return contents;
}

// The error that `action` throws; a test failure elsewhere if it throws none.
template <typename Action>
Error error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  return {ErrorKind::kInternal, "no error was thrown"};
}

// GPT-2's shape with awkward sizes: no width is a multiple of 16.
inline ModelSpec small_spec() {
  ModelSpec spec;
  spec.family = "gpt2";
  spec.architecture = "GPT2LMHeadModel";
  spec.vocab_size = 37;
  spec.hidden_size = spec.embedding_size = 20;
  spec.intermediate_size = 50;
  spec.num_hidden_layers = 3;
  spec.num_attention_heads = spec.num_key_value_heads = 2;
  spec.head_dim = 10;
  spec.max_position_embeddings = 9;
  spec.attention_scale = 0.31622776f;
  spec.query_bias = spec.key_bias = spec.value_bias = spec.attention_output_bias = true;
  spec.mlp_bias = true;
  spec.tied_head = true;
  return spec;
}

// Some bytes that differ from tensor to tensor and from place to place.
inline void write_pattern(const TensorSpec& tensor, const StoreWriter::Sink& sink) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes()));
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(i * 31 + static_cast<std::size_t>(tensor.role) * 7 + i / 256);
  // Two pushes, so that checksums have to stream.
  const std::span<const std::byte> all(bytes);
  sink(all.first(all.size() / 2));
  sink(all.subspan(all.size() / 2));
}

inline Manifest write_small_store(const std::filesystem::path& root,
                                  const ModelSpec& spec = small_spec(),
                                  DType weights = DType::kF16) {
  Manifest manifest;
  manifest.name = "small";
  manifest.version = "1";
  manifest.metadata = {{"note", "made by a test"}};
  manifest.spec = spec;
  manifest.weights = weights;
  manifest.distinct_layers = spec.num_hidden_layers;
  StoreWriter writer(root, "a test");
  const auto add = [&](SlabKind kind, std::int64_t layer) {
    const std::string file = slab_file_name(kind, layer);
    manifest.slabs.push_back(writer.write_slab(file, kind, slab_id(spec, weights, file),
                                               slab_tensors(spec, kind, weights), write_pattern));
    return static_cast<int>(manifest.slabs.size()) - 1;
  };
  manifest.embedding_slab = add(SlabKind::kEmbedding, 0);
  for (std::int64_t layer = 0; layer < spec.num_hidden_layers; ++layer)
    manifest.layer_slab.push_back(add(SlabKind::kLayer, layer));
  manifest.head_slab = add(SlabKind::kHead, 0);
  writer.add_file("tokenizer/tokenizer.json", "{}");
  writer.commit(manifest);
  return manifest;
}

}  // namespace stagecoach
