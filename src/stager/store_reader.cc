#include "stager/store_reader.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/hash.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kChunk = std::int64_t{1} << 20;

std::int64_t align_down(std::int64_t value) {
  return value / kDirectAlignment * kDirectAlignment;
}
std::int64_t align_up(std::int64_t value) {
  return align_down(value + kDirectAlignment - 1);
}

}  // namespace

std::string part_label(const LayerStore& store, const SlabEntry& slab, const PartEntry& part) {
  return fmt::format("{}: the {} part", (store.root() / slab.file).string(), part_name(part.kind));
}

StoreReader::StoreReader(const LayerStore& store, std::unique_ptr<ReadQueue> queue,
                         std::chrono::milliseconds stall)
    : store_(store), files_(store), queue_(std::move(queue)), stall_(stall) {}

void StoreReader::check(const Target& target, const ReadCompletion& completion, std::int64_t offset,
                        std::int64_t expected) const {
  if (completion.error != 0)
    throw resource_error(fmt::format("{}: cannot read {} bytes at offset {}: {}",
                                     part_label(store_, target.slab, target.part), expected, offset,
                                     std::strerror(completion.error)),
                         store_.repair_hint(target.slab));
  if (completion.bytes != expected)
    throw data_error(fmt::format("{} is truncated: expected {} bytes at offset {}, found {}",
                                 part_label(store_, target.slab, target.part), expected, offset,
                                 completion.bytes),
                     store_.repair_hint(target.slab));
}

void StoreReader::read(const Target& target, std::int64_t offset,
                       std::span<std::byte> destination) {
  const DirectFile file = files_.open(target.slab);
  const auto size = static_cast<std::int64_t>(destination.size());
  std::int64_t asked = 0, arrived = 0;
  while (arrived < size) {
    for (; asked < size && (asked - arrived) / kChunk < queue_->depth(); asked += kChunk)
      queue_->submit({.descriptor = file.descriptor,
                      .offset = offset + asked,
                      .destination = destination.subspan(
                          static_cast<std::size_t>(asked),
                          static_cast<std::size_t>(std::min(kChunk, size - asked))),
                      .drop_behind = !file.direct,
                      .tag = static_cast<std::uint64_t>(asked)});
    const auto completion = queue_->wait(Clock::now() + stall_);
    if (!completion)
      throw resource_error(fmt::format("{}: the disk has given nothing for {:.0f} s",
                                       part_label(store_, target.slab, target.part),
                                       std::chrono::duration<double>(stall_).count()),
                           "check the disk (dmesg, smartctl); --disk-timeout allows a slow one "
                           "more time");
    const auto chunk = static_cast<std::int64_t>(completion->tag);
    const std::int64_t expected = std::min(kChunk, size - chunk);
    check(target, *completion, offset + chunk, expected);
    arrived += expected;
  }
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
  AlignedBuffer buffer(align_up(std::min(block, size)) + 2 * kDirectAlignment);
  for (std::int64_t done = 0; done < size; done += block) {
    const std::int64_t count = std::min(block, size - done);
    const std::int64_t begin = align_down(offset + done);
    const std::int64_t end = align_up(offset + done + count);
    read({slab, part}, begin, buffer.span().subspan(0, static_cast<std::size_t>(end - begin)));
    visit(buffer.span().subspan(static_cast<std::size_t>(offset + done - begin),
                                static_cast<std::size_t>(count)));
  }
}

}  // namespace stagecoach
