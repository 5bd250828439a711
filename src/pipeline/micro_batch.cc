#include "pipeline/micro_batch.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/archive.h"
#include "base/error.h"
#include "base/tensor_view.h"  // for bf16 conversions

namespace stagecoach {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the wire format is written for little-endian machines");

constexpr std::uint32_t kMagic = archive_magic("SCMB");
constexpr std::uint32_t kDescription = archive_magic("MBDS");
constexpr std::uint32_t kResult = archive_magic("RSLT");
constexpr std::uint32_t kVersion = 2;

struct Header {
  std::uint32_t magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t description_bytes = 0;
  WireType wire = WireType::kF32;
  std::int64_t rows = 0;
  std::int64_t width = 0;
};
static_assert(sizeof(Header) == 32);

constexpr std::size_t hidden_offset(std::size_t description_bytes) {
  return (sizeof(Header) + description_bytes + 63) / 64 * 64;
}

// What the engine relies on without looking again.
bool makes_sense(const TokenRun& run) {
  constexpr std::int64_t kMaxPosition = std::int64_t{1} << 40;
  return run.count() > 0 && run.position >= 0 && run.position <= kMaxPosition &&
         (run.targets.empty() || run.targets.size() == run.ids.size()) &&
         std::all_of(run.ids.begin(), run.ids.end(), [](TokenId id) { return id >= 0; }) &&
         std::all_of(run.targets.begin(), run.targets.end(), [](TokenId id) { return id >= -1; });
}

bool makes_sense(const MicroBatch& batch) {
  const PassPlace& pass = batch.pass;
  return batch.window >= 0 && batch.label.phase <= Phase::kDecode && pass.resume >= 0 &&
         pass.row >= 0 && pass.rows >= 0 &&
         (pass.rows == 0 || total_rows(batch.runs) <= pass.rows - pass.row) &&
         std::all_of(batch.runs.begin(), batch.runs.end(),
                     [](const TokenRun& run) { return makes_sense(run); }) &&
         std::all_of(batch.controls.begin(), batch.controls.end(),
                     [](const Control& control) { return control.kind <= Control::Kind::kDrop; });
}

}  // namespace

std::vector<std::byte> encode_description(const MicroBatch& batch, std::int64_t width,
                                          WireType wire) {
  const std::vector<std::byte> description = to_archive(kDescription, batch);
  const Header header{.description_bytes = static_cast<std::uint32_t>(description.size()),
                      .wire = wire,
                      .rows = batch.hidden_rows(),
                      .width = width};
  std::vector<std::byte> bytes(hidden_offset(description.size()));
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::memcpy(bytes.data() + sizeof(header), description.data(), description.size());
  return bytes;
}

std::vector<std::byte> encode_micro_batch(const MicroBatch& batch, std::span<const float> hidden,
                                          std::int64_t width, WireType wire) {
  STAGECOACH_CHECK(static_cast<std::int64_t>(hidden.size()) == batch.hidden_rows() * width);
  std::vector<std::byte> bytes = encode_description(batch, width, wire);
  const std::size_t offset = bytes.size();
  bytes.resize(offset + hidden.size() * (wire == WireType::kF32 ? 4 : 2));
  if (wire == WireType::kF32) {
    if (!hidden.empty()) std::memcpy(bytes.data() + offset, hidden.data(), hidden.size_bytes());
  } else {
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      const std::uint16_t value = f32_to_bf16(hidden[i]);
      std::memcpy(bytes.data() + offset + 2 * i, &value, 2);
    }
  }
  return bytes;
}

MicroBatch decode_micro_batch(std::span<const std::byte> bytes, std::int64_t width,
                              PageFloats& hidden, std::size_t elsewhere) {
  Header header;
  if (bytes.size() < sizeof(header)) throw data_error("micro-batch: shorter than its header");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kMagic || header.version != kVersion)
    throw data_error(
        fmt::format("micro-batch: expected version {}, found {}", kVersion, header.version),
        "all ranks must run the same Stagecoach");
  if (header.description_bytes > bytes.size() - sizeof(header))
    throw data_error("micro-batch: description is cut off");
  auto batch = from_archive<MicroBatch>(
      kDescription, bytes.subspan(sizeof(header), header.description_bytes), "micro-batch");
  if (!makes_sense(batch))
    throw data_error("micro-batch: a run or a control record makes no sense");
  const std::size_t offset = hidden_offset(header.description_bytes);
  const std::size_t element = header.wire == WireType::kF32 ? 4 : 2;
  const auto hidden_bytes = static_cast<std::size_t>(header.rows * header.width) * element;
  if (header.rows != batch.hidden_rows() || header.width != width ||
      (header.wire != WireType::kF32 && header.wire != WireType::kBF16) ||
      bytes.size() + elsewhere != offset + hidden_bytes ||
      (elsewhere > 0 && (elsewhere != hidden_bytes || header.wire != WireType::kF32)))
    throw data_error(fmt::format(
        "micro-batch: expected {} rows of width {}, found {} of width {} in {} bytes",
        batch.hidden_rows(), width, header.rows, header.width, bytes.size() + elsewhere));
  if (elsewhere > 0) {
    hidden.clear();
    return batch;
  }
  hidden.resize(static_cast<std::size_t>(header.rows * header.width));
  if (header.wire == WireType::kF32) {
    if (!hidden.empty())
      std::memcpy(hidden.data(), bytes.data() + offset, hidden.size() * sizeof(float));
  } else {
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      std::uint16_t value = 0;
      std::memcpy(&value, bytes.data() + offset + 2 * i, 2);
      hidden[i] = bf16_to_f32(value);
    }
  }
  return batch;
}

std::vector<std::byte> encode_result(const BatchResult& result) {
  return to_archive(kResult, result);
}

BatchResult decode_result(std::span<const std::byte> bytes) {
  return from_archive<BatchResult>(kResult, bytes, "result");
}

bool is_micro_batch(std::span<const std::byte> bytes) {
  std::uint32_t magic = 0;
  if (bytes.size() >= sizeof(magic)) std::memcpy(&magic, bytes.data(), sizeof(magic));
  return magic == kMagic;
}

}  // namespace stagecoach
