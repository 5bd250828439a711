#include "checkpoint/pytorch/torch_tensor.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "checkpoint/foreign_text.h"

namespace stagecoach {
namespace {

constexpr std::size_t kMaxDimensions = 64;  // PyTorch's own limit

constexpr std::string_view kTensorV1 = "torch._utils._rebuild_tensor",
                           kTensorV2 = "torch._utils._rebuild_tensor_v2",
                           kTensorV3 = "torch._utils._rebuild_tensor_v3",
                           kParameter = "torch._utils._rebuild_parameter",
                           kParameterWithState = "torch._utils._rebuild_parameter_with_state",
                           kParameterClass = "torch.nn.parameter.Parameter", kSize = "torch.Size",
                           kDevice = "torch.device";
constexpr std::array kCallables = {kTensorV1,           kTensorV2,       kTensorV3, kParameter,
                                   kParameterWithState, kParameterClass, kSize,     kDevice};

struct ElementType {
  std::string_view storage, dtype;  // torch.FloatStorage of torch.float32
  std::int64_t bytes;
  std::optional<BlockFormat> format = std::nullopt;
};
constexpr std::array<ElementType, 20> kTypes = {{
    {"FloatStorage", "float32", 4, BlockFormat::kF32},
    {"HalfStorage", "float16", 2, BlockFormat::kF16},
    {"BFloat16Storage", "bfloat16", 2, BlockFormat::kBF16},
    {"DoubleStorage", "float64", 8},
    {"LongStorage", "int64", 8},
    {"IntStorage", "int32", 4},
    {"ShortStorage", "int16", 2},
    {"CharStorage", "int8", 1},
    {"ByteStorage", "uint8", 1},
    {"BoolStorage", "bool", 1},
    {"ComplexFloatStorage", "complex64", 8},
    {"ComplexDoubleStorage", "complex128", 16},
    // Without a storage class of their own.
    {"", "uint16", 2},
    {"", "uint32", 4},
    {"", "uint64", 8},
    {"", "float8_e4m3fn", 1},
    {"", "float8_e4m3fnuz", 1},
    {"", "float8_e5m2", 1},
    {"", "float8_e5m2fnuz", 1},
    {"", "float8_e8m0fnu", 1},
}};

const ElementType* find_type(std::string_view ElementType::*field, std::string_view name) {
  const auto found = std::find_if(kTypes.begin(), kTypes.end(), [&](const ElementType& type) {
    return !name.empty() && type.*field == name;
  });
  return found == kTypes.end() ? nullptr : &*found;
}

std::string_view text_of(const PickleValue& value) {
  const PickleNode* node = as_node(value, PickleKind::kString);
  return node == nullptr ? std::string_view() : node->text;
}

bool is_none(const PickleValue& value) {
  return std::holds_alternative<std::monostate>(value);
}

// Of a call node: "torch.Size".
std::string callee(const PickleNode& call) {
  return global_name(*as_node(call.items.front(), PickleKind::kGlobal));
}

class Rebuilder {
 public:
  Rebuilder(const TorchFile& file, const std::string& name)
      : file_(file), where_(fmt::format("{}: tensor {}", file.where, quote_name(name))) {}
  StoredTensor rebuild(const PickleValue& value);

 private:
  const PickleNode& unwrap(const PickleValue& value) const;
  std::int64_t size(const PickleValue& value, const char* what) const;
  std::vector<std::int64_t> sizes(const PickleValue& value, const char* what) const;
  ElementType element_type(const PickleNode& call, const TorchStorage& storage) const;
  void place(StoredTensor& tensor, std::int64_t first, std::int64_t element_bytes,
             const StorageExtent& extent) const;
  Error broken(const std::string& problem) const {
    return data_error(fmt::format("{}: {}", where_, problem));
  }

  const TorchFile& file_;
  std::string where_;
};

// The tensor in a parameter.
const PickleNode& Rebuilder::unwrap(const PickleValue& value) const {
  // Nesting of the pickle bounds the number of steps.
  for (PickleValue current = value;;) {
    if (!is_tensor(current)) throw broken("a parameter should hold a tensor");
    const PickleNode& call = *as_node(current, PickleKind::kCall);
    const std::string name = callee(call);
    if (name == kTensorV1 || name == kTensorV2 || name == kTensorV3) return call;
    if (call.items.size() < 2) throw broken("a parameter should hold a tensor");
    current = call.items[1];
  }
}

std::int64_t Rebuilder::size(const PickleValue& value, const char* what) const {
  const auto* number = std::get_if<std::int64_t>(&value);
  if (number == nullptr || *number < 0)
    throw broken(fmt::format("{} should be a whole number from 0 to 2^63-1", what));
  return *number;
}

std::vector<std::int64_t> Rebuilder::sizes(const PickleValue& value, const char* what) const {
  const PickleNode* tuple = as_node(value, PickleKind::kTuple);
  const PickleNode* call = as_node(value, PickleKind::kCall);
  if (call != nullptr && call->items.size() == 2 && callee(*call) == kSize)
    tuple = as_node(call->items[1], PickleKind::kTuple);
  if (tuple == nullptr || tuple->items.size() > kMaxDimensions)
    throw broken(fmt::format("{} should be a tuple of at most {} numbers", what, kMaxDimensions));
  std::vector<std::int64_t> result;
  result.reserve(tuple->items.size());
  for (const PickleValue& item : tuple->items) result.push_back(size(item, what));
  return result;
}

// The storage's own but for _rebuild_tensor_v3, which names it.
ElementType Rebuilder::element_type(const PickleNode& call, const TorchStorage& storage) const {
  if (callee(call) != kTensorV3) return {storage.type, "", storage.element_bytes, storage.format};
  const PickleNode* global = as_node(call.items[7], PickleKind::kGlobal);
  const std::string name = global == nullptr ? "something else" : global_name(*global);
  const ElementType* type =
      name.starts_with("torch.") ? find_type(&ElementType::dtype, name.substr(6)) : nullptr;
  if (type == nullptr)
    throw broken(
        fmt::format("its type should be a known one of torch, found {}", quote_name(name)));
  return *type;
}

// Fills in the extent of the tensor, whose first element is element `first` of the storage.
void Rebuilder::place(StoredTensor& tensor, std::int64_t first, std::int64_t element_bytes,
                      const StorageExtent& extent) const {
  tensor.offset = extent.offset;
  const std::int64_t elements = extent.bytes / element_bytes;
  if (std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end()) {
    tensor.strides.clear();
    return;
  }
  std::int64_t last = first, packed_stride = 1;
  bool packed = true;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    const std::int64_t dimension = tensor.shape[i], stride = tensor.strides[i];
    if (dimension == 1) continue;
    packed = packed && stride == packed_stride;
    std::int64_t reach = 0;
    if (__builtin_mul_overflow(dimension - 1, stride, &reach) ||
        __builtin_add_overflow(last, reach, &last) ||
        __builtin_mul_overflow(packed_stride, dimension, &packed_stride))
      throw broken(fmt::format("shape {} with strides {} overflows 2^63 elements",
                               shape_text(tensor.shape), shape_text(tensor.strides)));
  }
  if (packed) tensor.strides.clear();
  if (last >= elements)
    throw broken(fmt::format("shape {} from element {} reaches element {} of a storage of {}",
                             shape_text(tensor.shape), first, last, elements));
  tensor.offset += first * element_bytes;
  tensor.bytes = (last - first + 1) * element_bytes;
}

StoredTensor Rebuilder::rebuild(const PickleValue& value) {
  const PickleNode& call = unwrap(value);
  const std::string name = callee(call);
  // The call's name, then storage, offset, size, stride; from v2 on requires_grad and hooks, in v3
  // the type, and in newer files metadata.
  const std::size_t arguments = call.items.size() - 1;
  const std::size_t expected = name == kTensorV1 ? 4 : name == kTensorV2 ? 6 : 7;
  const bool metadata = name != kTensorV1 && arguments == expected + 1;
  if (arguments != expected && !metadata)
    throw broken(fmt::format("{} takes {} arguments, found {}", name, expected, arguments));
  if (metadata && !is_none(call.items.back())) {
    const PickleNode* dict = as_node(call.items.back(), PickleKind::kDict);
    if (dict == nullptr || !dict->items.empty())
      throw broken("a tensor with metadata (conjugate or negated views) is not supported");
  }
  const PickleNode* persistent = as_node(call.items[1], PickleKind::kPersistent);
  if (persistent == nullptr) throw broken("it should be made of a storage");
  const TorchStorage storage = parse_storage(*persistent, where_);
  const auto found = file_.storages.find(storage.key);
  if (found == file_.storages.end())
    throw broken(fmt::format("its storage {} is not in the file", quote_name(storage.key)));
  if (storage.bytes() != found->second.bytes)
    throw broken(fmt::format("its storage {} should have {} bytes, found {}",
                             quote_name(storage.key), storage.bytes(), found->second.bytes));
  const ElementType type = element_type(call, storage);

  StoredTensor tensor;
  tensor.file = file_.file;
  tensor.shape = sizes(call.items[3], "its shape");
  tensor.strides = sizes(call.items[4], "its strides");
  if (tensor.shape.size() != tensor.strides.size())
    throw broken(
        fmt::format("{} dimensions have {} strides", tensor.shape.size(), tensor.strides.size()));
  tensor.type =
      type.storage.empty() ? fmt::format("torch.{}", type.dtype) : std::string(type.storage);
  tensor.format = type.format;
  place(tensor, size(call.items[2], "its offset"), type.bytes, found->second);
  return tensor;
}

}  // namespace

std::span<const std::string_view> torch_callables() {
  return kCallables;
}

TorchStorage parse_storage(const PickleNode& persistent, const std::string& where) {
  const PickleNode* id = as_node(persistent.items.front(), PickleKind::kTuple);
  const std::size_t count = id == nullptr ? 0 : id->items.size();
  const PickleNode* type = count < 2 ? nullptr : as_node(id->items[1], PickleKind::kGlobal);
  // A sixth element says which part of another storage this one is; torch.save stopped making such
  // views before 0.4.
  if ((count != 5 && count != 6) || type == nullptr || text_of(id->items[0]) != "storage")
    throw data_error(fmt::format("{}: a persistent object that is not a storage", where),
                     "whole modules are not read: save the state_dict alone with PyTorch");
  TorchStorage storage;
  storage.key = text_of(id->items[2]);
  storage.type = type->name;
  if (count == 6 && !is_none(id->items[5]))
    throw data_error(fmt::format("{}: storage {} is a view of another, which is not supported",
                                 where, quote_name(storage.key)),
                     "load the file with PyTorch and save it again");
  const std::string name = global_name(*type);
  const ElementType* element = find_type(&ElementType::storage, storage.type);
  if (name == "torch.storage.UntypedStorage") {
    storage.element_bytes = 1;
  } else if (element != nullptr && name == fmt::format("torch.{}", storage.type)) {
    storage.element_bytes = element->bytes;
    storage.format = element->format;
  } else {
    throw data_error(fmt::format("{}: storage type {} is not supported", where, quote_name(name)),
                     "load the file with PyTorch and save it in float32, float16 or bfloat16");
  }
  const auto* elements = std::get_if<std::int64_t>(&id->items[4]);
  std::int64_t bytes = 0;
  if (storage.key.empty() || elements == nullptr || *elements < 0 ||
      __builtin_mul_overflow(*elements, storage.element_bytes, &bytes))
    throw data_error(fmt::format("{}: a storage without a proper key or size", where));
  storage.elements = *elements;
  return storage;
}

bool is_tensor(const PickleValue& value) {
  const PickleNode* call = as_node(value, PickleKind::kCall);
  if (call == nullptr) return false;
  const std::string name = callee(*call);
  return name != kSize && name != kDevice;
}

StoredTensor rebuild_tensor(const PickleValue& value, const TorchFile& file,
                            const std::string& name) {
  return Rebuilder(file, name).rebuild(value);
}

}  // namespace stagecoach
