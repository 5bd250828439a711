#include "base/json.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace stagecoach {
namespace {

// The message of the data_error that `action` throws.
template <typename Action>
std::string data_error_of(Action&& action) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kData);
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

std::string parse_failure(const std::string& text) {
  return data_error_of([&] { parse_json(text, "x.json"); });
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Json, BuildsTheSameDocumentAsNlohmann) {
  const std::string text =
      R"({"a": [1, -2, 3.5, {"b": [[], {}]}, "é\u00e9\ud83d\ude00"], "c": null, "d": {"a": true},
                              "e": 18446744073709551615})";
  EXPECT_EQ(parse_json(text, "x"), Json::parse(text));
  EXPECT_EQ(parse_json("7", "x"), Json(7));
}

TEST(Json, EqualKeysInOneObjectAreRefused) {
  EXPECT_TRUE(contains(parse_failure(R"({"a": 1, "b": {"k": 1, "\u006b": 2}})"), "\"k\""));
  // The same key in two objects is none of that.
  EXPECT_EQ(parse_json(R"([{"k": 1}, {"k": {"k": 2}}])", "x").size(), 2u);
}

TEST(Json, DepthIsLimited) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW(parse_json(nested(32), "x"));
  EXPECT_TRUE(contains(parse_failure(nested(33)), "32 levels"));
  EXPECT_TRUE(contains(parse_failure(std::string(1 << 20, '[')), "32 levels"));
  EXPECT_NO_THROW(parse_json(nested(33), "x", 33));
}

TEST(Json, MalformedTextNamesFileAndPlace) {
  for (const char* text : {"", "{", "[1,]", "{\"a\":1,}", "{} {}", "[01]", "[1e999]", "'a'", "nul",
                           "[\"\x01\"]", "{\"a\" 1}", "\"\xff\"", "[NaN]", "// comment\n{}"}) {
    const std::string message = parse_failure(text);
    EXPECT_TRUE(contains(message, "x.json")) << message;
    EXPECT_TRUE(contains(message, "byte")) << message;
  }
}

TEST(Json, ErrorsStayShortWhateverTheFileHolds) {
  const std::string huge(1 << 20, 'x');
  EXPECT_LT(parse_failure("[\"" + huge).size(), 400u);
  EXPECT_LT(parse_failure("{\"" + huge + "\":1,\"" + huge + "\":2}").size(), 400u);
  const Json json{{"a", huge}, {huge, 1}};
  const JsonObject object(json, "x.json");
  EXPECT_LT(data_error_of([&] { object.integer("a"); }).size(), 200u);
  EXPECT_LT(data_error_of([&] { object.only({"a"}); }).size(), 200u);
}

TEST(Json, CutMessagesRemainUtf8) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "é";
  for (const std::string prefix : {"", "a"}) {
    const Json json{{"a", prefix + text}};
    const std::string message = data_error_of([&] { JsonObject(json, "x").integer("a"); });
    EXPECT_NO_THROW(Json(message).dump()) << message;
  }
}

class JsonObjectTest : public testing::Test {
 protected:
  const Json json_ =
      parse_json(R"({"i": 3, "big": 9223372036854775808, "f": 1.0, "s": "t", "b": false, "n": null,
                                    "a": [1], "o": {"x": 1}})",
                 "x.json");
  const JsonObject object_{json_, "x.json"};
};

TEST_F(JsonObjectTest, ReadsWhatIsThere) {
  EXPECT_EQ(object_.integer("i"), 3);
  EXPECT_EQ(object_.integer_in("i", 3, 3), 3);
  EXPECT_EQ(object_.number("i"), 3.0);
  EXPECT_EQ(object_.number("f"), 1.0);
  EXPECT_EQ(object_.string("s"), "t");
  EXPECT_FALSE(object_.boolean("b"));
  EXPECT_EQ(object_.array("a").size(), 1u);
  EXPECT_EQ(object_.object("o").integer("x"), 1);
  EXPECT_TRUE(object_.has("b"));
}

TEST_F(JsonObjectTest, MissingAndNullFallBackOnlyWhenAsked) {
  EXPECT_FALSE(object_.has("n"));
  EXPECT_FALSE(object_.has("zz"));
  EXPECT_EQ(object_.integer_or("n", 5), 5);
  EXPECT_EQ(object_.string_or("zz", "d"), "d");
  EXPECT_EQ(object_.number_or("zz", 0.5), 0.5);
  EXPECT_TRUE(object_.boolean_or("zz", true));
  EXPECT_TRUE(contains(data_error_of([&] { object_.integer("zz"); }), "\"zz\" is missing"));
  data_error_of([&] { object_.integer("n"); });
}

TEST_F(JsonObjectTest, WrongTypesAreErrorsEvenWithAFallback) {
  EXPECT_TRUE(contains(data_error_of([&] { object_.integer("f"); }), "an integer, found 1.0"));
  EXPECT_TRUE(contains(data_error_of([&] { object_.integer("big"); }), "9223372036854775808"));
  data_error_of([&] { object_.integer("b"); });
  data_error_of([&] { object_.integer_or("s", 1); });
  data_error_of([&] { object_.number("s"); });
  data_error_of([&] { object_.number("b"); });
  data_error_of([&] { object_.boolean("i"); });
  data_error_of([&] { object_.string("i"); });
  data_error_of([&] { object_.array("o"); });
  data_error_of([&] { object_.integer_in("i", 4, 9); });
  EXPECT_TRUE(contains(data_error_of([&] { object_.object("a"); }), "\"a\""));
  data_error_of([&] { JsonObject(json_.at("a"), "x.json"); });
}

TEST_F(JsonObjectTest, UnknownKeysAreNamed) {
  EXPECT_TRUE(contains(data_error_of([&] {
                         object_.only({"i", "big", "f", "s", "b", "n", "a"});
                       }),
                       "\"o\""));
  EXPECT_NO_THROW(object_.only({"i", "big", "f", "s", "b", "n", "a", "o", "more"}));
}

}  // namespace
}  // namespace stagecoach
