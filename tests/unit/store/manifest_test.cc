#include "store/manifest.h"

#include <gtest/gtest.h>

#include "unit/store/small_store.h"

namespace stagecoach {
namespace {

Json small_manifest_json() {
  const TemporaryFolder folder;
  write_small_store(folder / "store");
  return read_json_file(folder / "store/manifest.json", 1 << 20);
}

TEST(Manifest, RoundTripIsExact) {
  const TemporaryFolder folder;
  ModelSpec spec = small_spec();
  spec.norm_epsilon = 1.0000001e-5f;
  spec.attention_scale = 0.1f;
  spec.position = PositionKind::kRotary;
  spec.rotary_dim = 4;
  spec.rotary_inv_freq = {1.0f, 0.012345679f};
  const Manifest written = write_small_store(folder / "store", spec, DType::kBF16);
  const Manifest read = read_manifest(folder / "store");
  EXPECT_EQ(read.spec, written.spec);
  EXPECT_EQ(read.name, "small");
  EXPECT_EQ(read.version, "1");
  EXPECT_EQ(read.metadata, written.metadata);
  EXPECT_EQ(to_json(read), to_json(written));
  EXPECT_EQ(manifest_text(read), file_bytes(folder / "store/manifest.json"));
  EXPECT_EQ(read.slabs.size(), 5u);
  EXPECT_EQ(read.layer_slab, (std::vector<int>{1, 2, 3}));
}

TEST(Manifest, PartsStandAlignedAndTensorsInTheCatalogsOrder) {
  const TemporaryFolder folder;
  const Manifest manifest = write_small_store(folder / "store");
  for (const SlabEntry& slab : manifest.slabs) {
    std::int64_t end = kSlabAlignment;
    std::vector<TensorRole> roles;
    for (const PartEntry& part : slab.parts) {
      EXPECT_EQ(part.offset, end);
      EXPECT_EQ(part.offset % 4096, 0);
      end = part.offset + part.bytes;
      std::int64_t tensor_end = 0;
      for (const TensorEntry& tensor : part.tensors) {
        EXPECT_EQ(tensor.offset % 64, 0);
        EXPECT_GE(tensor.offset, tensor_end);
        tensor_end = tensor.offset + tensor.spec.bytes();
        roles.push_back(tensor.spec.role);
      }
      EXPECT_LE(tensor_end, part.bytes);
    }
    EXPECT_EQ(end, slab.bytes);
    std::vector<TensorRole> expected;
    for (const TensorSpec& tensor : slab_tensors(manifest.spec, slab.kind, manifest.weights))
      expected.push_back(tensor.role);
    EXPECT_EQ(roles, expected);
  }
}

TEST(Manifest, HasLayersIsHalfOpen) {
  Manifest manifest;
  manifest.layer_slab = {-1, 0, 1};
  EXPECT_TRUE(manifest.has_layers(1, 3));
  EXPECT_TRUE(manifest.has_layers(1, 1));
  EXPECT_FALSE(manifest.has_layers(0, 3));
  EXPECT_FALSE(manifest.has_layers(1, 4));
  EXPECT_FALSE(manifest.has_layers(-1, 2));
}

TEST(Manifest, SlabChecksumFollowsContent) {
  const TemporaryFolder folder;
  Manifest manifest = write_small_store(folder / "store");
  const std::uint64_t before = manifest.slab_checksum(1);
  EXPECT_EQ(manifest.slab_checksum(2), before);  // the same pattern in every layer
  manifest.slabs[1].parts[0].checksum ^= 1;
  EXPECT_NE(manifest.slab_checksum(1), before);
  manifest.slabs[1].parts[0].checksum ^= 1;
  manifest.spec.norm_epsilon *= 2;
  EXPECT_NE(manifest.slab_checksum(1), before);
}

TEST(Manifest, NewerVersionSaysSo) {
  Json json = small_manifest_json();
  json["version"] = kStoreVersion + 1;
  json["slabs"] = "not read any more";
  const Error error = error_of([&] { manifest_from_json(json, "m"); });
  EXPECT_EQ(error.kind(), ErrorKind::kData);
  EXPECT_NE(std::string(error.what()).find("newer"), std::string::npos) << error.what();
  EXPECT_NE(error.hint(), "");
}

// A JSON pointer and what to put there; "remove" takes the value away.
struct Mutation {
  const char* pointer;
  const char* value;
};

const Mutation kMutations[] = {
    {"", "[]"},
    {"", "null"},
    {"/format", "\"something\""},
    {"/format", "remove"},
    {"/version", "0"},
    {"/version", "3"},
    {"/version", "1.5"},
    {"/version", "\"1\""},
    {"/version", "remove"},
    {"/surprise", "1"},
    {"/name", "7"},
    {"/metadata", "{\"a\": 1}"},
    {"/metadata", "[]"},
    {"/model", "remove"},
    {"/model/hidden_size", "21"},
    {"/model/hidden_size", "-20"},
    {"/model/vocab_size", "4611686018427387904"},
    {"/model/vocab_size", "16777215"},
    {"/model/num_hidden_layers", "0"},
    {"/model/num_hidden_layers", "4"},
    {"/model/num_hidden_layers", "60000"},
    {"/model/surprise", "1"},
    {"/weights", "\"f64\""},
    {"/weights", "\"f32\""},
    {"/weights", "null"},
    {"/distinct_layers", "0"},
    {"/distinct_layers", "2"},
    {"/distinct_layers", "4"},
    {"/embedding", "\"layer-000.slab\""},
    {"/embedding", "null"},
    {"/embedding", "0"},
    {"/embedding", "remove"},
    {"/head", "\"elsewhere.slab\""},
    {"/layers", "[]"},
    {"/layers", "{}"},
    {"/layers/0", "null"},
    {"/layers/0", "\"layer-001.slab\""},
    {"/layers/0", "\"head.slab\""},
    {"/layers/0", "\"../layer-000.slab\""},
    {"/layers/3", "\"layer-000.slab\""},
    {"/slabs", "[]"},
    {"/slabs/1", "7"},
    {"/slabs/1/surprise", "1"},
    {"/slabs/1/file", "\"../layer-000.slab\""},
    {"/slabs/1/file", "\"/etc/layer-000.slab\""},
    {"/slabs/1/file", "\"a\\\\b.slab\""},
    {"/slabs/1/file", "\"a\\u0000.slab\""},
    {"/slabs/1/file", "\"..\""},
    {"/slabs/1/file", "\"manifest.json\""},
    {"/slabs/1/file", "\".slab\""},
    {"/slabs/1/file", "\"\""},
    {"/slabs/1/file", "\"layer-001.slab\""},
    {"/slabs/1/id", "17"},
    {"/slabs/1/id", "\"12\""},
    {"/slabs/1/id", "\"00000000000000zz\""},
    {"/slabs/1/id", "\"ABCDEF0123456789\""},
    {"/slabs/1/kind", "\"head\""},
    {"/slabs/1/kind", "\"expert\""},
    {"/slabs/1/bytes", "0"},
    {"/slabs/1/bytes", "9223372036854775807"},
    {"/slabs/1/bytes", "18446744073709551615"},
    {"/slabs/1/parts", "[]"},
    {"/slabs/1/parts/1", "remove"},
    {"/slabs/1/parts/0/part", "\"mlp\""},
    {"/slabs/1/parts/0/part", "\"body\""},
    {"/slabs/1/parts/0/offset", "0"},
    {"/slabs/1/parts/0/offset", "4097"},
    {"/slabs/1/parts/0/offset", "-4096"},
    {"/slabs/1/parts/0/offset", "9223372036854775807"},
    {"/slabs/1/parts/1/offset", "4096"},
    {"/slabs/1/parts/1/bytes", "1000000000000"},
    {"/slabs/1/parts/1/bytes", "-1"},
    {"/slabs/1/parts/0/checksum", "\"\""},
    {"/slabs/1/parts/0/tensors", "[]"},
    {"/slabs/1/parts/0/tensors/0", "remove"},
    {"/slabs/1/parts/0/tensors/2/role", "\"k_proj.weight\""},
    {"/slabs/1/parts/0/tensors/2/role", "\"r_proj.weight\""},
    {"/slabs/1/parts/0/tensors/2/shape", "[20]"},
    {"/slabs/1/parts/0/tensors/2/shape", "[20, 19]"},
    {"/slabs/1/parts/0/tensors/2/shape", "[0, 20]"},
    {"/slabs/1/parts/0/tensors/2/shape", "[-20, 20]"},
    {"/slabs/1/parts/0/tensors/2/shape", "[20, 1e1]"},
    {"/slabs/1/parts/0/tensors/2/shape", "[18446744073709551615, 20]"},
    {"/slabs/1/parts/0/tensors/2/shape", "[4611686018427387904, 4611686018427387904]"},
    {"/slabs/1/parts/0/tensors/2/dtype", "\"f32\""},
    {"/slabs/1/parts/0/tensors/2/dtype", "\"q9\""},
    {"/slabs/1/parts/0/tensors/2/layout", "\"rows.v1\""},
    {"/slabs/1/parts/0/tensors/2/layout", "\"p17.v1\""},
    {"/slabs/1/parts/0/tensors/2/dtype", "\"q4\""},
    {"/slabs/1/parts/0/tensors/2/layout", "\"q8.g32.v1\""},
    {"/slabs/1/parts/0/tensors/2/offset", "0"},
    {"/slabs/1/parts/0/tensors/2/offset", "1"},
    {"/slabs/1/parts/0/tensors/2/offset", "9223372036854775807"},
    {"/slabs/1/parts/0/tensors/2/bytes", "1"},
    {"/slabs/1/parts/0/tensors/2/checksum", "false"},
    {"/slabs/1/parts/0/tensors/2/surprise", "1"},
};

TEST(Manifest, EveryEditedFieldIsADataError) {
  const Json whole = small_manifest_json();
  ASSERT_NO_THROW(manifest_from_json(whole, "m"));
  for (const Mutation& mutation : kMutations) {
    const std::string description = fmt::format("{} := {}", mutation.pointer, mutation.value);
    const Json::json_pointer pointer(mutation.pointer);
    Json json = whole;
    if (std::string(mutation.value) == "remove") {
      Json& parent = json[pointer.parent_pointer()];
      if (parent.is_array())
        parent.erase(std::stoul(pointer.back()));
      else
        parent.erase(pointer.back());
    } else {
      json[pointer] = Json::parse(mutation.value);
    }
    EXPECT_EQ(error_of([&] { manifest_from_json(json, "m"); }).kind(), ErrorKind::kData)
        << description;
  }
}

TEST(Manifest, TruncatedTextIsADataError) {
  const TemporaryFolder folder;
  write_small_store(folder / "store");
  const std::string text = file_bytes(folder / "store/manifest.json");
  for (std::size_t length = 0; length < text.size() - 1; length += 97) {
    set_file_bytes(folder / "store/manifest.json", text.substr(0, length));
    EXPECT_EQ(error_of([&] { read_manifest(folder / "store"); }).kind(), ErrorKind::kData)
        << length;
  }
}

TEST(Manifest, SharedSlabsMustFitTheNumberOfDistinctLayers) {
  Json json = small_manifest_json();
  json["distinct_layers"] = 2;
  json["layers"] = {"layer-000.slab", "layer-001.slab", "layer-000.slab"};
  json["slabs"].erase(3);
  EXPECT_EQ(manifest_from_json(json, "m").layer_slab, (std::vector<int>{1, 2, 1}));
  json["layers"] = {"layer-000.slab", "layer-001.slab", "layer-001.slab"};
  EXPECT_EQ(error_of([&] { manifest_from_json(json, "m"); }).kind(), ErrorKind::kData);
}

TEST(Manifest, WhatIsNotAStoreIsNamed) {
  const TemporaryFolder folder;
  const Error missing = error_of([&] { read_manifest(folder / "nothing"); });
  EXPECT_EQ(missing.kind(), ErrorKind::kData);
  EXPECT_NE(std::string(missing.what()).find("is not a store"), std::string::npos);
  std::filesystem::create_directory(folder / "half");
  set_file_bytes(folder / "half/import.journal", "");
  const Error half = error_of([&] { read_manifest(folder / "half"); });
  EXPECT_NE(std::string(half.what()).find("not finished"), std::string::npos);
}

}  // namespace
}  // namespace stagecoach
