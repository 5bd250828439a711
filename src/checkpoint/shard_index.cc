#include "checkpoint/shard_index.h"

#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/foreign_text.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxIndexBytes = 64 << 20;
constexpr std::size_t kMaxShards = 10000;  // each stays open while the checkpoint is

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

ShardIndex read_shard_index(const fs::path& path) {
  const std::string where = path.string();
  const Json json = read_json_file(path, kMaxIndexBytes);
  ShardIndex index{.path = path, .file_of = {}, .files = {}};
  // "metadata" with its total_size is advisory: some writers get it wrong.
  const JsonObject map = JsonObject(json, where).object("weight_map");
  for (const auto& [name, value] : map.json().items()) {
    if (!value.is_string())
      throw data_error(fmt::format("{}: \"weight_map\" should map {} to a file name, found {}",
                                   where, quote_name(name), value.type_name()));
    const auto file = value.get<std::string>();
    check_basename(file, where);
    index.files.insert(file);
    index.file_of.emplace(name, file);
  }
  if (index.files.size() > kMaxShards)
    throw data_error(fmt::format("{} names {} files, expected at most {}", where,
                                 index.files.size(), kMaxShards));
  for (const std::string& file : index.files) {
    std::error_code error;  // what cannot be looked at is opened, and the error then says why
    if (!fs::exists(path.parent_path() / file, error) && !error)
      throw data_error(fmt::format("{} names {}, which is missing", where, quote_name(file)),
                       "fetch the missing shard");
  }
  return index;
}

void check_agreement(const ShardIndex& index, const TensorSet& set) {
  const std::string where = index.path.string();
  for (const auto& [name, file] : index.file_of) {
    const auto found = set.tensors.find(name);
    if (found == set.tensors.end())
      throw data_error(fmt::format("{} places tensor {} in {}, found it in no shard", where,
                                   quote_name(name), quote_name(file)));
    const std::string actual = found->second.file->path().filename().string();
    if (actual != file)
      throw data_error(fmt::format("{} places tensor {} in {}, found it in {}", where,
                                   quote_name(name), quote_name(file), quote_name(actual)));
  }
  for (const auto& [name, tensor] : set.tensors) {
    if (!index.file_of.contains(name))
      throw data_error(fmt::format("{} does not list tensor {} of {}", where, quote_name(name),
                                   tensor.file->path().filename().string()));
  }
}

void add_tensor(TensorSet& set, const std::string& name, StoredTensor tensor) {
  const std::string file = tensor.file->path().string();
  const auto [it, fresh] = set.tensors.emplace(name, std::move(tensor));
  if (!fresh)
    throw data_error(fmt::format("tensor {} stands in two shards, {} and {}", quote_name(name),
                                 it->second.file->path().string(), file));
}

}  // namespace stagecoach
