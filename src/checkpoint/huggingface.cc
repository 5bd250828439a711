// The Hugging Face directory as a WeightSource.
#include <memory>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "checkpoint/family.h"
#include "checkpoint/foreign_text.h"
#include "checkpoint/import.h"
#include "checkpoint/mapped_source.h"
#include "checkpoint/pytorch/pytorch_set.h"
#include "checkpoint/safetensors/safetensors_set.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxConfigBytes = 16 << 20;

// A path that cannot be looked at counts as there, and so does a link to nowhere (a snapshot of
// Hugging Face's cache that was copied without its blobs): opening it then says what is wrong.
bool present(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  return status.type() != fs::file_type::not_found;
}

// The directory's name in lower case. In Hugging Face's cache, where that is a commit
// (models--OWNER--NAME/snapshots/COMMIT), the model's.
std::string name_of(const fs::path& directory) {
  const fs::path full = fs::canonical(directory);
  std::string name = full.filename().string();
  const std::string repository = full.parent_path().parent_path().filename().string();
  if (full.parent_path().filename() == "snapshots" && repository.starts_with("models--"))
    name = repository.substr(repository.rfind("--") + 2);
  return model_name_from(name);
}

// The command that imports a GGUF file of the directory, or nothing where there is none.
std::string gguf_command(const fs::path& directory) {
  std::string first;
  std::error_code ignored;
  for (const fs::directory_entry& item : fs::directory_iterator(directory, ignored)) {
    const std::string path = item.path().string();
    if (path.ends_with(".gguf") && (first.empty() || path < first)) first = path;
  }
  return first.empty() ? first : fmt::format("stagecoach import {} STORE", first);
}

struct Description {
  ModelSpec spec;
  const Family* family = nullptr;
  std::string identity;
};

Description read_config(const fs::path& directory) {
  const fs::path path = directory / "config.json",
                 generation_path = directory / "generation_config.json";
  std::error_code error;
  if (!fs::is_directory(directory, error))
    throw data_error(
        fmt::format("{} is not a directory", directory.string()),
        "pass the folder that holds config.json and model.safetensors, or a .gguf file");
  if (!present(path)) {
    const std::string command = gguf_command(directory);
    throw data_error(
        fmt::format("{} holds no config.json", directory.string()),
        command.empty() ? "pass the folder that holds config.json and model.safetensors" : command);
  }
  const std::string text = read_text_file(path, kMaxConfigBytes);
  Description result;
  result.identity = fmt::format("huggingface config.json {}", hash_to_hex(xxh3(as_bytes(text))));
  const Json config = parse_json(text, path.string());
  Json generation;
  if (present(generation_path)) {
    const std::string overrides = read_text_file(generation_path, kMaxConfigBytes);
    result.identity +=
        fmt::format("; generation_config.json {}", hash_to_hex(xxh3(as_bytes(overrides))));
    generation = parse_json(overrides, generation_path.string());
  }
  result.family = &find_family(JsonObject(config, path.string()));
  result.spec = resolve_config(config, generation.is_null() ? nullptr : &generation, path.string());
  return result;
}

// Says what a folder without weights holds instead.
Error nothing_to_read(const fs::path& directory) {
  std::string other;
  std::error_code ignored;
  for (const fs::directory_entry& item : fs::directory_iterator(directory, ignored)) {
    const std::string name = item.path().filename().string();
    const bool foreign = name.ends_with(".bin") || name.ends_with(".pt") ||
                         name.ends_with(".pth") || name.ends_with(".gguf") ||
                         name.ends_with(".safetensors");
    if (foreign && (other.empty() || name < other)) other = name;
  }
  const std::string problem =
      fmt::format("{} holds no model.safetensors, no pytorch_model.bin and no index of either",
                  directory.string());
  if (other.empty()) return data_error(problem, "point at a Hugging Face checkpoint directory");
  if (other.ends_with(".gguf"))
    return data_error(fmt::format("{}, found {}", problem, quote_name(other)),
                      gguf_command(directory));
  const bool safetensors = other.ends_with(".safetensors");
  return data_error(fmt::format("{}, found {}", problem, quote_name(other)),
                    fmt::format("if that is the whole model, rename it to {}; shards need their "
                                "index next to them",
                                safetensors ? "model.safetensors" : "pytorch_model.bin"));
}

TensorSet open_weights(const fs::path& directory) {
  if (holds_safetensors(directory)) return open_safetensors(directory);
  if (holds_pytorch(directory)) return open_pytorch(directory);
  throw nothing_to_read(directory);
}

}  // namespace

std::unique_ptr<WeightSource> open_huggingface(const fs::path& directory) {
  Description described = read_config(directory);
  return map_checkpoint({.spec = std::move(described.spec),
                         .names = &described.family->names,
                         .set = open_weights(directory),
                         .tokenizer_files = read_tokenizer_files(directory),
                         .default_name = name_of(directory),
                         .identity = std::move(described.identity),
                         .where = directory.string(),
                         .described_by = "config.json"});
}

}  // namespace stagecoach
