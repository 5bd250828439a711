#include "checkpoint/pytorch/unpickler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "base/error.h"
#include "checkpoint/foreign_text.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

// What honest checkpoints stay far below. A tensor takes about 10 nodes and 30 items.
constexpr std::size_t kMaxBytes = 64 << 20;
constexpr std::size_t kMaxNodes = 2'000'000, kMaxItems = 8'000'000, kMaxMemo = 2'000'000;
constexpr std::size_t kMaxStack = 1'000'000, kMaxMarks = 64;
constexpr int kMaxDepth = 64;
constexpr std::size_t kMaxString = 64 << 10, kMaxGlobal = 256;
constexpr std::uint8_t kProtocol = 2;  // torch.save's

constexpr std::string_view kOrderedDict = "collections.OrderedDict";

// As Python's pickletools names them.
enum class Opcode : std::uint8_t {
  kMark = '(',
  kStop = '.',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kBinFloat = 'G',
  kEmptyTuple = ')',
  kEmptyList = ']',
  kEmptyDict = '}',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kEmptySet = 0x8f,
};

class Unpickler {
 public:
  Unpickler(std::string_view bytes, const PickleContext& context)
      : bytes_(bytes.substr(0, kMaxBytes)), context_(context) {}
  Pickle run();

 private:
  Error refused(const std::string& problem, std::string hint = {}) const;

  // Input.
  std::string_view take(std::size_t count);
  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view line();

  // The stack. Values below the innermost mark are out of reach.
  std::size_t fence() const { return marks_.empty() ? 0 : marks_.back(); }
  void push(PickleValue value);
  PickleValue pop();
  const PickleValue& top() const;
  std::vector<PickleValue> pop_to_mark();
  PickleNode* top_container(PickleKind kind);

  // Nodes.
  PickleNode& make(PickleKind kind);
  void push_node(PickleKind kind, std::vector<PickleValue> items);
  void add_items(PickleNode& node, std::span<const PickleValue> items);
  void push_string(std::size_t bytes);
  void push_integer(std::size_t bytes);
  void push_tuple(std::size_t count);
  void push_global();
  void remember(std::uint32_t index);
  void recall(std::uint32_t index);
  void append(std::span<const PickleValue> items);
  void set_items(std::span<const PickleValue> items);
  void call();
  void call_ordered_dict(const PickleNode& arguments);
  void build();
  void step(Opcode opcode);

  std::string_view bytes_;
  const PickleContext& context_;
  std::size_t position_ = 0, opcode_at_ = 0;
  std::size_t items_ = 0;
  std::vector<PickleValue> stack_;
  std::vector<std::size_t> marks_;                       // sizes of the stack
  std::unordered_map<std::uint32_t, PickleValue> memo_;  // the file chooses the keys
  Pickle result_;
};

Error Unpickler::refused(const std::string& problem, std::string hint) const {
  return data_error(fmt::format("{}: pickle byte {}: {}", context_.where, opcode_at_, problem),
                    std::move(hint));
}

std::string_view Unpickler::take(std::size_t count) {
  if (count > bytes_.size() - position_) {
    if (bytes_.size() == kMaxBytes)
      throw refused(fmt::format("the pickle is longer than {} bytes", kMaxBytes));
    throw refused("the pickle ends here", "the file is truncated: fetch it again");
  }
  position_ += count;
  return bytes_.substr(position_ - count, count);
}

std::string_view Unpickler::line() {
  const std::size_t end = bytes_.substr(position_, kMaxGlobal + 1).find('\n');
  if (end == std::string_view::npos)
    throw refused(
        fmt::format("expected the name of a class or function and its line's end within "
                    "{} bytes",
                    kMaxGlobal));
  return take(end + 1).substr(0, end);
}

void Unpickler::push(PickleValue value) {
  if (stack_.size() == kMaxStack)
    throw refused(fmt::format("more than {} values on the stack", kMaxStack));
  stack_.push_back(value);
}

const PickleValue& Unpickler::top() const {
  if (stack_.size() <= fence()) throw refused("the opcode finds no value on the stack");
  return stack_.back();
}

PickleValue Unpickler::pop() {
  const PickleValue value = top();
  stack_.pop_back();
  return value;
}

std::vector<PickleValue> Unpickler::pop_to_mark() {
  if (marks_.empty()) throw refused("the opcode finds no mark on the stack");
  const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  std::vector<PickleValue> items(begin, stack_.end());
  stack_.erase(begin, stack_.end());
  marks_.pop_back();
  return items;
}

PickleNode& Unpickler::make(PickleKind kind) {
  if (result_.nodes.size() == kMaxNodes)
    throw refused(fmt::format("the pickle holds more than {} objects", kMaxNodes));
  result_.nodes.push_back({.kind = kind, .depth = 0, .text = {}, .name = {}, .items = {}});
  return result_.nodes.back();
}

void Unpickler::add_items(PickleNode& node, std::span<const PickleValue> items) {
  items_ += items.size();
  if (items_ > kMaxItems)
    throw refused(fmt::format("the pickle's objects hold more than {} values", kMaxItems));
  for (const PickleValue& item : items) {
    const auto* child = std::get_if<const PickleNode*>(&item);
    if (child != nullptr) node.depth = std::max(node.depth, (*child)->depth + 1);
  }
  if (node.depth > kMaxDepth)
    throw refused(fmt::format("objects are nested deeper than {}", kMaxDepth));
  node.items.insert(node.items.end(), items.begin(), items.end());
}

void Unpickler::push_node(PickleKind kind, std::vector<PickleValue> items) {
  PickleNode& node = make(kind);
  add_items(node, items);
  push(&node);
}

void Unpickler::push_string(std::size_t bytes) {
  if (bytes > kMaxString)
    throw refused(fmt::format("a string of {} bytes, expected at most {}", bytes, kMaxString));
  const std::string_view text = take(bytes);
  if (!is_valid_utf8(text)) throw refused("a string that is not UTF-8");
  PickleNode& node = make(PickleKind::kString);
  node.text = text;
  push(&node);
}

// Little-endian two's complement.
void Unpickler::push_integer(std::size_t bytes) {
  const std::string_view digits = take(bytes);
  if (bytes > sizeof(std::int64_t)) {
    push(&make(PickleKind::kBigInteger));
    return;
  }
  const bool negative = bytes > 0 && (static_cast<std::uint8_t>(digits.back()) & 0x80) != 0;
  std::int64_t value = negative ? -1 : 0;
  std::memcpy(&value, digits.data(), bytes);
  push(value);
}

void Unpickler::push_tuple(std::size_t count) {
  std::vector<PickleValue> items(count);
  for (std::size_t i = count; i-- > 0;) items[i] = pop();
  push_node(PickleKind::kTuple, std::move(items));
}

void Unpickler::push_global() {
  PickleNode& node = make(PickleKind::kGlobal);
  node.text = line();
  node.name = line();
  push(&node);
}

void Unpickler::remember(std::uint32_t index) {
  memo_[index] = top();
  if (memo_.size() > kMaxMemo)
    throw refused(fmt::format("the pickle remembers more than {} objects", kMaxMemo));
}

void Unpickler::recall(std::uint32_t index) {
  const auto found = memo_.find(index);
  if (found == memo_.end())
    throw refused(fmt::format("object {} is used before it is made", index));
  push(found->second);
}

PickleNode* Unpickler::top_container(PickleKind kind) {
  const PickleNode* node = as_node(top(), kind);
  if (node == nullptr)
    throw refused(fmt::format("items are added to something that is not a {}",
                              kind == PickleKind::kList ? "list" : "dict"));
  return const_cast<PickleNode*>(node);  // one of result_.nodes, which are ours
}

void Unpickler::append(std::span<const PickleValue> items) {
  add_items(*top_container(PickleKind::kList), items);
}

void Unpickler::set_items(std::span<const PickleValue> items) {
  if (items.size() % 2 != 0) throw refused("a dict's key has no value");
  add_items(*top_container(PickleKind::kDict), items);
}

// Python 2 passes the items as a list of [key, value]; Python 3 sets them afterwards.
void Unpickler::call_ordered_dict(const PickleNode& arguments) {
  std::vector<PickleValue> items;
  if (!arguments.items.empty()) {
    const PickleNode* list = as_node(arguments.items.front(), PickleKind::kList);
    if (list == nullptr || arguments.items.size() > 1)
      throw refused("collections.OrderedDict should be called without or with one list");
    for (const PickleValue& item : list->items) {
      const PickleNode* pair = as_node(item, PickleKind::kList);
      if (pair == nullptr) pair = as_node(item, PickleKind::kTuple);
      if (pair == nullptr || pair->items.size() != 2)
        throw refused("collections.OrderedDict should be made of pairs");
      items.insert(items.end(), pair->items.begin(), pair->items.end());
    }
  }
  push_node(PickleKind::kDict, std::move(items));
}

void Unpickler::call() {
  const PickleValue arguments = pop(), callee = pop();
  const PickleNode* tuple = as_node(arguments, PickleKind::kTuple);
  const PickleNode* global = as_node(callee, PickleKind::kGlobal);
  if (tuple == nullptr || global == nullptr)
    throw refused("a call of something that is not a class or function with its arguments");
  const std::string name = global_name(*global);
  if (name == kOrderedDict) return call_ordered_dict(*tuple);
  if (std::find(context_.callables.begin(), context_.callables.end(), name) ==
      context_.callables.end())
    throw refused(fmt::format("the file wants to call {}: refused", quote_name(name)),
                  "only tensors are read; if you trust the file, save its state_dict alone with "
                  "PyTorch: torch.save(model.state_dict(), 'pytorch_model.bin')");
  std::vector<PickleValue> items{callee};
  items.insert(items.end(), tuple->items.begin(), tuple->items.end());
  push_node(PickleKind::kCall, std::move(items));
}

// Sets attributes of an object. On the OrderedDict of a state_dict that is "_metadata", versions of
// the modules, which say nothing about weights.
void Unpickler::build() {
  pop();
  if (as_node(top(), PickleKind::kDict) == nullptr)
    throw refused("the file wants to set the state of an object that is not a dict: refused");
}

void Unpickler::step(Opcode opcode) {
  switch (opcode) {
    case Opcode::kProto:
      if (const auto version = number<std::uint8_t>(); version != kProtocol)
        throw refused(
            fmt::format("pickle protocol {}, expected {}, torch.save's own", version, kProtocol),
            "save it again with torch.save and its default pickle_protocol");
      return;
    case Opcode::kMark:
      if (marks_.size() == kMaxMarks)
        throw refused(fmt::format("objects are nested deeper than {}", kMaxMarks));
      return marks_.push_back(stack_.size());
    case Opcode::kNone:
      return push(std::monostate{});
    case Opcode::kNewTrue:
      return push(true);
    case Opcode::kNewFalse:
      return push(false);
    case Opcode::kBinInt:
      return push(std::int64_t{number<std::int32_t>()});
    case Opcode::kBinInt1:
      return push(std::int64_t{number<std::uint8_t>()});
    case Opcode::kBinInt2:
      return push(std::int64_t{number<std::uint16_t>()});
    case Opcode::kLong1:
      return push_integer(number<std::uint8_t>());
    case Opcode::kBinFloat:  // the one big-endian number
      return push(std::bit_cast<double>(__builtin_bswap64(number<std::uint64_t>())));
    case Opcode::kBinUnicode:
      return push_string(number<std::uint32_t>());
    case Opcode::kShortBinString:
      return push_string(number<std::uint8_t>());
    case Opcode::kGlobal:
      return push_global();
    case Opcode::kEmptyTuple:
      return push_tuple(0);
    case Opcode::kTuple1:
      return push_tuple(1);
    case Opcode::kTuple2:
      return push_tuple(2);
    case Opcode::kTuple3:
      return push_tuple(3);
    case Opcode::kTuple:
      return push_node(PickleKind::kTuple, pop_to_mark());
    case Opcode::kEmptyList:
    case Opcode::kEmptySet:  // without ADDITEMS it stays empty
      return push_node(PickleKind::kList, {});
    case Opcode::kEmptyDict:
      return push_node(PickleKind::kDict, {});
    case Opcode::kAppend: {
      const PickleValue item = pop();
      return append({&item, 1});
    }
    case Opcode::kAppends:
      return append(pop_to_mark());
    case Opcode::kSetItem: {
      const PickleValue value = pop(), key = pop();
      return set_items(std::array{key, value});
    }
    case Opcode::kSetItems:
      return set_items(pop_to_mark());
    case Opcode::kBinPut:
      return remember(number<std::uint8_t>());
    case Opcode::kLongBinPut:
      return remember(number<std::uint32_t>());
    case Opcode::kBinGet:
      return recall(number<std::uint8_t>());
    case Opcode::kLongBinGet:
      return recall(number<std::uint32_t>());
    case Opcode::kBinPersId:
      push_node(PickleKind::kPersistent, {pop()});
      result_.persistent.push_back(std::get<const PickleNode*>(top()));
      return;
    case Opcode::kReduce:
    case Opcode::kNewObj:
      return call();
    case Opcode::kBuild:
      return build();
    case Opcode::kStop:
      break;  // run() ends
  }
  throw refused(fmt::format("opcode 0x{:02x} is not one of those that torch.save writes",
                            static_cast<unsigned>(opcode)),
                "save it again with torch.save and its default pickle_protocol");
}

Pickle Unpickler::run() {
  for (;;) {
    opcode_at_ = position_;
    const auto opcode = static_cast<Opcode>(number<std::uint8_t>());
    if (opcode == Opcode::kStop) break;
    step(opcode);
  }
  if (!marks_.empty() || stack_.size() != 1)
    throw refused(fmt::format("the pickle ends with {} values, expected 1", stack_.size()));
  result_.root = stack_.back();
  result_.bytes = position_;
  return std::move(result_);
}

}  // namespace

Pickle unpickle(std::string_view bytes, const PickleContext& context) {
  return Unpickler(bytes, context).run();
}

std::string global_name(const PickleNode& global) {
  return fmt::format("{}.{}", global.text, global.name);
}

const PickleNode* as_node(const PickleValue& value, PickleKind kind) {
  const auto* node = std::get_if<const PickleNode*>(&value);
  return node != nullptr && (*node)->kind == kind ? *node : nullptr;
}

}  // namespace stagecoach
