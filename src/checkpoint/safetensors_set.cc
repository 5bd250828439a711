#include "checkpoint/safetensors_set.h"

#include <set>

#include "base/error.h"
#include "base/json.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxIndexBytes = 64 << 20;
constexpr std::size_t kMaxShards = 10000;  // each stays open while the checkpoint is

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
  const std::string problem = fmt::format(
      "{} holds neither model.safetensors nor model.safetensors.index.json", directory.string());
  if (other.empty()) return data_error(problem, "point at a Hugging Face checkpoint directory");
  if (other.ends_with(".safetensors"))
    return data_error(
        fmt::format("{}, found {}", problem, quote_name(other)),
        "rename a single file to model.safetensors; shards need their index next to them");
  if (other.ends_with(".gguf"))
    return data_error(fmt::format("{}; GGUF ({}) is not supported yet", problem, quote_name(other)),
                      "fetch the model's original safetensors checkpoint");
  return data_error(
      fmt::format("{}; PyTorch files ({}) are not supported yet", problem, quote_name(other)),
      "convert with: python3 -c \"from transformers import AutoModelForCausalLM as M; "
      "M.from_pretrained('DIR').save_pretrained('NEWDIR', safe_serialization=True)\"");
}

// A shard is a file of this very directory: an index must not reach out of it.
void check_basename(const std::string& name, const std::string& where) {
  const bool plain = !name.empty() &&
                     name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos &&
                     name.find("..") == std::string::npos;
  if (!plain)
    throw data_error(
        fmt::format("{}: \"weight_map\" should name files of its own directory, found {}", where,
                    quote_name(name)));
}

}  // namespace

SafetensorsSet::SafetensorsSet(const fs::path& directory) {
  const fs::path single = directory / "model.safetensors";
  const fs::path index = directory / "model.safetensors.index.json";
  // The order in which Hugging Face looks.
  std::error_code error;  // what cannot be looked at is opened, and the error then says why
  if (fs::exists(single, error) || error) {
    add_shard(single);
  } else if (fs::exists(index, error) || error) {
    open_indexed(index);
  } else {
    throw nothing_to_read(directory);
  }
}

void SafetensorsSet::add_shard(const fs::path& file) {
  shards_.push_back(std::make_unique<SafetensorsFile>(file));
  const SafetensorsFile& shard = *shards_.back();
  for (const auto& [name, entry] : shard.tensors()) {
    const auto [it, fresh] = tensors_.emplace(name, FoundTensor{&shard, &entry});
    if (!fresh)
      throw data_error(fmt::format("tensor {} stands in two shards, {} and {}", quote_name(name),
                                   it->second.shard->file().path().string(), file.string()));
  }
}

void SafetensorsSet::open_indexed(const fs::path& index) {
  const std::string where = index.string();
  const Json json = read_json_file(index, kMaxIndexBytes);
  // "metadata" with its total_size is advisory: some writers get it wrong.
  const JsonObject map = JsonObject(json, where).object("weight_map");
  std::set<std::string> files;
  for (const auto& [name, value] : map.json().items()) {
    if (!value.is_string())
      throw data_error(fmt::format("{}: \"weight_map\" should map {} to a file name, found {}",
                                   where, quote_name(name), value.type_name()));
    const auto file = value.get<std::string>();
    check_basename(file, where);
    files.insert(file);
  }
  if (files.size() > kMaxShards)
    throw data_error(
        fmt::format("{} names {} files, expected at most {}", where, files.size(), kMaxShards));
  for (const std::string& file : files) {
    std::error_code error;
    if (!fs::exists(index.parent_path() / file, error) && !error)
      throw data_error(fmt::format("{} names {}, which is missing", where, quote_name(file)),
                       "fetch the missing shard");
    add_shard(index.parent_path() / file);
  }
  for (const auto& [name, value] : map.json().items()) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end())
      throw data_error(fmt::format("{} places tensor {} in {}, found it in no shard", where,
                                   quote_name(name), quote_name(value.get<std::string>())));
    const std::string actual = found->second.shard->file().path().filename().string();
    if (actual != value.get<std::string>())
      throw data_error(fmt::format("{} places tensor {} in {}, found it in {}", where,
                                   quote_name(name), quote_name(value.get<std::string>()),
                                   quote_name(actual)));
  }
  for (const auto& [name, found] : tensors_) {
    if (!map.json().contains(name))
      throw data_error(fmt::format("{} does not list tensor {} of {}", where, quote_name(name),
                                   found.shard->file().path().filename().string()));
  }
}

}  // namespace stagecoach
