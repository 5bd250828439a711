// list, inspect, verify: looking at stores without running them.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "app/command.h"
#include "app/output.h"
#include "app/signals.h"
#include "base/byte_size.h"
#include "base/dtype_names.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "store/layer_store.h"

namespace stagecoach {
namespace {

std::int64_t total_bytes(const Manifest& manifest) {
  return std::accumulate(manifest.slabs.begin(), manifest.slabs.end(), std::int64_t{0},
                         [](std::int64_t sum, const SlabEntry& slab) { return sum + slab.bytes; });
}

// "96 of 96", "0:24 of 96": the layers that a store holds.
std::string held_layers(const Manifest& manifest) {
  const std::int64_t layers = manifest.spec.num_hidden_layers;
  if (manifest.has_layers(0, layers)) return std::to_string(layers);
  std::string ranges;
  for (std::int64_t begin = 0; begin < layers;) {
    std::int64_t end = begin;
    while (end < layers && manifest.has_layers(end, end + 1)) ++end;
    if (end > begin) ranges += fmt::format("{}{}:{}", ranges.empty() ? "" : ",", begin, end);
    begin = end + 1;
  }
  return fmt::format("{} of {}", ranges.empty() ? "none" : ranges, layers);
}

Json summary(const Manifest& manifest, const std::string& path) {
  return {{"store", path},
          {"name", manifest.name},
          {"version", manifest.version},
          {"metadata", manifest.metadata},
          {"weights", dtype_name(manifest.weights)},
          {"parameters", parameter_count(manifest.spec)},
          {"bytes", total_bytes(manifest)},
          {"layers", manifest.spec.num_hidden_layers},
          {"layers_held", held_layers(manifest)},
          {"distinct_layers", manifest.distinct_layers}};
}

void print_sharing_note(const Manifest& manifest) {
  if (manifest.distinct_layers < manifest.spec.num_hidden_layers)
    print(fmt::format("note: its {} layers share {} slabs (made with --distinct-layers)\n",
                      manifest.spec.num_hidden_layers, manifest.distinct_layers));
}

int run_list(const std::string& root, bool json) {
  std::error_code trouble;
  if (!std::filesystem::is_directory(root, trouble))
    throw data_error(
        fmt::format("{} is not a folder{}", root, trouble ? ": " + trouble.message() : ""),
        "check the path");
  const auto stores = find_stores(root);
  if (!json && stores.empty()) print(fmt::format("no stores under {}\n", root));
  if (!json && !stores.empty())
    print(fmt::format("{:<28} {:<10} {:<8} {:>10} {:>7} {:>10}  {}\n", "NAME", "VERSION", "FAMILY",
                      "PARAMETERS", "WEIGHTS", "SIZE", "LAYERS  STORE"));
  int code = 0;
  for (const auto& path : stores) {
    Manifest manifest;
    try {
      manifest = read_manifest(path);
    } catch (const Error& error) {
      // One broken store does not hide the others.
      spdlog::error("{}", error.what());
      code = error.exit_code();
      continue;
    }
    if (json) {
      print_json_line(summary(manifest, path.string()));
    } else {
      print(fmt::format(
          "{:<28} {:<10} {:<8} {:>10} {:>7} {:>10}  {}  {}\n", manifest.name, manifest.version,
          manifest.spec.family,
          fmt::format("{:.3g} M", static_cast<double>(parameter_count(manifest.spec)) * 1e-6),
          dtype_name(manifest.weights), format_bytes(total_bytes(manifest)), held_layers(manifest),
          path.string()));
    }
  }
  return code;
}

std::string positions_text(const ModelSpec& s) {
  std::string text;
  switch (s.position) {
    case PositionKind::kLearned:
      text = "learned positions";
      break;
    case PositionKind::kRotary:
      text = fmt::format("rotary positions on {} of {} dimensions", s.rotary_dim, s.head_dim);
      break;
    case PositionKind::kAlibi:
      text = "ALiBi";
      break;
  }
  if (s.sliding_window > 0) text += fmt::format(" in a window of {}", s.sliding_window);
  return text;
}

void print_spec(const Manifest& manifest) {
  const ModelSpec& s = manifest.spec;
  print(fmt::format("{} (version {}), {} in {}, {:.4g} M parameters, {}\n", manifest.name,
                    manifest.version, s.architecture, dtype_name(manifest.weights),
                    static_cast<double>(parameter_count(s)) * 1e-6,
                    format_bytes(total_bytes(manifest))));
  for (const auto& [key, value] : manifest.metadata) print(fmt::format("  {}: {}\n", key, value));
  print(
      fmt::format("  layers {}, hidden {}, intermediate {}, heads {} ({} key/value) of {}, "
                  "vocabulary {}, context {}\n",
                  held_layers(manifest), s.hidden_size, s.intermediate_size, s.num_attention_heads,
                  s.num_key_value_heads, s.head_dim, s.vocab_size, s.max_position_embeddings));
  print(fmt::format("  {} (eps {}) {} each branch, {} residual, {}, {} MLP with {}, {} head\n",
                    s.norm == NormAxis::kLayerNorm ? "LayerNorm" : "RMSNorm", s.norm_epsilon,
                    s.norm_placement == NormPlacement::kBefore ? "before" : "after",
                    s.residual == ResidualForm::kSequential ? "sequential" : "parallel",
                    positions_text(s), s.mlp == MlpKind::kGated ? "gated" : "plain",
                    activation_name(s.activation), s.tied_head ? "tied" : "own"));
}

int run_inspect(const std::string& store, bool json) {
  const Manifest manifest = read_manifest(store);
  if (json) {
    Json all = summary(manifest, store);
    all["spec"] = to_json(manifest.spec);
    all["slabs"] = Json::array();
    for (const SlabEntry& slab : manifest.slabs) {
      Json parts = Json::array();
      for (const PartEntry& part : slab.parts) {
        Json tensors = Json::array();
        for (const TensorEntry& tensor : part.tensors)
          tensors.push_back({{"name", role_name(tensor.spec.role)},
                             {"rows", tensor.spec.rows},
                             {"cols", tensor.spec.cols},
                             {"dtype", dtype_name(tensor.spec.type)},
                             {"layout", layout_name(tensor.spec.layout)},
                             {"bytes", tensor.spec.bytes()}});
        parts.push_back({{"part", part_name(part.kind)},
                         {"bytes", part.bytes},
                         {"checksum", hash_to_hex(part.checksum)},
                         {"tensors", tensors}});
      }
      all["slabs"].push_back({{"file", slab.file}, {"bytes", slab.bytes}, {"parts", parts}});
    }
    print_json_line(all);
    return 0;
  }
  print_spec(manifest);
  print_sharing_note(manifest);
  for (const SlabEntry& slab : manifest.slabs) {
    print(fmt::format("{:<18} {:>10}\n", slab.file, format_bytes(slab.bytes)));
    // Layers are alike: one is listed tensor by tensor.
    const bool listed =
        slab.kind != SlabKind::kLayer ||
        &slab == &*std::find_if(manifest.slabs.begin(), manifest.slabs.end(),
                                [](const SlabEntry& s) { return s.kind == SlabKind::kLayer; });
    if (!listed) continue;
    for (const PartEntry& part : slab.parts)
      for (const TensorEntry& tensor : part.tensors)
        print(fmt::format("  {:<10} {:<26} {:>7} x {:<7} {:<5} {:<8} {:>10}\n",
                          part_name(part.kind), role_name(tensor.spec.role), tensor.spec.rows,
                          tensor.spec.cols, dtype_name(tensor.spec.type),
                          layout_name(tensor.spec.layout), format_bytes(tensor.spec.bytes())));
  }
  return 0;
}

struct TensorPlace {
  const SlabEntry* slab;
  const PartEntry* part;
  const TensorEntry* tensor;
};

TensorPlace find_tensor(const LayerStore& store, const std::string& name) {
  const Manifest& manifest = store.manifest();
  const auto in_slab = [&](const SlabEntry& slab,
                           std::int64_t layer) -> std::optional<TensorPlace> {
    for (const PartEntry& part : slab.parts)
      for (const TensorEntry& tensor : part.tensors)
        if (tensor_name(tensor.spec.role, layer) == name) return TensorPlace{&slab, &part, &tensor};
    return std::nullopt;
  };
  for (int slab : {manifest.embedding_slab, manifest.head_slab})
    if (slab >= 0)
      if (auto place = in_slab(manifest.slabs[static_cast<std::size_t>(slab)], 0)) return *place;
  for (std::int64_t layer = 0; layer < manifest.spec.num_hidden_layers; ++layer) {
    if (!manifest.has_layers(layer, layer + 1)) continue;
    if (auto place = in_slab(store.layer_slab(layer), layer)) return *place;
  }
  throw usage_error(
      fmt::format("{} holds no tensor '{}'", store.root().string(), name),
      fmt::format(
          "stagecoach inspect {} lists them; a layer's are called like layers.0.q_proj.weight",
          store.root().string()));
}

int run_inspect_tensor(const std::string& root, const std::string& name, bool json) {
  const LayerStore store(root);
  const auto [slab, part, tensor] = find_tensor(store, name);
  std::vector<std::byte> extent(static_cast<std::size_t>(part->bytes));
  store.read_part(*slab, *part, extent, true);
  const TensorView view = part_tensors(*part, extent.data())[tensor->spec.role];

  double sum = 0, squares = 0, low = INFINITY, high = -INFINITY;
  std::int64_t zeros = 0, not_finite = 0;
  std::vector<float> row(static_cast<std::size_t>(view.cols)), first;
  for (std::int64_t r = 0; r < view.rows; ++r) {
    unpack_rows(view.layout, view.type, view.data, view.cols, r, 1, row.data());
    if (r == 0)
      first.assign(row.begin(), row.begin() + std::min<std::ptrdiff_t>(
                                                  8, static_cast<std::ptrdiff_t>(row.size())));
    for (float value : row) {
      if (!std::isfinite(value)) {
        ++not_finite;
        continue;
      }
      zeros += value == 0;
      sum += value;
      squares += static_cast<double>(value) * value;
      low = std::min<double>(low, value);
      high = std::max<double>(high, value);
    }
  }
  const double count = static_cast<double>(view.rows * view.cols - not_finite);
  const double mean = sum / count;
  const double deviation = std::sqrt(std::max(0.0, squares / count - mean * mean));
  if (json) {
    print_json_line({{"tensor", name},
                     {"slab", slab->file},
                     {"part", part_name(part->kind)},
                     {"rows", view.rows},
                     {"cols", view.cols},
                     {"dtype", dtype_name(view.type)},
                     {"layout", layout_name(view.layout)},
                     {"bytes", view.bytes()},
                     {"checksum", hash_to_hex(tensor->checksum)},
                     {"mean", mean},
                     {"std", deviation},
                     {"min", low},
                     {"max", high},
                     {"zeros", zeros},
                     {"not_finite", not_finite},
                     {"first", first}});
    return 0;
  }
  print(fmt::format("{} in {}, {} part: {} x {} {} {}, {}, checksum {}\n", name, slab->file,
                    part_name(part->kind), view.rows, view.cols, dtype_name(view.type),
                    layout_name(view.layout), format_bytes(view.bytes()),
                    hash_to_hex(tensor->checksum)));
  print(fmt::format(
      "  mean {:.6g}  std {:.6g}  min {:.6g}  max {:.6g}  zeros {}  not finite {}\n  first {}\n",
      mean, deviation, low, high, zeros, not_finite, fmt::join(first, " ")));
  return 0;
}

int run_verify(const std::string& root, bool json) {
  const LayerStore store(root);
  std::vector<std::string> problems;
  {
    Progress progress("verifying", ProgressUnit::kBytes, !json);
    problems = verify_store(
        store,
        {.progress = [&](std::int64_t done, std::int64_t total) { progress.update(done, total); },
         .interrupted = [] { return interrupt_requested.load(); }});
  }
  if (json) {
    print_json_line({{"store", root}, {"ok", problems.empty()}, {"problems", problems}});
  } else if (problems.empty()) {
    print(fmt::format("{}: whole; {} slabs, {} (layers {})\n", root, store.manifest().slabs.size(),
                      format_bytes(total_bytes(store.manifest())), held_layers(store.manifest())));
    print_sharing_note(store.manifest());
  }
  if (problems.empty()) return 0;
  std::string all = problems.front();
  for (std::size_t i = 1; i < problems.size(); ++i) all += "\n            " + problems[i];
  throw data_error(all, fmt::format("remove {} and import the checkpoint again", root));
}

}  // namespace

Command list_command(CLI::App& parent) {
  struct Flags {
    std::string root;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* app = parent.add_subcommand("list", "Stores under a folder, without loading them");
  app->add_option("ROOT", flags->root, "Folder that holds stores, or a store")->required();
  app->add_flag("--json", flags->json, "One JSON object a line");
  return {app, [flags] {
            setup_logging(Verbosity::kNormal, "");
            return run_list(flags->root, flags->json);
          }};
}

Command inspect_command(CLI::App& parent) {
  struct Flags {
    std::string store, tensor;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* app =
      parent.add_subcommand("inspect", "Model, layers, tensors, sizes and metadata of a store");
  app->add_option("STORE", flags->store, "Store directory")->required();
  app->add_option("--tensor", flags->tensor, "Summarise one tensor, like layers.0.q_proj.weight")
      ->type_name("NAME");
  app->add_flag("--json", flags->json, "As JSON");
  return {app, [app, flags] {
            return app->count("--tensor") == 0
                       ? run_inspect(flags->store, flags->json)
                       : run_inspect_tensor(flags->store, flags->tensor, flags->json);
          }};
}

Command verify_command(CLI::App& parent) {
  struct Flags {
    std::string store;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* app =
      parent.add_subcommand("verify", "Read every byte of a store and compare checksums");
  app->add_option("STORE", flags->store, "Store directory")->required();
  app->add_flag("--json", flags->json, "As JSON");
  return {app, [flags] { return run_verify(flags->store, flags->json); }};
}

}  // namespace stagecoach
