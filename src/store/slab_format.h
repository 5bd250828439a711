// One slab: where its bytes stand, its header, its JSON. docs/store-format.md draws the picture.
//
// Offsets and lengths follow from the catalog alone, so there is exactly one valid layout of a
// slab: readers compare what a manifest says with it instead of judging foreign extents one by one.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "store/manifest.h"

namespace stagecoach {

inline constexpr std::int64_t kTensorAlignment = 64;  // a cache line, and the widest vector load

// The entry of a slab with every offset and length set; checksums are zero.
SlabEntry plan_slab(std::string file, SlabKind kind, std::uint64_t id,
                    const std::vector<TensorSpec>& tensors);

// The first thing, checksums aside, in which `found` differs from `expected` ("the mlp part:
// offset: expected 8192, found 4096"); empty when they agree.
std::string layout_difference(const SlabEntry& expected, const SlabEntry& found);

// Names model, weight type and place, not content: two PCs that import their own share of one
// checkpoint get equal ids, and a slab renamed to another layer's is noticed by its header.
std::uint64_t slab_id(const ModelSpec& spec, DType weights, std::string_view file);

// The first 4 KiB of a slab.
using SlabHeader = std::array<std::byte, kSlabAlignment>;
SlabHeader slab_header(const SlabEntry& slab);
// Throws data_error, without a hint, when `header` is not that of `slab`; `where` names the file.
void check_slab_header(const SlabHeader& header, const SlabEntry& slab, const std::string& where);

// The file of `slab`, its length and header checked. Throws data_error, without a hint.
File open_slab_file(const std::filesystem::path& path, const SlabEntry& slab);

std::string_view slab_kind_name(SlabKind kind);  // "embedding", "layer", "head"

// slab_from_json checks types, names and keys; extents are the business of layout_difference.
Json to_json(const SlabEntry& slab);
SlabEntry slab_from_json(const Json& json, const std::string& where);

}  // namespace stagecoach
