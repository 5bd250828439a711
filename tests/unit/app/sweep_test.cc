#include "app/sweep.h"

#include <gtest/gtest.h>

#include <sstream>

#include "base/error.h"

namespace stagecoach {
namespace {

std::vector<std::string> names_of(const SweepAxes& axes) {
  std::vector<std::string> names;
  for (const Combination& c : combinations(axes)) names.push_back(c.name);
  return names;
}

TEST(Sweep, IsACrossProductWithTheBatchInnermost) {
  SweepAxes axes{.stores = {"s"},
                 .weights = {},
                 .windows = {},
                 .threads = {1, 2},
                 .micro_batches = {256},
                 .tokens = {16, 64},
                 .batches = {1}};
  EXPECT_EQ(names_of(axes),
            (std::vector<std::string>{"threads 1, tokens 16", "threads 1, tokens 64",
                                      "threads 2, tokens 16", "threads 2, tokens 64"}));
  const std::vector<Combination> all = combinations(axes);
  EXPECT_EQ(all[3].number, 4);
  EXPECT_EQ(all[3].store, "s");
  EXPECT_EQ(all[3].threads, 2);
  EXPECT_EQ(all[3].micro_batch, 256);
  EXPECT_EQ(all[3].tokens, 64);
  EXPECT_EQ(all[3].batch, 1);
  axes.threads = {};
  axes.tokens = {16};
  EXPECT_EQ(names_of(axes), std::vector<std::string>{""});
}

TEST(Sweep, WeightsNameTheirStores) {
  const std::vector<Combination> all = combinations({.stores = {"a-{weights}/x-{weights}"},
                                                     .weights = {"f16", "f32"},
                                                     .windows = {"0:3,3:7"},
                                                     .threads = {},
                                                     .micro_batches = {},
                                                     .tokens = {8},
                                                     .batches = {}});
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].store, "a-f16/x-f16");
  EXPECT_EQ(all[1].store, "a-f32/x-f32");
  EXPECT_EQ(all[1].weights, "f32");
  EXPECT_EQ(all[1].name, "weights f32");
}

TEST(Sweep, RefusesWhatHasNoMeaning) {
  const auto refuses = [](const SweepAxes& axes, const char* word) {
    try {
      combinations(axes);
      ADD_FAILURE() << word;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  SweepAxes axes{.stores = {"s"},
                 .weights = {},
                 .windows = {},
                 .threads = {},
                 .micro_batches = {},
                 .tokens = {8, 16, 8},
                 .batches = {}};
  refuses(axes, "--tokens has 8 twice");
  axes.tokens = {8};
  axes.weights = {"f16"};
  refuses(axes, "{weights}");
  axes.weights = {};
  axes.stores = {"s-{weights}"};
  refuses(axes, "--weights");
}

TEST(SweepCsv, HasARowForThePassAndOneForEachLayer) {
  LayerRow layer;
  layer.layer = 3;
  layer.rank = 1;
  layer.host = "pc, 2";
  layer.phase = Phase::kDecode;
  layer.passes = 5;
  layer.ms = 2;
  LayerRow other = layer;
  other.phase = Phase::kPrefill;  // of a phase that has no result: not shown
  const SweepResult result{.combination = {.number = 2,
                                           .store = "s",
                                           .weights = {},
                                           .windows = {},
                                           .threads = 0,
                                           .micro_batch = 256,
                                           .tokens = 16,
                                           .batch = 4,
                                           .name = "x"},
                           .weights = "f16",
                           .windows = "0:3,3:7",
                           .threads = "4",
                           .ranks = 2,
                           .phases = {{.phase = Phase::kDecode,
                                       .passes = 5,
                                       .tokens = 4,
                                       .ms = 10,
                                       .ms_q1 = 8,
                                       .ms_q3 = 20,
                                       .tokens_per_second = 400}},
                           .rows = {layer, other}};
  std::istringstream csv(sweep_csv({result}));
  std::string header, pass, row, rest;
  std::getline(csv, header);
  std::getline(csv, pass);
  std::getline(csv, row);
  EXPECT_FALSE(std::getline(csv, rest)) << rest;
  EXPECT_EQ(header.rfind("combination,store,weights,ranks,windows,threads,micro_batch,tokens,batch,"
                         "phase,layer,rank,host,passes,ms,ms_q1,ms_q3,tokens_per_second,",
                         0),
            0u);
  EXPECT_EQ(pass, "2,s,f16,2,\"0:3,3:7\",4,256,16,4,decode,,,,5,10,8,20,400,200,500,,,,,,,,");
  EXPECT_EQ(row.rfind("2,s,f16,2,\"0:3,3:7\",4,256,16,4,decode,3,1,\"pc, 2\",5,2,", 0), 0u) << row;
}

}  // namespace
}  // namespace stagecoach
