#include "model/tensor_catalog.h"

#include <gtest/gtest.h>

#include <set>

#include "small_specs.h"

namespace stagecoach {
namespace {

TEST(TensorCatalog, CountsTheParametersOfPublishedModels) {
  EXPECT_EQ(parameter_count(gpt2_spec()), 124439808);
  EXPECT_EQ(parameter_count(gptj_spec()), 6050882784);
  EXPECT_EQ(parameter_count(llama_spec()), 8030261248);
}

TEST(TensorCatalog, CountsGpt2LayerByHand) {
  // norms 4·768; q k v o each 768² + 768; up 768·3072 + 3072; down 3072·768 + 768
  const std::int64_t layer =
      4 * 768 + 4 * (768 * 768 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768);
  EXPECT_EQ(slab_weight_bytes(gpt2_spec(), SlabKind::kLayer, DType::kF32), 4 * layer);
}

const TensorSpec* find(const std::vector<TensorSpec>& tensors, TensorRole role) {
  for (const TensorSpec& tensor : tensors)
    if (tensor.role == role) return &tensor;
  return nullptr;
}

TEST(TensorCatalog, ATiedEmbeddingIsStoredForTheHead) {
  ModelSpec spec = gpt2_spec();
  auto embedding = slab_tensors(spec, SlabKind::kEmbedding, DType::kF16);
  auto head = slab_tensors(spec, SlabKind::kHead, DType::kF16);
  ASSERT_NE(find(embedding, TensorRole::kTokenEmbedding), nullptr);
  EXPECT_EQ(find(embedding, TensorRole::kTokenEmbedding)->layout, Layout::kPanels16);
  EXPECT_EQ(find(embedding, TensorRole::kPositionEmbedding)->layout, Layout::kRows);
  EXPECT_EQ(find(head, TensorRole::kHead), nullptr);
  EXPECT_NE(find(head, TensorRole::kFinalNormBias), nullptr);

  spec.tied_head = false;
  embedding = slab_tensors(spec, SlabKind::kEmbedding, DType::kF16);
  head = slab_tensors(spec, SlabKind::kHead, DType::kF16);
  EXPECT_EQ(find(embedding, TensorRole::kTokenEmbedding)->layout, Layout::kRows);
  ASSERT_NE(find(head, TensorRole::kHead), nullptr);
  EXPECT_EQ(find(head, TensorRole::kHead)->layout, Layout::kPanels16);
  EXPECT_EQ(find(head, TensorRole::kHead)->rows, 50257);
}

TEST(TensorCatalog, TheMlpNormOfAParallelBlockIsStagedWithItsAttention) {
  ModelSpec spec = gptj_spec();
  spec.residual = ResidualForm::kParallelTwoNorms;
  const auto layer = slab_tensors(spec, SlabKind::kLayer, DType::kF32);
  ASSERT_NE(find(layer, TensorRole::kMlpNorm), nullptr);
  EXPECT_EQ(find(layer, TensorRole::kMlpNorm)->part, PartKind::kAttention);
  EXPECT_EQ(find(layer, TensorRole::kMlpNormBias)->part, PartKind::kAttention);
  EXPECT_EQ(
      find(slab_tensors(gpt2_spec(), SlabKind::kLayer, DType::kF32), TensorRole::kMlpNorm)->part,
      PartKind::kMlp);
}

TEST(TensorCatalog, AProjectedEmbeddingIsNarrowOnBothSides) {
  ModelSpec spec = gpt2_spec();
  spec.embedding_size = 512;
  spec.final_norm = false;
  const auto embedding = slab_tensors(spec, SlabKind::kEmbedding, DType::kF16);
  EXPECT_EQ(find(embedding, TensorRole::kTokenEmbedding)->cols, 512);
  EXPECT_EQ(find(embedding, TensorRole::kEmbeddingProjection)->rows, 768);
  EXPECT_EQ(find(embedding, TensorRole::kPositionEmbedding)->cols, 768);
  const auto head = slab_tensors(spec, SlabKind::kHead, DType::kF16);
  EXPECT_EQ(find(head, TensorRole::kHeadProjection)->rows, 512);
  EXPECT_EQ(find(head, TensorRole::kFinalNorm), nullptr);
}

TEST(TensorCatalog, AParallelBlockHasOneNormAndRotaryModelsNoTable) {
  const auto layer = slab_tensors(gptj_spec(), SlabKind::kLayer, DType::kF32);
  EXPECT_NE(find(layer, TensorRole::kAttentionNorm), nullptr);
  EXPECT_EQ(find(layer, TensorRole::kMlpNorm), nullptr);
  EXPECT_EQ(find(layer, TensorRole::kMlpNormBias), nullptr);
  EXPECT_EQ(find(layer, TensorRole::kQueryBias), nullptr);
  EXPECT_EQ(find(layer, TensorRole::kGate), nullptr);
  EXPECT_NE(find(layer, TensorRole::kUpBias), nullptr);
  const auto embedding = slab_tensors(gptj_spec(), SlabKind::kEmbedding, DType::kF32);
  EXPECT_EQ(find(embedding, TensorRole::kPositionEmbedding), nullptr);
}

TEST(TensorCatalog, GroupedQueryShapes) {
  const auto layer = slab_tensors(llama_spec(), SlabKind::kLayer, DType::kBF16);
  EXPECT_EQ(find(layer, TensorRole::kQuery)->rows, 4096);
  EXPECT_EQ(find(layer, TensorRole::kKey)->rows, 1024);
  EXPECT_EQ(find(layer, TensorRole::kValue)->rows, 1024);
  EXPECT_EQ(find(layer, TensorRole::kAttentionOutput)->cols, 4096);
  EXPECT_EQ(find(layer, TensorRole::kGate)->rows, 14336);
  EXPECT_EQ(find(layer, TensorRole::kDown)->cols, 14336);
}

TEST(TensorCatalog, VectorsAreF32MatricesAreInTheWeightType) {
  for (const ModelSpec& spec : {gpt2_spec(), gptj_spec(), llama_spec()}) {
    for (SlabKind slab : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead}) {
      PartKind last = PartKind::kEmbedding;
      std::set<TensorRole> roles;
      for (const TensorSpec& tensor : slab_tensors(spec, slab, DType::kBF16)) {
        EXPECT_EQ(tensor.type, tensor.is_vector() ? DType::kF32 : DType::kBF16)
            << role_name(tensor.role);
        EXPECT_GE(tensor.part, last) << "parts are not in order at " << role_name(tensor.role);
        EXPECT_TRUE(roles.insert(tensor.role).second) << role_name(tensor.role);
        last = tensor.part;
      }
    }
  }
}

// Rotary models with an untied head have all three kinds: matrices, a gathered table, vectors.
TEST(TensorCatalog, QuantisedModelsHaveF16TablesAndF32Vectors) {
  const ModelSpec spec = gptj_spec();
  const auto embedding = slab_tensors(spec, SlabKind::kEmbedding, DType::kQ4);
  EXPECT_EQ(find(embedding, TensorRole::kTokenEmbedding)->type, DType::kF16);
  EXPECT_EQ(find(embedding, TensorRole::kTokenEmbedding)->layout, Layout::kRows);
  const auto layer = slab_tensors(spec, SlabKind::kLayer, DType::kQ4);
  EXPECT_EQ(find(layer, TensorRole::kUp)->type, DType::kQ4);
  EXPECT_EQ(find(layer, TensorRole::kUp)->layout, Layout::kQ4Groups32);
  EXPECT_EQ(find(layer, TensorRole::kUpBias)->type, DType::kF32);
  EXPECT_EQ(find(layer, TensorRole::kUp)->bytes(), 4 * 4096 * 4096 * 9 / 16);  // 4.5 bits
  EXPECT_EQ(
      find(slab_tensors(gpt2_spec(), SlabKind::kEmbedding, DType::kQ8), TensorRole::kTokenEmbedding)
          ->bytes(),
      (50257 + 15) / 16 * 16 * 768 * 17 / 16);  // tied: 8.5 bits, whole panels
}

TEST(TensorCatalog, NamesReadBack) {
  std::set<std::string_view> names;
  for (int i = 0; i < kTensorRoles; ++i) {
    const auto role = static_cast<TensorRole>(i);
    EXPECT_EQ(parse_role(role_name(role)), role);
    EXPECT_TRUE(names.insert(role_name(role)).second) << role_name(role);
  }
  for (PartKind part :
       {PartKind::kEmbedding, PartKind::kAttention, PartKind::kMlp, PartKind::kHead})
    EXPECT_EQ(parse_part(part_name(part)), part);
  EXPECT_EQ(parse_role("q_proj"), std::nullopt);
  EXPECT_EQ(parse_part(""), std::nullopt);
  EXPECT_EQ(tensor_name(TensorRole::kQuery, 3), "layers.3.q_proj.weight");
  EXPECT_EQ(tensor_name(TensorRole::kAttentionNorm, 0), "layers.0.attention_norm.weight");
  EXPECT_EQ(tensor_name(TensorRole::kDownBias, 95), "layers.95.down_proj.bias");
  EXPECT_EQ(tensor_name(TensorRole::kFinalNorm, 0), "final_norm.weight");
  EXPECT_EQ(tensor_name(TensorRole::kPositionEmbedding, 0), "position_embedding.weight");
}

}  // namespace
}  // namespace stagecoach
