#include "store/manifest.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/dtype_names.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "store/slab_format.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "stagecoach-store";
constexpr std::int64_t kMaxManifestBytes = std::int64_t{256} << 20;  // 10⁶ tensors

Json slab_reference(const Manifest& manifest, int slab) {
  if (slab < 0) return nullptr;
  return manifest.slabs[static_cast<std::size_t>(slab)].file;
}

// Breaks lines only around what does not fit on one.
void print(const Json& json, int indent, std::string& text) {
  constexpr std::size_t kLineLength = 240;
  // Names come from command lines, which need not be UTF-8.
  const std::string line = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (line.size() <= kLineLength || !json.is_structured() || json.empty()) {
    text += line;
    return;
  }
  const bool object = json.is_object();
  const std::string margin(static_cast<std::size_t>(indent) + 1, ' ');
  text += object ? "{" : "[";
  bool first = true;
  for (const auto& item : json.items()) {
    text += first ? "\n" : ",\n";
    first = false;
    text += margin;
    if (object) text += Json(item.key()).dump() + ": ";
    print(item.value(), indent + 1, text);
  }
  text += '\n' + margin.substr(1) + (object ? '}' : ']');
}

void check_format(const JsonObject& root) {
  if (root.string_or("format", "") != kFormat)
    throw data_error(fmt::format("{} is not a store's manifest: expected \"format\": \"{}\"",
                                 root.where(), kFormat));
  const std::int64_t version = root.integer("version");
  if (version > kStoreVersion)
    throw data_error(
        fmt::format("{} was written by a newer Stagecoach: expected store version {}, "
                    "found {}",
                    root.where(), kStoreVersion, version),
        "install that Stagecoach here too, or import the checkpoint again with this one");
  if (version < kStoreVersion)
    throw data_error(fmt::format("{} was written by an older Stagecoach: expected store version "
                                 "{}, found {}",
                                 root.where(), kStoreVersion, version),
                     "import the checkpoint again with this one");
}

std::map<std::string, std::string> metadata_from_json(const JsonObject& object) {
  std::map<std::string, std::string> metadata;
  for (const auto& item : object.json().items())
    metadata.emplace(item.key(), object.string(item.key().c_str()));
  return metadata;
}

// Turns the slabs' file names into indices, and sees to it that each slab serves what it is made
// for.
class SlabReferences {
 public:
  SlabReferences(const std::vector<SlabEntry>& slabs, std::string where)
      : slabs_(slabs), where_(std::move(where)), used_(slabs.size(), false) {
    std::set<std::uint64_t> ids;
    for (std::size_t i = 0; i < slabs.size(); ++i) {
      if (!index_.emplace(slabs[i].file, static_cast<int>(i)).second ||
          !ids.insert(slabs[i].id).second)
        throw data_error(
            fmt::format("{}: the file or the id of {} stands twice", where_, slabs[i].file));
    }
  }

  int resolve(const Json& reference, SlabKind kind) {
    if (reference.is_null()) return -1;
    const auto found =
        reference.is_string() ? index_.find(reference.get<std::string>()) : index_.end();
    if (found == index_.end())
      throw data_error(fmt::format("{}: expected null or the file of a slab, found {}", where_,
                                   reference.dump(-1, ' ', false, Json::error_handler_t::replace)));
    const auto index = static_cast<std::size_t>(found->second);
    if (slabs_[index].kind != kind)
      throw data_error(fmt::format("{}: {} should be of kind \"{}\", found \"{}\"", where_,
                                   found->first, slab_kind_name(kind),
                                   slab_kind_name(slabs_[index].kind)));
    used_[index] = true;
    return found->second;
  }

  void require_all_used() const {
    for (std::size_t i = 0; i < slabs_.size(); ++i)
      if (!used_[i])
        throw data_error(fmt::format("{}: {} serves no layer", where_, slabs_[i].file));
  }

 private:
  const std::vector<SlabEntry>& slabs_;
  std::string where_;
  std::map<std::string, int> index_;
  std::vector<bool> used_;
};

// Layers l and m share a slab exactly when l ≡ m modulo distinct_layers.
void check_sharing(const Manifest& manifest, const std::string& where) {
  std::map<std::int64_t, int> slab_of;
  std::map<int, std::int64_t> residue_of;
  for (std::size_t l = 0; l < manifest.layer_slab.size(); ++l) {
    const int slab = manifest.layer_slab[l];
    if (slab < 0) continue;
    const std::int64_t residue = static_cast<std::int64_t>(l) % manifest.distinct_layers;
    if (slab_of.emplace(residue, slab).first->second != slab ||
        residue_of.emplace(slab, residue).first->second != residue)
      throw data_error(fmt::format("{}: layer {} uses {}, which does not fit {} distinct layers",
                                   where, l, manifest.slabs[static_cast<std::size_t>(slab)].file,
                                   manifest.distinct_layers));
  }
}

void check_layouts(const Manifest& manifest, const std::string& where) {
  for (const SlabEntry& slab : manifest.slabs) {
    const auto tensors = slab_tensors(manifest.spec, slab.kind, manifest.weights);
    const std::string difference =
        layout_difference(plan_slab(slab.file, slab.kind, slab.id, tensors), slab);
    if (!difference.empty())
      throw data_error(
          fmt::format("{}: {} does not fit the model: {}", where, slab.file, difference));
  }
}

}  // namespace

const PartEntry* SlabEntry::part(PartKind wanted) const {
  for (const PartEntry& part : parts)
    if (part.kind == wanted) return &part;
  return nullptr;
}

bool Manifest::has_layers(std::int64_t begin, std::int64_t end) const {
  if (begin < 0 || begin > end || end > static_cast<std::int64_t>(layer_slab.size())) return false;
  return std::all_of(layer_slab.begin() + begin, layer_slab.begin() + end,
                     [](int slab) { return slab >= 0; });
}

std::uint64_t Manifest::slab_checksum(int slab) const {
  const SlabEntry& entry = slabs[static_cast<std::size_t>(slab)];
  StreamingHash hash;
  hash.update(as_bytes(stagecoach::to_json(spec).dump()));
  hash.update(as_bytes(dtype_name(weights)));
  // Ids and file names stay out: they do not change what a rank computes.
  hash.update(as_bytes(slab_kind_name(entry.kind)));
  for (const PartEntry& part : entry.parts) hash.update(as_bytes(hash_to_hex(part.checksum)));
  return hash.digest();
}

Json to_json(const Manifest& manifest) {
  Json layers = Json::array();
  for (const int slab : manifest.layer_slab) layers.push_back(slab_reference(manifest, slab));
  Json slabs = Json::array();
  for (const SlabEntry& slab : manifest.slabs) slabs.push_back(to_json(slab));
  return {{"format", kFormat},
          {"version", kStoreVersion},
          {"name", manifest.name},
          {"model_version", manifest.version},
          {"metadata", Json(manifest.metadata)},
          {"model", to_json(manifest.spec)},
          {"weights", dtype_name(manifest.weights)},
          {"distinct_layers", manifest.distinct_layers},
          {"embedding", slab_reference(manifest, manifest.embedding_slab)},
          {"layers", std::move(layers)},
          {"head", slab_reference(manifest, manifest.head_slab)},
          {"slabs", std::move(slabs)}};
}

std::string manifest_text(const Manifest& manifest) {
  std::string text;
  print(to_json(manifest), 0, text);
  return text + '\n';
}

Manifest manifest_from_json(const Json& json, const std::string& where) {
  const JsonObject root(json, where);
  check_format(root);
  root.only({"format", "version", "name", "model_version", "metadata", "model", "weights",
             "distinct_layers", "embedding", "layers", "head", "slabs"});
  Manifest manifest;
  manifest.name = root.string("name");
  manifest.version = root.string("model_version");
  manifest.metadata = metadata_from_json(root.object("metadata"));
  manifest.spec = model_spec_from_json(root.at("model"), where + ": \"model\"");
  manifest.spec.validate(where);
  const std::string weights = root.string("weights");
  const std::optional<DType> type = parse_dtype(weights);
  if (!type) throw data_error(fmt::format("{}: unknown weight type \"{}\"", where, weights));
  manifest.weights = *type;
  const std::int64_t layers = manifest.spec.num_hidden_layers;
  manifest.distinct_layers = root.integer_in("distinct_layers", 1, layers);

  for (const Json& slab : root.array("slabs"))
    manifest.slabs.push_back(slab_from_json(slab, where));
  check_layouts(manifest, where);

  SlabReferences references(manifest.slabs, where);
  const Json& layer_files = root.array("layers");
  if (static_cast<std::int64_t>(layer_files.size()) != layers)
    throw data_error(fmt::format("{}: \"layers\" should have {} entries, found {}", where, layers,
                                 layer_files.size()));
  manifest.embedding_slab = references.resolve(root.at("embedding"), SlabKind::kEmbedding);
  for (const Json& file : layer_files)
    manifest.layer_slab.push_back(references.resolve(file, SlabKind::kLayer));
  manifest.head_slab = references.resolve(root.at("head"), SlabKind::kHead);
  references.require_all_used();
  check_sharing(manifest, where);
  if (manifest.spec.tied_head && manifest.head_slab >= 0 && manifest.embedding_slab < 0)
    throw data_error(
        fmt::format("{}: the head is tied to the token embedding, which is missing", where));
  return manifest;
}

Manifest read_manifest(const fs::path& store) {
  std::error_code ignored;
  const fs::path path = store / kManifestFile;
  if (!fs::exists(path, ignored)) {
    if (fs::exists(store / kJournalFile, ignored))
      throw data_error(fmt::format("{} holds an import that is not finished", store.string()),
                       "run the same import command again: it continues where it stopped");
    throw data_error(fmt::format("{} is not a store: expected a folder with a {} in it",
                                 store.string(), kManifestFile),
                     "stagecoach import CHECKPOINT STORE makes one");
  }
  try {
    return manifest_from_json(read_json_file(path, kMaxManifestBytes), path.string());
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kData || !error.hint().empty()) throw;
    throw data_error(error.what(),
                     fmt::format("copy {} from another host that has this store, or import the "
                                 "checkpoint into a new one",
                                 kManifestFile));
  }
}

}  // namespace stagecoach
