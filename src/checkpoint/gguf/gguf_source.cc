// The GGUF file as a WeightSource.
#include <utility>

#include "base/error.h"
#include "checkpoint/foreign_text.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/gguf/gguf_config.h"
#include "checkpoint/import.h"
#include "checkpoint/mapped_source.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

std::string name_of(const GgufMetadata& metadata, const fs::path& path) {
  constexpr const char* kKey = "general.name";
  const std::string title = metadata.has(kKey) ? metadata.string(kKey) : std::string();
  return model_name_from(title.empty() ? path.stem().string() : title);
}

std::map<std::string, std::string> tokenizer_files(const GgufTokenizer& tokenizer,
                                                   const std::string& where) {
  if (tokenizer.model.empty()) return {};
  return gguf_tokenizer_files(tokenizer, where);
}

}  // namespace

std::unique_ptr<WeightSource> open_gguf(const fs::path& path, bool tokenizer) {
  auto [metadata, set] = read_gguf(path);
  const GgufTokenizer vocabulary = read_gguf_tokenizer(metadata);
  GgufModel model = resolve_gguf(metadata, vocabulary, set);
  std::map<std::string, std::string> files;
  if (tokenizer) files = tokenizer_files(vocabulary, metadata.where());
  return map_checkpoint({.spec = std::move(model.spec),
                         .names = model.names,
                         .set = std::move(set),
                         .tokenizer_files = std::move(files),
                         .default_name = name_of(metadata, path),
                         .identity = "gguf",
                         .where = path.string(),
                         .described_by = "its metadata"});
}

std::unique_ptr<WeightSource> open_checkpoint(const fs::path& path, bool tokenizer) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) return open_gguf(path, tokenizer);
  return open_huggingface(path);
}

std::map<std::string, std::string> checkpoint_tokenizer_files(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return read_tokenizer_files(path);
  const GgufMetadata metadata = read_gguf(path).metadata;
  return tokenizer_files(read_gguf_tokenizer(metadata), metadata.where());
}

}  // namespace stagecoach
