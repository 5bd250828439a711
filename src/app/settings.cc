#include "app/settings.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <numeric>
#include <sstream>
#include <utility>

#include "app/device_choice.h"
#include "base/byte_size.h"
#include "base/error.h"
#include "base/quote.h"
#include "base/toml_file.h"
#include "plan/cluster_toml.h"
#include "plan/job_shape.h"

namespace stagecoach {
namespace {

// A validator from what throws for a bad text.
template <typename Parse>
auto parses(const Parse& parse) {
  return [parse](const std::string& text) {
    try {
      parse(text);
      return std::string();
    } catch (const Error& error) {
      return error.what() + (error.hint().empty() ? "" : ": " + error.hint());
    }
  };
}

std::string key_of(const CLI::Option& option) {
  std::string key = option.get_lnames().front();
  std::replace(key.begin(), key.end(), '-', '_');
  return key;
}

std::string environment_name(const CLI::Option& option) {
  std::string name = "STAGECOACH_" + key_of(option);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return name;
}

bool settable(const CLI::Option& option) {
  if (option.get_lnames().empty()) return false;
  const std::string& name = option.get_lnames().front();
  constexpr std::array kOfProcesses{"help",      "version",           "job",
                                    "done-file", "checkpoint-launch", "checkpoint-newest"};
  return std::find(kOfProcesses.begin(), kOfProcesses.end(), name) == kOfProcesses.end();
}

// Of a command, for whoever has set it wrongly.
std::string help_of(const CLI::App& command) {
  return fmt::format("stagecoach {} --help", command.get_name());
}

void set(CLI::Option& option, const std::vector<std::string>& values, const std::string& origin,
         const std::string& help) {
  try {
    // A flag without a value takes true or false here. False counts too: it goes before what
    // follows.
    if (option.get_items_expected_max() == 0 && values.front() != "true" &&
        values.front() != "false")
      throw usage_error(
          fmt::format("{}: expected true or false, found {}", origin, quote_value(values.front())),
          help);
    for (const std::string& value : values) option.add_result(value);
    option.run_callback();
  } catch (const CLI::Error& error) {
    throw usage_error(fmt::format("{}: {}", origin, error.what()), help);
  }
}

// How many letters to change, add or leave out.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

// Settings of the command that `key` may have been meant to be, and where all of them are.
std::string near_settings(const CLI::App& command, std::string_view key) {
  constexpr std::size_t kNear = 3, kLongest = 60;
  std::string near;
  for (const CLI::Option* option : command.get_options()) {
    if (!settable(*option) || key.size() > kLongest) continue;
    const std::string name = key_of(*option);
    if (edit_distance(name, key) <= std::min(kNear, key.size() / 2))
      near += (near.empty() ? "" : ", ") + name;
  }
  const std::string all = help_of(command) + " names them all, with - for _";
  return near.empty() ? all : fmt::format("{}; {}", near, all);
}

constexpr const char* kJobFile = "the job file";

}  // namespace

void apply_job(CLI::App& command, const std::string& file) {
  const toml::table job = read_toml_file(file, kJobFile, "--job");
  check_job_tables(file, job);
  cluster_of(file, job);  // refuses what makes no sense
  const toml::node* const run_node = job.get("run");
  if (run_node == nullptr) {
    if (!job.empty()) return;  // a cluster file
    throw usage_error(fmt::format("{}: the table [run] is missing", file));
  }
  const toml::table* const run = run_node->as_table();
  if (run == nullptr) throw toml_error(file, *run_node, "run: expected a table, [run]");
  for (const auto& [key, node] : *run) {
    CLI::Option* target = nullptr;
    for (CLI::Option* option : command.get_options())
      if (settable(*option) && key_of(*option) == key.str()) target = option;
    if (target == nullptr)
      throw toml_error(file, node,
                       fmt::format("{} is not a setting of stagecoach {}", quote_value(key.str()),
                                   command.get_name()),
                       near_settings(command, key.str()));
    if (target->count() > 0) continue;
    const std::vector<std::string> values = run_values(file, key.str(), node);
    const auto& begin = node.source().begin;
    const bool repeatable = target->get_expected_max() > 1 ||
                            target->get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll;
    if (values.size() != 1 && !(repeatable && !values.empty()))
      throw toml_error(file, node,
                       fmt::format("{}: expected one value, found {}", key.str(), values.size()));
    set(*target, values, fmt::format("{}:{}:{}: {}", file, begin.line, begin.column, key.str()),
        help_of(command));
  }
}

namespace {

template <typename Number>
CLI::Validator parsed_in(Number low, Number high, const std::string& expected) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        Number value{};
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool whole = error == std::errc{} && end == text.data() + text.size();
        // Written so that nan fails.
        if (whole && value >= low && value <= high) return {};
        return fmt::format("expected {}, found {}", expected, quote_value(text.substr(0, 40)));
      },
      "");
}

}  // namespace

CLI::Validator integer_in(std::int64_t low, std::int64_t high) {
  return parsed_in<std::int64_t>(low, high, fmt::format("a whole number from {} to {}", low, high));
}

CLI::Validator unsigned_integer() {
  return parsed_in<std::uint64_t>(0, ~std::uint64_t{0},
                                  "a whole number from 0 to 18446744073709551615");
}

CLI::Validator number_in(double low, double high) {
  return parsed_in<double>(low, high, fmt::format("a number from {} to {}", low, high));
}

VerifyMode RunSettings::verify_mode() const {
  return verify == "off"      ? VerifyMode::kOff
         : verify == "always" ? VerifyMode::kAlways
                              : VerifyMode::kFirst;
}

KvType RunSettings::kv_type() const {
  return kv == "q8" ? KvType::kQ8 : kv == "f32" ? KvType::kF32 : KvType::kF16;
}

ClusterSpec job_cluster(const std::string& file) {
  return read_cluster(file, kJobFile, "--job");
}

std::optional<int> RunSettings::rounds_per_rank() const {
  if (rounds == "auto") return std::nullopt;
  int value = 0;
  const auto [end, error] = std::from_chars(rounds.data(), rounds.data() + rounds.size(), value);
  if (error != std::errc{} || end != rounds.data() + rounds.size() || value < 1)
    throw usage_error(
        fmt::format("--rounds should be a positive number or auto, found {}", quote_value(rounds)),
        "--rounds auto");
  return value;
}

std::optional<std::int64_t> parse_cpu_layers(const std::string& text) {
  if (text == "auto") return std::nullopt;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0)
    throw usage_error(
        fmt::format("{} is no number of layers: expected 0 or more, or auto", quote_value(text)));
  return value;
}

void add_cpu_layers_flag(CLI::App& command, RunSettings& s) {
  command
      .add_option("--cpu-layers", s.cpu_layers,
                  "Layers of each rank with a GPU that its processor computes, from the host's "
                  "memory (auto: as many as make the job shorter)")
      ->capture_default_str()
      ->type_name("N|auto")
      ->check(parses([](const std::string& text) { parse_cpu_layers(text); }));
}

std::string micro_batch_help() {
  return fmt::format(
      "Rows of a micro-batch, at most (default: {}; up to {} where all ranks compute on GPUs)",
      kUsualMicroBatch, kDeviceMicroBatch);
}

void add_micro_batch_flag(CLI::App& command, RunSettings& s) {
  command.add_option("--micro-batch", s.micro_batch, micro_batch_help())
      ->check(integer_in(1, 65536));
}

void add_type_flags(CLI::App& command, RunSettings& s) {
  command.add_option("--kv", s.kv, "Type of the KV cache")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "f16", "q8"}));
  command.add_option("--activations", s.activations, "Type of activations in matrix products")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "f32", "bf16", "int8"}));
}

void add_run_flags(CLI::App& command, RunSettings& s) {
  command.add_option("--store", s.store, "Store directory, on every host at this path")
      ->type_name("STORE");
  command
      .add_option("--threads", s.threads,
                  "Compute threads per rank (default: allowed cores / ranks on this host)")
      ->check(integer_in(1, 4096));
  add_micro_batch_flag(command, s);
  command
      .add_option("--windows", s.windows,
                  "Layers of each rank, like 0:5,5:12 (default: balanced by bytes)")
      ->type_name("A:B,...");
  add_fixed_run_flags(command, s);
}

void add_fixed_run_flags(CLI::App& command, RunSettings& s) {
  command.add_option("--job", s.job, "Job file: [run] holds any of these settings")
      ->type_name("FILE.toml");
  command
      .add_option("--rounds", s.rounds,
                  "Windows of each rank, in ring order (auto: 1 where slices fit in memory)")
      ->capture_default_str()
      ->type_name("K|auto");
  command
      .add_option("--memory", s.memory,
                  "Memory of each rank; what does not fit streams from its disk (default: what the "
                  "host has free)")
      ->type_name("SIZE")
      ->check(parses([](const std::string& text) { parse_byte_size(text); }));
  command
      .add_option("--device-memory", s.device_memory,
                  "Memory of each rank's GPU; what does not fit passes through it from the host's "
                  "(default: what the GPU has free)")
      ->type_name("SIZE")
      ->check(parses([](const std::string& text) { parse_byte_size(text); }));
  add_cpu_layers_flag(command, s);
  command
      .add_option("--disk-timeout", s.disk_timeout,
                  "Seconds after which a disk that gives nothing counts as broken")
      ->capture_default_str()
      ->check(number_in(0.1, 86400));
  command
      .add_option(
          "--device", s.device,
          "cpu, cuda (each rank of a host its own GPU), cuda:N, or auto: a GPU if there is one")
      ->capture_default_str()
      ->type_name("auto|cpu|cuda|cuda:N")
      ->check(parses([](const std::string& text) { parse_device(text); }));
  command.add_option("--verify", s.verify, "When to check weights against their checksums")
      ->capture_default_str()
      ->check(CLI::IsMember({"always", "first", "off"}));
  command.add_option("--wire", s.wire, "Type of hidden states between ranks")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  add_type_flags(command, s);
  command
      .add_option("--report", s.report,
                  "Write report.html, layers.csv, run.json and trace.json there")
      ->type_name("DIR");
  command
      .add_option_function<std::string>(
          "--done-file", [](const std::string&) {},
          "Of a launch: where the last word goes (last_word.h, which looks for it)")
      ->type_name("FILE")
      ->group("");
  command
      .add_option("--peer-timeout", s.peer_timeout,
                  "Seconds of silence after which a rank counts as lost")
      ->capture_default_str()
      ->check(number_in(1, 86400));
  command.add_flag("--json", s.json, "Results as JSON, one object a line");
  command.add_flag("--quiet", s.quiet, "Warnings and errors only on stderr");
  command.add_flag("--verbose", s.verbose, "Say more on stderr, from every rank");
}

void add_checkpoint_keeps_flag(CLI::App& command, RunSettings& s) {
  command
      .add_option("--checkpoint-keeps", s.checkpoint_keeps,
                  "passes: what windows have computed and the tokens drawn, for the same plan; "
                  "tokens: only those, for any plan")
      ->capture_default_str()
      ->check(CLI::IsMember({"passes", "tokens"}));
}

void add_checkpoint_flag(CLI::App& command, RunSettings& s) {
  command
      .add_option("--checkpoint", s.checkpoint,
                  "Keep what is computed there, on every host; the same command goes on from it")
      ->type_name("DIR")
      ->check([](const std::string& folder) {
        return folder.empty() ? "expected a folder, found an empty text" : "";
      });
  command
      .add_option("--checkpoint-launch", s.checkpoint_care.launch,
                  "Of a launch: what another plan of the same one has kept is thrown away")
      ->type_name("NAME")
      ->group("");
  command
      .add_flag("--checkpoint-newest", s.checkpoint_care.newest,
                "Of a launch: of hidden states only the newest are kept")
      ->group("");
}

namespace {

// Flags, environment, job file: how near the user a setting stands.
int level_of(const CLI::App& command, const char* flag, int level) {
  const CLI::Option* const option = command.get_option_no_throw(flag);
  return option != nullptr && option->count() > 0 ? level : 3;
}

// Who names a budget for GPUs nearer by than the processor, or just as near, means it; else it is
// for other PCs that the job file is for.
void check_device_memory(const CLI::App& command, int memory_level, int device_level) {
  if (memory_level > device_level || memory_level == 3 ||
      command.get_option("--device")->as<std::string>() != "cpu")
    return;
  throw usage_error("--device-memory is of a GPU, and --device cpu uses none",
                    "leave out --device-memory, or --device cuda");
}

}  // namespace

void apply_environment_and_job(CLI::App& command) {
  int memory_level = level_of(command, "--device-memory", 0);
  int device_level = level_of(command, "--device", 0);
  const auto look = [&](int level) {
    memory_level = std::min(memory_level, level_of(command, "--device-memory", level));
    device_level = std::min(device_level, level_of(command, "--device", level));
  };
  for (CLI::Option* option : command.get_options()) {
    if (!settable(*option) || option->count() > 0) continue;
    const std::string name = environment_name(*option);
    if (const char* value = std::getenv(name.c_str()))
      set(*option, {value}, name, help_of(command));
  }
  look(1);
  if (CLI::Option* job = command.get_option_no_throw("--job")) {
    const char* from_environment = std::getenv("STAGECOACH_JOB");
    if (job->count() == 0 && from_environment != nullptr)
      set(*job, {from_environment}, "STAGECOACH_JOB", help_of(command));
    if (job->count() > 0) apply_job(command, job->as<std::string>());
  }
  look(2);
  check_device_memory(command, memory_level, device_level);
}

void require_exactly_one(const CLI::App& command, std::initializer_list<const char*> flags) {
  std::string all;
  int given = 0;
  for (const char* flag : flags) {
    given += command.count(flag) > 0 ? 1 : 0;
    all += (all.empty() ? "" : ", ") + std::string(flag);
  }
  if (given != 1)
    throw usage_error(fmt::format("stagecoach {} takes exactly one of {}; found {}",
                                  command.get_name(), all, given),
                      fmt::format("stagecoach {} --help", command.get_name()));
}

void require_flag(const CLI::App& command, const char* flag) {
  if (command.count(flag) == 0)
    throw usage_error(fmt::format("stagecoach {} needs {}", command.get_name(), flag),
                      fmt::format("stagecoach {} --help", command.get_name()));
}

}  // namespace stagecoach
