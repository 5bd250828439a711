#include <memory>
#include <tuple>

#include "app/command.h"
#include "app/output.h"
#include "app/settings.h"
#include "app/signals.h"
#include "backend/cpu/cpu_backend.h"
#include "base/byte_size.h"
#include "base/clock.h"
#include "base/dtype_names.h"
#include "base/error.h"
#include "base/log.h"
#include "checkpoint/import.h"
#include "plan/stage_plan.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

// What import and create have in common.
struct WriteFlags {
  std::string store, weights, name, version = "1";
  std::vector<std::string> metadata;
  int threads = 0;
  bool quiet = false, json = false;
};

void add_write_flags(CLI::App& app, WriteFlags& flags) {
  app.add_option("STORE", flags.store, "Directory to create")->required();
  app.add_option("--weights", flags.weights,
                 "Type of the matrices (default: the source's own; f32 for a preset)")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "q8", "q4"}));
  app.add_option("--name", flags.name, "Name of the model in the store (default: the source's)");
  app.add_option("--model-version", flags.version, "Version of the model in the store")
      ->capture_default_str();
  app.add_option("--metadata", flags.metadata, "KEY=VALUE to keep in the manifest (repeatable)")
      ->type_name("KEY=VALUE");
  app.add_option("--threads", flags.threads, "Threads that convert (default: all allowed cores)")
      ->check(integer_in(1, 4096));
  app.add_flag("--quiet", flags.quiet, "No progress");
  app.add_flag("--json", flags.json, "The result as JSON");
}

ImportOptions options_from(const WriteFlags& flags, Progress& progress) {
  ImportOptions options;
  if (!flags.weights.empty()) options.weights = parse_dtype(flags.weights);
  options.threads = flags.threads > 0 ? flags.threads : allowed_cpus();
  options.name = flags.name;
  options.version = flags.version;
  for (const std::string& pair : flags.metadata) {
    const std::size_t equals = pair.find('=');
    if (equals == std::string::npos || equals == 0)
      throw usage_error(fmt::format("--metadata should be KEY=VALUE, found '{}'", pair));
    options.metadata[pair.substr(0, equals)] = pair.substr(equals + 1);
  }
  options.progress = [&progress](std::int64_t done, std::int64_t total) {
    progress.update(done, total);
  };
  options.interrupted = [] { return interrupt_requested.load(); };
  return options;
}

void report_store(const WriteFlags& flags, const Manifest& manifest, double seconds) {
  std::int64_t bytes = 0;
  for (const SlabEntry& slab : manifest.slabs) bytes += slab.bytes;
  if (flags.json) {
    print_json_line({{"store", flags.store},
                     {"name", manifest.name},
                     {"weights", dtype_name(manifest.weights)},
                     {"parameters", parameter_count(manifest.spec)},
                     {"bytes", bytes},
                     {"slabs", manifest.slabs.size()},
                     {"distinct_layers", manifest.distinct_layers},
                     {"seconds", seconds}});
    return;
  }
  print(fmt::format("{}: {} in {}, {} slabs, {} in {:.1f} s\n", flags.store, manifest.name,
                    dtype_name(manifest.weights), manifest.slabs.size(), format_bytes(bytes),
                    seconds));
  if (manifest.distinct_layers < manifest.spec.num_hidden_layers)
    print(fmt::format("note: its {} layers share {} slabs\n", manifest.spec.num_hidden_layers,
                      manifest.distinct_layers));
}

int write_store(WeightSource& source, const WriteFlags& flags, const std::string& what,
                const std::function<void(ImportOptions&)>& adjust) {
  const std::int64_t begin = now_ns();
  Manifest manifest;
  {
    Progress progress(what, ProgressUnit::kBytes, !flags.quiet);
    ImportOptions options = options_from(flags, progress);
    adjust(options);
    manifest = import_store(source, flags.store, options);
  }
  report_store(flags, manifest, seconds_since(begin));
  return 0;
}

// A tokenizer that cannot be used should be known now, not when another PC opens the store.
void check_tokenizer(const WeightSource& source, const std::string& checkpoint) {
  try {
    if (load_tokenizer(source.tokenizer_files(), checkpoint) == nullptr)
      spdlog::warn(
          "{} has no tokenizer files: the store will take token ids only (--prompt-ids, --ids)",
          checkpoint);
  } catch (const Error& error) {
    throw Error(error.kind(), error.what(),
                "--no-tokenizer imports the weights alone, for token ids (--prompt-ids, --ids)");
  }
}

}  // namespace

Command import_command(CLI::App& parent) {
  struct Flags : WriteFlags {
    std::string checkpoint, layers;
    bool no_tokenizer = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* app = parent.add_subcommand("import", "Turn a checkpoint into a layer-wise store");
  app->add_option(
         "CHECKPOINT", flags->checkpoint,
         "Hugging Face directory (config.json, model.safetensors or its shards), or a .gguf file")
      ->required();
  add_write_flags(*app, *flags);
  app->add_option("--layers", flags->layers, "Only these layers, A:B, 0-based and half-open")
      ->type_name("A:B");
  app->add_flag("--no-tokenizer", flags->no_tokenizer,
                "Leave the tokenizer out: the store takes token ids only");
  return {app, [flags] {
            setup_logging(flags->quiet ? Verbosity::kQuiet : Verbosity::kNormal, "");
            const std::unique_ptr<WeightSource> source =
                open_checkpoint(flags->checkpoint, !flags->no_tokenizer);
            if (!flags->no_tokenizer) check_tokenizer(*source, flags->checkpoint);
            return write_store(*source, *flags, "importing", [&](ImportOptions& options) {
              options.tokenizer = !flags->no_tokenizer;
              if (!flags->layers.empty())
                std::tie(options.layer_begin, options.layer_end) =
                    parse_layer_range(flags->layers, source->spec().num_hidden_layers);
            });
          }};
}

Command create_command(CLI::App& parent) {
  struct Flags : WriteFlags {
    std::string preset;
    std::uint64_t seed = 0;
    std::int64_t distinct_layers = 0;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* app =
      parent.add_subcommand("create", "Make a randomly initialised model at a preset's shape");
  app->add_option("PRESET", flags->preset,
                  "A preset (gpt3-175b, gpt-j-6b, …), or the path of a config.json")
      ->required();
  add_write_flags(*app, *flags);
  app->add_option("--seed", flags->seed, "Seed of the weights")
      ->capture_default_str()
      ->check(unsigned_integer());
  app->add_option("--distinct-layers", flags->distinct_layers,
                  "Layers share this many slabs (for small disks)")
      ->check(integer_in(1, 65536));
  app->footer([] {
    std::string names;
    for (const auto& [name, spec] : presets()) names += (names.empty() ? "" : ", ") + name;
    return "Presets: " + names;
  });
  return {app, [flags] {
            setup_logging(flags->quiet ? Verbosity::kQuiet : Verbosity::kNormal, "");
            const std::unique_ptr<WeightSource> source = open_random(flags->preset, flags->seed);
            return write_store(*source, *flags, "creating", [&](ImportOptions& options) {
              if (flags->distinct_layers > source->spec().num_hidden_layers)
                throw usage_error(
                    fmt::format("--distinct-layers {} is more than the model's {} layers",
                                flags->distinct_layers, source->spec().num_hidden_layers));
              options.distinct_layers = flags->distinct_layers;
            });
          }};
}

}  // namespace stagecoach
