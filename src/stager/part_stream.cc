#include "stager/part_stream.h"

#include <algorithm>
#include <utility>

#include "stager/read_errors.h"

namespace stagecoach {
namespace {

constexpr std::chrono::milliseconds kPoll{100};  // how often a waiting rank looks at `interrupted`
constexpr std::uint64_t kChunkBits = 24;         // of a tag; the rest is the part's number

std::uint64_t tag_of(std::uint64_t number, std::uint64_t chunk) {
  return number << kChunkBits | chunk;
}

}  // namespace

PartStream::PartStream(std::vector<StreamedPart> parts, const PartStreamOptions& options,
                       std::unique_ptr<ReadQueue> queue, Timeline& timeline)
    : parts_(std::move(parts)),
      options_(options),
      queue_(std::move(queue)),
      timeline_(timeline),
      of_kind_(options.slots.size()),
      next_(options.first),
      ready_(options.first),
      released_(options.first) {
  STAGECOACH_CHECK(!parts_.empty());
  std::vector<std::int64_t> largest(options.slots.size());
  int contents = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const StreamedPart& part = parts_[i];
    const auto kind = static_cast<std::size_t>(part.kind);
    STAGECOACH_CHECK(kind < options.slots.size() && options.slots[kind] >= 1 && part.bytes > 0);
    STAGECOACH_CHECK(part.bytes / options.chunk_bytes < (std::int64_t{1} << kChunkBits));
    largest[kind] = std::max(largest[kind], part.bytes);
    index_in_kind_.push_back(of_kind_[kind].size());
    of_kind_[kind].push_back(i);
    contents = std::max(contents, part.content + 1);
  }
  for (std::size_t kind = 0; kind < options.slots.size(); ++kind) {
    std::vector<AlignedBuffer>& ring = slots_.emplace_back();
    for (int i = 0; i < options.slots[kind] && largest[kind] > 0; ++i) {
      ring.emplace_back(largest[kind]);
      ring.back().advise_huge_pages();
      if (options.pin) locks_.push_back(options.pin(ring.back().span()));
    }
  }
  checked_.resize(static_cast<std::size_t>(contents));
  thread_ = std::thread([this] { run(); });
}

PartStream::~PartStream() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  released_changed_.notify_all();
  thread_.join();
  // Before the slots: reads may still be under way into them.
  queue_.reset();
}

std::int64_t PartStream::slot_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& ring : slots_)
    for (const AlignedBuffer& slot : ring) bytes += static_cast<std::int64_t>(slot.size());
  return bytes;
}

std::uint64_t PartStream::ordinal(std::uint64_t number) const {
  const std::uint64_t count = parts_.size();
  const auto kind = static_cast<std::size_t>(part(number).kind);
  return number / count * of_kind_[kind].size() + index_in_kind_[number % count];
}

std::byte* PartStream::slot_of(std::uint64_t number) {
  auto& ring = slots_[static_cast<std::size_t>(part(number).kind)];
  return ring[ordinal(number) % ring.size()].data();
}

// Whether the part that was last in this one's slot has been released.
bool PartStream::may_begin(std::uint64_t number) const {
  if (number >= options_.end) return false;
  const auto kind = static_cast<std::size_t>(part(number).kind);
  const std::uint64_t slots = slots_[kind].size(), place = ordinal(number);
  if (place < slots) return true;
  const std::uint64_t before = place - slots, per_pass = of_kind_[kind].size();
  return before / per_pass * parts_.size() + of_kind_[kind][before % per_pass] < released_;
}

const std::byte* PartStream::wait(std::uint64_t number, const std::function<bool()>& interrupted) {
  std::unique_lock lock(mutex_);
  STAGECOACH_CHECK(number >= released_ && number < options_.end);
  while (number >= ready_) {
    if (error_) std::rethrow_exception(error_);
    if (interrupted && interrupted()) throw Error(ErrorKind::kInterrupted, "interrupted");
    ready_changed_.wait_for(lock, kPoll);
  }
  return slot_of(number);
}

void PartStream::release(std::uint64_t number) {
  {
    const std::lock_guard lock(mutex_);
    STAGECOACH_CHECK(number == released_ && number < ready_);
    ++released_;
  }
  released_changed_.notify_one();
}

void PartStream::run() {
  try {
    while (!stop_) read_on();
  } catch (...) {
    const std::lock_guard lock(mutex_);
    error_ = std::current_exception();
    ready_changed_.notify_all();
  }
}

void PartStream::read_on() {
  while (submit_some()) {
  }
  if (under_way_ == 0) {
    std::unique_lock lock(mutex_);
    released_changed_.wait(lock, [this] { return stop_ || may_begin(next_); });
    return;
  }
  // In short steps: whoever ends the stream does not wait for a disk that stalls.
  const Deadline failed = last_sign_ + options_.stall;
  const auto completion = queue_->wait(std::min(failed, Clock::now() + kPoll));
  if (!completion && Clock::now() < failed) return;
  if (!completion) throw stalled_disk(part(readings_.front().number).name, options_.stall);
  take(*completion);
}

// Gives the queue one read, of the first part that has some left or of a new part; false when it is
// full or nothing may be read.
bool PartStream::submit_some() {
  if (under_way_ == queue_->depth()) return false;
  Reading* reading = nullptr;
  if (!readings_.empty() && readings_.back().asked < part(readings_.back().number).bytes)
    reading = &readings_.back();
  if (reading == nullptr) {
    {
      const std::lock_guard lock(mutex_);
      if (!may_begin(next_)) return false;
    }
    begin_part();
    reading = &readings_.back();
  }
  const StreamedPart& source = part(reading->number);
  const std::int64_t bytes = std::min(options_.chunk_bytes, source.bytes - reading->asked);
  queue_->submit({.descriptor = source.descriptor,
                  .offset = source.offset + reading->asked,
                  .destination = {reading->data + reading->asked, static_cast<std::size_t>(bytes)},
                  .drop_behind = !source.direct,
                  .tag = tag_of(reading->number, static_cast<std::uint64_t>(
                                                     reading->asked / options_.chunk_bytes))});
  reading->asked += bytes;
  if (under_way_++ == 0) last_sign_ = Clock::now();
  return true;
}

void PartStream::begin_part() {
  const StreamedPart& source = part(next_);
  Reading& reading = readings_.emplace_back();
  reading.number = next_;
  reading.data = slot_of(next_);
  reading.begin_ns = now_ns();
  reading.chunk_arrived.resize(
      static_cast<std::size_t>((source.bytes + options_.chunk_bytes - 1) / options_.chunk_bytes));
  const bool check = options_.check == CheckParts::kAlways ||
                     (options_.check == CheckParts::kFirstTime &&
                      !checked_[static_cast<std::size_t>(source.content)]);
  if (check) reading.hash = std::make_unique<StreamingHash>();
  ++next_;
}

void PartStream::take(const ReadCompletion& completion) {
  --under_way_;
  last_sign_ = Clock::now();
  const std::uint64_t number = completion.tag >> kChunkBits;
  Reading& reading = readings_[number - readings_.front().number];
  const StreamedPart& source = part(number);
  const auto chunk =
      static_cast<std::int64_t>(completion.tag & ((std::uint64_t{1} << kChunkBits) - 1));
  const std::int64_t offset = chunk * options_.chunk_bytes;
  const std::int64_t expected = std::min(options_.chunk_bytes, source.bytes - offset);
  check_completion({source.name, source.hint}, completion, source.offset + offset, expected);
  reading.chunk_arrived[static_cast<std::size_t>(chunk)] = true;
  reading.arrived += expected;
  // The disk goes on while this thread hashes.
  while (submit_some()) {
  }
  hash_arrived(readings_[number - readings_.front().number]);
  while (!readings_.empty() && readings_.front().arrived == part(readings_.front().number).bytes)
    finish_front();
}

// Chunks are hashed in order, while they are still in a cache.
void PartStream::hash_arrived(Reading& reading) {
  if (reading.hash == nullptr) return;
  const std::int64_t bytes = part(reading.number).bytes;
  while (reading.hashed < bytes &&
         reading.chunk_arrived[static_cast<std::size_t>(reading.hashed / options_.chunk_bytes)]) {
    const std::int64_t count = std::min(options_.chunk_bytes, bytes - reading.hashed);
    reading.hash->update({reading.data + reading.hashed, static_cast<std::size_t>(count)});
    reading.hashed += count;
  }
}

void PartStream::finish_front() {
  const Reading& reading = readings_.front();
  const StreamedPart& source = part(reading.number);
  if (reading.hash != nullptr) {
    if (const std::uint64_t found = reading.hash->digest(); found != source.checksum)
      throw data_error(fmt::format("{} is damaged: expected checksum {}, found {}", source.name,
                                   hash_to_hex(source.checksum), hash_to_hex(found)),
                       source.hint);
    checked_[static_cast<std::size_t>(source.content)] = true;
  }
  timeline_.record({.kind = SpanKind::kRead,
                    .layer = source.layer,
                    .bytes = source.bytes,
                    .begin_ns = reading.begin_ns,
                    .end_ns = now_ns()});
  readings_.pop_front();
  {
    const std::lock_guard lock(mutex_);
    ++ready_;
  }
  ready_changed_.notify_all();
}

}  // namespace stagecoach
