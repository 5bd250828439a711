// Family descriptions (configs/models/*.json, compiled in): how one family's config.json and tensor
// names map onto ModelSpec's axes and the catalog's roles. A new family is a new file there, not
// code here.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "model/tensor_catalog.h"

namespace stagecoach {

// Where a value stands in config.json.
struct ConfigValue {
  std::vector<std::string> keys;      // spellings; those that are present must agree
  std::vector<std::string> old_keys;  // asked only when none of `keys` is present
  // When no key is present, since Hugging Face writes only what differs from its defaults. For
  // sizes a number or an expression over other sizes: "head_dim", "4 * hidden_size", "hidden_size /
  // n".
  Json fallback;
  // What the config's value (as JSON text) means, where it is not the axis's own: {"true":
  // "before"}.
  std::map<std::string, Json> values = {};
  std::vector<std::string> off_when = {};  // keys each of which, when true, makes the axis false
};

// One tensor of the checkpoint and what it holds.
struct TensorPattern {
  std::string source;                       // name with {prefix} and {layer}
  std::vector<std::string> spellings = {};  // other names that it may have instead
  std::vector<TensorRole> roles;            // stacked along the output rows, in this order
  bool transposed = false;                  // stored (in, out), as GPT-2's Conv1D does
  bool interleaved_rotary = false;  // rotary pairs are neighbours: permuted to half-split on import
  bool fused_per_head = false;  // the roles take turns head by head: rows (heads, roles, head_dim)
  std::int64_t skipped_rows = 0;  // leading rows that hold nothing: OPT's positions begin at 2

  bool per_layer() const { return source.find("{layer}") != std::string::npos; }
};

// How one kind of container names a family's tensors.
struct TensorNames {
  std::vector<std::string> prefixes;
  std::vector<TensorPattern> tensors;
  std::vector<std::string> dropped;  // buffers, not weights
  // Parts of names as early writers spelled them, and as `tensors` and `dropped` do.
  std::vector<std::pair<std::string, std::string>> old_parts = {};
};

// How GGUF files describe a family and name its tensors. Their metadata become a config.json, so
// that axes and their checks exist once.
struct GgufDescription {
  std::vector<std::string> architectures;  // general.architecture
  // Of families that share an architecture's name: the key whose presence (other than 0) says that
  // a file is this one's. Empty: the files that no other claims.
  std::string when = {};
  // Metadata keys, without the architecture before them, and config.json's keys for the same.
  std::map<std::string, std::string> keys, optional_keys;
  std::map<std::string, std::string> flags;  // config.json's keys: true where this tensor exists
  Json config;                               // what is so in every such file, as in config.json
  TensorNames names;
};

struct RotarySettings {
  ConfigValue theta;
  bool scaling = false;  // reads rope_scaling and rope_parameters
  // The share of each head's dimensions that rotate; rotary_dim is then what it comes to.
  std::optional<ConfigValue> partial = {};
};

struct Family {
  std::string name;
  std::vector<std::string> architectures, model_types;
  std::map<std::string, ConfigValue> spec;  // by ModelSpec's field name
  std::optional<RotarySettings> rotary;     // present if the positions are
  // Keys that would change results: the values with which this build computes the right thing.
  std::map<std::string, std::vector<Json>> accepted;
  std::vector<std::string> ignored;  // keys that change nothing in inference
  TensorNames names;                 // in Hugging Face's checkpoints
  std::optional<GgufDescription> gguf;
};

// Throws kInternal for anything unknown or missing: descriptions are ours.
Family parse_family(const Json& json, const std::string& where);

// All that are compiled in.
const std::vector<Family>& families();

// By architectures[0], or by model_type where a config names no architecture. Throws data_error
// naming what was found and listing what works.
const Family& find_family(const JsonObject& config);

// `pattern` with its placeholders filled in.
std::string expand_pattern(const std::string& pattern, const std::string& prefix,
                           std::int64_t layer);

}  // namespace stagecoach
