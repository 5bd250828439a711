#include <bit>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "timeline/timeline.h"

namespace stagecoach {
namespace {

static_assert(std::endian::native == std::endian::little,
              "records are copied as they lie in memory");

constexpr char kMagic[4] = {'S', 'P', 'A', 'N'};
constexpr std::uint16_t kVersion = 1;

struct Header {
  char magic[4];
  std::uint16_t version;
  std::uint16_t record_bytes;
  std::uint64_t count;
};
static_assert(sizeof(Header) == 16);

struct Record {
  std::uint8_t kind;
  std::uint8_t phase;
  std::uint16_t zero;
  std::int32_t layer;
  std::int64_t micro_batch, pass, bytes, flops, tokens, begin_ns, end_ns;
};
static_assert(sizeof(Record) == 64);

Error corrupt(const std::string& what) {
  return data_error("the timeline of a rank cannot be read: " + what,
                    "run the same stagecoach on every host (stagecoach --version)");
}

// Limits keep every later difference and product of two fields inside an int64.
void check(const Record& r, std::uint64_t index) {
  constexpr std::int64_t kLimit = std::numeric_limits<std::int64_t>::max() / 2;
  const bool known = r.kind <= static_cast<std::uint8_t>(SpanKind::kCopy) &&
                     r.phase <= static_cast<std::uint8_t>(Phase::kDecode) && r.zero == 0;
  const bool sane = r.layer >= -1 && r.micro_batch >= -1 && r.bytes >= 0 && r.bytes <= kLimit &&
                    r.flops >= 0 && r.flops <= kLimit && r.tokens >= 0 && r.tokens <= kLimit;
  const bool ordered = r.begin_ns >= 0 && r.begin_ns <= r.end_ns && r.end_ns <= kLimit;
  if (!known || !sane || !ordered)
    throw corrupt(fmt::format("span {} has {}", index,
                              !known  ? "an unknown kind or phase"
                              : !sane ? "a negative or enormous count"
                                      : "an end before its beginning"));
}

}  // namespace

std::vector<std::byte> encode_spans(const std::vector<Span>& spans) {
  Header header{
      .magic = {}, .version = kVersion, .record_bytes = sizeof(Record), .count = spans.size()};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  std::vector<std::byte> bytes(sizeof(Header) + spans.size() * sizeof(Record));
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::byte* out = bytes.data() + sizeof(Header);
  for (const Span& s : spans) {
    const Record record{.kind = static_cast<std::uint8_t>(s.kind),
                        .phase = static_cast<std::uint8_t>(s.phase),
                        .zero = 0,
                        .layer = s.layer,
                        .micro_batch = s.micro_batch,
                        .pass = s.pass,
                        .bytes = s.bytes,
                        .flops = s.flops,
                        .tokens = s.tokens,
                        .begin_ns = s.begin_ns,
                        .end_ns = s.end_ns};
    std::memcpy(out, &record, sizeof(record));
    out += sizeof(record);
  }
  return bytes;
}

std::vector<Span> decode_spans(std::span<const std::byte> bytes) {
  Header header;
  if (bytes.size() < sizeof(Header))
    throw corrupt(
        fmt::format("expected a header of {} bytes, found {}", sizeof(Header), bytes.size()));
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0)
    throw corrupt("it does not begin with \"SPAN\"");
  if (header.version != kVersion || header.record_bytes != sizeof(Record))
    throw corrupt(fmt::format("expected version {} with {} bytes a span, found version {} with {}",
                              kVersion, sizeof(Record), header.version, header.record_bytes));
  const std::size_t body = bytes.size() - sizeof(Header);
  // Divided, not multiplied: a hostile count cannot overflow, nor allocate more than what arrived.
  if (body % sizeof(Record) != 0 || header.count != body / sizeof(Record))
    throw corrupt(fmt::format("expected {} spans, found {} bytes of them", header.count, body));

  std::vector<Span> spans;
  spans.reserve(header.count);
  for (std::uint64_t i = 0; i < header.count; ++i) {
    Record r;
    std::memcpy(&r, bytes.data() + sizeof(Header) + i * sizeof(Record), sizeof(r));
    check(r, i);
    spans.push_back({.kind = static_cast<SpanKind>(r.kind),
                     .phase = static_cast<Phase>(r.phase),
                     .layer = r.layer,
                     .micro_batch = r.micro_batch,
                     .pass = r.pass,
                     .bytes = r.bytes,
                     .flops = r.flops,
                     .tokens = r.tokens,
                     .begin_ns = r.begin_ns,
                     .end_ns = r.end_ns});
  }
  return spans;
}

}  // namespace stagecoach
