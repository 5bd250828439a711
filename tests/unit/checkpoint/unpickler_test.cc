#include "checkpoint/pytorch/unpickler.h"

#include <gtest/gtest.h>

#include <array>
#include <deque>

#include "base/error.h"
#include "support_pytorch.h"

namespace stagecoach {
namespace {

using namespace test;

constexpr std::array<std::string_view, 1> kCallables = {"module.function"};

Pickle read(const std::string& bytes) {
  static std::deque<std::string> kept;  // the result's strings are views
  return unpickle(kept.emplace_back(bytes), {.where = "x.bin", .callables = kCallables});
}

std::string error_of(const std::string& program) {
  try {
    read("\x80\x02" + program);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    EXPECT_NE(std::string(error.what()).find("x.bin"), std::string::npos) << error.what();
    return error.what();
  }
  return "accepted";
}

#define EXPECT_REFUSED(text, part) EXPECT_PRED_FORMAT2(testing::IsSubstring, part, text)

std::string repeated(std::string_view text, std::size_t times) {
  std::string result;
  for (std::size_t i = 0; i < times; ++i) result += text;
  return result;
}

PickleValue scalar(const std::string& program) {
  return read(pickled(program)).root;
}

TEST(Unpickler, ReadsScalars) {
  EXPECT_EQ(scalar("N"), PickleValue(std::monostate{}));
  EXPECT_EQ(scalar("\x88"), PickleValue(true));
  EXPECT_EQ(scalar("\x89"), PickleValue(false));
  EXPECT_EQ(scalar("K\xff"), PickleValue(std::int64_t{255}));
  EXPECT_EQ(scalar("M\xff\xff"), PickleValue(std::int64_t{65535}));
  EXPECT_EQ(scalar("J\xfe\xff\xff\xff"), PickleValue(std::int64_t{-2}));
  EXPECT_EQ(scalar(std::string("\x8a\x00", 2)), PickleValue(std::int64_t{0}));
  EXPECT_EQ(scalar("\x8a\x01\xff"), PickleValue(std::int64_t{-1}));
  EXPECT_EQ(scalar(std::string("\x8a\x02\xff\x00", 4)), PickleValue(std::int64_t{255}));
  EXPECT_EQ(scalar(pickled_number(INT64_MIN)), PickleValue(std::int64_t{INT64_MIN}));
  EXPECT_EQ(scalar(std::string("G\xbf\xf8\0\0\0\0\0\0", 9)), PickleValue(-1.5));
  const Pickle big = read(pickled("\x8a\xff" + std::string(255, '\x7f')));
  EXPECT_NE(as_node(big.root, PickleKind::kBigInteger), nullptr);
}

TEST(Unpickler, ReadsContainersAndTheMemo) {
  // {"k": [1, 2, 3], "l": <the same list>, "t": (1, 2)}
  const std::string bytes = pickled("}(" + pickled_text("k") + "]q\x05K\x01" + "a(K\x02K\x03" +
                                    "e" + "U\x01lh\x05" + pickled_text("t") + "K\x01K\x02\x86u");
  const Pickle pickle = read(bytes + "what follows");
  EXPECT_EQ(pickle.bytes, bytes.size());
  const PickleNode* dict = as_node(pickle.root, PickleKind::kDict);
  ASSERT_NE(dict, nullptr);
  ASSERT_EQ(dict->items.size(), 6u);
  EXPECT_EQ(as_node(dict->items[2], PickleKind::kString)->text, "l");
  const PickleNode* list = as_node(dict->items[1], PickleKind::kList);
  ASSERT_NE(list, nullptr);
  EXPECT_EQ(list->items.size(), 3u);
  EXPECT_EQ(list, as_node(dict->items[3], PickleKind::kList));
  EXPECT_EQ(as_node(dict->items[5], PickleKind::kTuple)->items.size(), 2u);
}

TEST(Unpickler, CallsAreNodes) {
  const Pickle pickle = read(pickled(pickled_global("module", "function") + "K\x01\x85R"));
  const PickleNode* call = as_node(pickle.root, PickleKind::kCall);
  ASSERT_NE(call, nullptr);
  ASSERT_EQ(call->items.size(), 2u);
  EXPECT_EQ(global_name(*as_node(call->items[0], PickleKind::kGlobal)), "module.function");
  EXPECT_EQ(call->items[1], PickleValue(std::int64_t{1}));
}

TEST(Unpickler, OrderedDictOfPythonTwoAndThree) {
  const std::string ordered = pickled_global("collections", "OrderedDict");
  const std::string state = "}" + pickled_text("_metadata") + "Nsb";
  for (const std::string& program :
       {ordered + ")R" + pickled_text("k") + "K\x07s" + state,
        ordered + "](](U\x01kK\x07" + "ee\x85R", ordered + "]U\x01kK\x07\x86" + "a\x85R"}) {
    const Pickle pickle = read(pickled(program));
    const PickleNode* dict = as_node(pickle.root, PickleKind::kDict);
    ASSERT_NE(dict, nullptr);
    ASSERT_EQ(dict->items.size(), 2u);
    EXPECT_EQ(as_node(dict->items[0], PickleKind::kString)->text, "k");
    EXPECT_EQ(dict->items[1], PickleValue(std::int64_t{7}));
  }
  EXPECT_REFUSED(error_of(ordered + "]U\x01k" + "a\x85R."), "made of pairs");
  EXPECT_REFUSED(error_of(ordered + "K\x01\x85R."), "with one list");
}

TEST(Unpickler, RefusesToCallByName) {
  EXPECT_REFUSED(error_of("cos\nsystem\n(U\x04true"
                          "tR."),
                 "wants to call \"os.system\": refused");
  EXPECT_REFUSED(error_of("c__builtin__\neval\n(U\x01"
                          "1tR."),
                 "\"__builtin__.eval\": refused");
  EXPECT_REFUSED(error_of("cposix\nsystem\n)\x81."), "\"posix.system\": refused");
  EXPECT_REFUSED(error_of("cos\n\x1b[2J\n)R."), "\\u001b");
  // A name alone does nothing.
  EXPECT_EQ(error_of("cos\nsystem\n."), "accepted");
  EXPECT_REFUSED(error_of("K\x01)R."), "not a class or function");
  EXPECT_REFUSED(error_of(pickled_global("module", "function") + "K\x01R."), "not a class");
  EXPECT_REFUSED(error_of(pickled_global("module", "function") + ")R}b."), "not a dict");
}

TEST(Unpickler, RefusesOtherOpcodesByNumber) {
  // Every byte that is not one of torch.save's opcodes; INST, OBJ, EXT1, STACK_GLOBAL among them.
  const std::string known = "(.JKMNQRUXabcehjqrstuG)]}\x80\x81\x85\x86\x87\x88\x89\x8a\x8f";
  for (int byte = 0; byte < 256; ++byte) {
    if (known.find(static_cast<char>(byte)) != std::string::npos) continue;
    EXPECT_REFUSED(error_of(std::string(1, static_cast<char>(byte)) + "."),
                   fmt::format("opcode 0x{:02x}", byte));
  }
  EXPECT_REFUSED(error_of("\x80\x04."), "protocol 4");
}

TEST(Unpickler, RefusesBrokenStacks) {
  for (const char* program : {"a.", "}N", "]a.", "s.", "}s.", "}Ks.", "\x85.", "K\x01\x86.", "R.",
                              "b.", "Q.", "q\x01.", "(K\x01", "t.", "e.", "u.", ".", "NN.", "(."})
    EXPECT_NE(error_of(program), "accepted") << program;
  EXPECT_REFUSED(error_of("K\x01K\x02"
                          "a."),
                 "not a list");
  EXPECT_REFUSED(error_of("](Na."), "no value");  // the mark shields what is below
  EXPECT_REFUSED(error_of("K\x01(K\x02"
                          "e."),
                 "not a list");
  EXPECT_REFUSED(error_of("}(K\x01u."), "no value");
  EXPECT_REFUSED(error_of("](NNu."), "not a dict");
  EXPECT_REFUSED(error_of("h\x07."), "before it is made");
  EXPECT_REFUSED(error_of("NN."), "ends with 2 values");
}

TEST(Unpickler, RefusesBrokenTexts) {
  EXPECT_REFUSED(error_of("X" + u32(5) + "1234"), "ends here");
  EXPECT_REFUSED(error_of("X" + u32(0xffffffff) + "1234"), "at most");
  EXPECT_REFUSED(error_of("X" + u32(65537) + std::string(65537, 'x') + "."), "at most");
  EXPECT_EQ(error_of("X" + u32(65536) + std::string(65536, 'x') + "."), "accepted");
  EXPECT_REFUSED(error_of("U\x01\xff."), "not UTF-8");
  EXPECT_REFUSED(error_of("c" + std::string(1000, 'x') + "\ny\n."), "within 256");
  EXPECT_REFUSED(error_of("cx\ny"), "line's end");
}

TEST(Unpickler, NestingIsBounded) {
  constexpr std::size_t kDeep = 1'000'000;
  EXPECT_REFUSED(error_of(repeated("(", kDeep)), "nested deeper");
  EXPECT_REFUSED(error_of("N" + repeated("\x85", kDeep) + "."), "nested deeper");
  EXPECT_REFUSED(error_of(repeated("]", kDeep - 1) + repeated("a", kDeep - 2) + "."),
                 "nested deeper");
  EXPECT_EQ(error_of("N" + repeated("\x85", 60) + "."), "accepted");
}

// Each list holds the one before twice: 2^50 leaves if anybody walked them.
TEST(Unpickler, SharedAndCyclicObjectsCostWhatTheyTakeInTheFile) {
  std::string bomb = "]q";
  bomb += '\0';
  for (char i = 1; i <= 50; ++i) {
    bomb +=
        std::string("](h") + static_cast<char>(i - 1) + "h" + static_cast<char>(i - 1) + "eq" + i;
  }
  // 51 lists are on the stack: into one tuple.
  EXPECT_EQ(error_of("(" + bomb + "t."), "accepted");
  EXPECT_EQ(error_of(std::string("]q\x01h\x01"
                                 "a.")),
            "accepted");  // a list in itself
}

TEST(Unpickler, CountsAreBounded) {
  EXPECT_REFUSED(error_of(repeated("N", 1'000'001)), "on the stack");
  EXPECT_REFUSED(error_of("(" + repeated(repeated("]", 900'000) + "t(", 3)), "objects");
  EXPECT_REFUSED(error_of(repeated("(" + repeated("N", 900'000) + "t", 10)), "values");
  std::string memo = "N";
  for (std::uint32_t i = 0; i <= 2'000'000; ++i) memo += "r" + u32(i * 2147u);
  EXPECT_REFUSED(error_of(memo), "remembers");
  // A call copies its arguments: not for free.
  const std::string call =
      pickled_global("module", "function") + "q\x01(" + repeated("N", 100'000) + "tq\x02";
  EXPECT_REFUSED(error_of(call + repeated("h\x01h\x02R", 100)), "values");
}

TEST(Unpickler, EveryTruncationIsRefused) {
  const std::string bytes = "\x80\x02}" + pickled_text("a") + TensorText{}.pickle() + "s.";
  const std::array<std::string_view, 1> callables = {"torch._utils._rebuild_tensor_v2"};
  const PickleContext context{.where = "x.bin", .callables = callables};
  EXPECT_EQ(unpickle(bytes, context).persistent.size(), 1u);
  for (std::size_t length = 0; length < bytes.size(); ++length)
    EXPECT_THROW(unpickle(std::string_view(bytes).substr(0, length), context), Error) << length;
}

}  // namespace
}  // namespace stagecoach
