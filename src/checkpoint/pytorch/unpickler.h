// Reads a pickle without executing anything. A pickle is a program for a small stack machine that
// can call whatever Python can import; this one knows the opcodes that torch.save writes and
// torch.load(weights_only=True) accepts
// (https://github.com/pytorch/pytorch, torch/_weights_only_unpickler.py), and a call is a node of
// the result that says what would have been called. Opcodes and callables outside the list are
// refused by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace stagecoach {

enum class PickleKind : std::uint8_t {
  kString,
  kBigInteger,  // one that int64 cannot hold; its value is not kept
  kTuple,
  kList,
  kDict,
  kGlobal,      // a class or function, by name only
  kCall,        // what a callable would return
  kPersistent,  // what the file's reader knows by an id: a tensor's storage
};

struct PickleNode;
// None, or one of Python's scalars, or a node. Several values may refer to one node, and a list may
// hold itself: what walks a pickle must bound its way.
using PickleValue = std::variant<std::monostate, bool, std::int64_t, double, const PickleNode*>;

struct PickleNode {
  PickleKind kind = PickleKind::kTuple;
  int depth = 0;          // of containers in it, when it was filled
  std::string_view text;  // a string, valid UTF-8; a global's module
  std::string_view name;  // a global's name within its module
  // Elements of a tuple or list; keys and values of a dict in turns; a call's global, then its
  // arguments; the one id of a persistent object.
  std::vector<PickleValue> items;
};

struct Pickle {
  std::deque<PickleNode> nodes;  // whose addresses stay
  PickleValue root;
  std::vector<const PickleNode*> persistent;  // all that occur, in order
  std::size_t bytes = 0;                      // up to and with the STOP opcode
};

// Where a pickle stands, and what it may call.
struct PickleContext {
  std::string where;                            // for errors: the file
  std::span<const std::string_view> callables;  // "torch._utils._rebuild_tensor_v2"
};

// The pickle that begins `bytes`, which may go on after it and must outlive the result: strings are
// views. collections.OrderedDict is always callable and makes a dict. Memory and time are linear in
// `bytes`, of which at most 64 MiB are read. Throws data_error.
Pickle unpickle(std::string_view bytes, const PickleContext& context);

// "module.name" of a global.
std::string global_name(const PickleNode& global);

// The node, if `value` is one of this kind; else null.
const PickleNode* as_node(const PickleValue& value, PickleKind kind);

}  // namespace stagecoach
