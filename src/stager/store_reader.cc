#include "stager/store_reader.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "stager/read_errors.h"

namespace stagecoach {
namespace {

constexpr std::size_t kChunk = std::size_t{1} << 20;
constexpr std::chrono::milliseconds kPoll{100};  // how often `interrupted` is looked at
constexpr std::chrono::seconds kPatience{2};     // with reads that nobody wants any more

}  // namespace

std::string part_label(const LayerStore& store, const SlabEntry& slab, const PartEntry& part) {
  return fmt::format("{}: the {} part", (store.root() / slab.file).string(), part_name(part.kind));
}

StoreReader::StoreReader(const LayerStore& store, std::unique_ptr<ReadQueue> queue,
                         std::chrono::milliseconds stall, std::function<bool()> interrupted)
    : store_(store),
      files_(store),
      queue_(std::move(queue)),
      stall_(stall),
      interrupted_(std::move(interrupted)) {}

void StoreReader::check(const Target& target, const ReadCompletion& completion,
                        const Piece& piece) const {
  const auto expected = static_cast<std::int64_t>(piece.destination.size());
  if (completion.error == 0 && completion.bytes == expected) return;  // names are for errors
  const std::string name = part_label(store_, target.slab, target.part);
  const std::string hint = store_.repair_hint(target.slab);
  check_completion({name, hint}, completion, piece.offset, expected);
}

ReadCompletion StoreReader::next_completion(const Target& target) {
  const Deadline failed = Clock::now() + stall_;
  while (Clock::now() < failed) {
    if (interrupted_ && interrupted_()) throw Error(ErrorKind::kInterrupted, "interrupted");
    if (const auto completion = queue_->wait(std::min(failed, Clock::now() + kPoll)))
      return *completion;
  }
  throw stalled_disk(part_label(store_, target.slab, target.part), stall_);
}

// Memory that reads are under way into must not be given back while they are; a disk that stalls is
// not waited for.
void StoreReader::give_up(std::size_t under_way) {
  const Deadline end = Clock::now() + kPatience;
  while (under_way > 0 && queue_->wait(end)) --under_way;
}

void StoreReader::read(const Target& target, std::span<const Piece> pieces) {
  const DirectFile file = files_.open(target.slab);
  std::size_t asked = 0, arrived = 0;
  try {
    while (arrived < pieces.size()) {
      for (; asked < pieces.size() && asked - arrived < static_cast<std::size_t>(queue_->depth());
           ++asked)
        queue_->submit({.descriptor = file.descriptor,
                        .offset = pieces[asked].offset,
                        .destination = pieces[asked].destination,
                        .drop_behind = !file.direct,
                        .tag = asked});
      const ReadCompletion completion = next_completion(target);
      ++arrived;
      check(target, completion, pieces[static_cast<std::size_t>(completion.tag)]);
    }
  } catch (const Error&) {
    give_up(asked - arrived);
    throw;
  }
}

void StoreReader::read(const Target& target, std::int64_t offset,
                       std::span<std::byte> destination) {
  std::vector<Piece> pieces;
  for (std::size_t at = 0; at < destination.size(); at += kChunk)
    pieces.push_back({offset + static_cast<std::int64_t>(at),
                      destination.subspan(at, std::min(kChunk, destination.size() - at))});
  read(target, pieces);
}

void StoreReader::read_extents(
    const SlabEntry& slab, const PartEntry& part, std::span<const Extent> extents,
    const std::function<void(std::size_t, std::span<const std::byte>)>& visit) {
  std::int64_t total = 0;
  for (const Extent& extent : extents)
    total += align_up(extent.offset + extent.bytes) - align_down(extent.offset);
  AlignedBuffer memory(total);
  std::vector<Piece> pieces;
  std::vector<std::span<const std::byte>> found;
  std::size_t used = 0;
  for (const Extent& extent : extents) {
    const std::int64_t begin = align_down(extent.offset);
    const auto length = static_cast<std::size_t>(align_up(extent.offset + extent.bytes) - begin);
    const auto place = memory.span().subspan(used, length);
    pieces.push_back({begin, place});
    found.push_back(place.subspan(static_cast<std::size_t>(extent.offset - begin),
                                  static_cast<std::size_t>(extent.bytes)));
    used += length;
  }
  read({slab, part}, pieces);
  for (std::size_t i = 0; i < found.size(); ++i) visit(i, found[i]);
}

AlignedBuffer StoreReader::read_part(const SlabEntry& slab, const PartEntry& part, bool verify) {
  AlignedBuffer extent(part.bytes);
  extent.advise_huge_pages();
  read({slab, part}, part.offset, extent.span());
  if (!verify) return extent;
  if (const std::uint64_t found = xxh3(extent.span()); found != part.checksum)
    throw data_error(
        fmt::format("{} is damaged: expected checksum {}, found {}", part_label(store_, slab, part),
                    hash_to_hex(part.checksum), hash_to_hex(found)),
        store_.repair_hint(slab));
  return extent;
}

StoreReader::Tensor StoreReader::read_tensor(const SlabEntry& slab, const PartEntry& part,
                                             const TensorEntry& tensor, bool verify) {
  const std::int64_t offset = part.offset + tensor.offset, size = tensor.spec.bytes();
  const std::int64_t begin = align_down(offset), end = align_up(offset + size);
  Tensor result{.memory = AlignedBuffer(end - begin), .data = nullptr};
  result.memory.advise_huge_pages();
  read({slab, part}, begin, result.memory.span());
  result.data = result.memory.data() + (offset - begin);
  if (!verify) return result;
  const std::uint64_t found = xxh3({result.data, static_cast<std::size_t>(size)});
  if (found != tensor.checksum)
    throw data_error(fmt::format("{}: {} is damaged: expected checksum {}, found {}",
                                 part_label(store_, slab, part), role_name(tensor.spec.role),
                                 hash_to_hex(tensor.checksum), hash_to_hex(found)),
                     store_.repair_hint(slab));
  return result;
}

void StoreReader::scan(const SlabEntry& slab, const PartEntry& part, std::int64_t offset,
                       std::int64_t size, std::int64_t block, const Visit& visit) {
  AlignedBuffer buffer(scan_memory(std::min(block, size)));
  scan(
      slab, part, offset, size, block, [&] { return buffer.data(); }, visit);
}

// A block may begin and end within pages.
std::int64_t StoreReader::scan_memory(std::int64_t block) {
  return align_up(block) + 2 * kDirectAlignment;
}

void StoreReader::scan(const SlabEntry& slab, const PartEntry& part, std::int64_t offset,
                       std::int64_t size, std::int64_t block, const NextMemory& next,
                       const Visit& visit) {
  for (std::int64_t done = 0; done < size; done += block) {
    const std::int64_t count = std::min(block, size - done);
    const std::int64_t begin = align_down(offset + done);
    const std::int64_t end = align_up(offset + done + count);
    const std::span<std::byte> memory(next(), static_cast<std::size_t>(end - begin));
    read({slab, part}, begin, memory);
    visit(memory.subspan(static_cast<std::size_t>(offset + done - begin),
                         static_cast<std::size_t>(count)));
  }
}

}  // namespace stagecoach
