#include "store/store_writer.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <limits>

#include "unit/store/small_store.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

SlabEntry write_layer(StoreWriter& writer, std::int64_t layer,
                      const StoreWriter::TensorWriter& write_tensor = write_pattern) {
  const ModelSpec spec = small_spec();
  const std::string file = slab_file_name(SlabKind::kLayer, layer);
  return writer.write_slab(file, SlabKind::kLayer, slab_id(spec, DType::kF32, file),
                           slab_tensors(spec, SlabKind::kLayer, DType::kF32), write_tensor);
}

TEST(StoreWriter, SlabNames) {
  EXPECT_EQ(slab_file_name(SlabKind::kEmbedding, 0), "embedding.slab");
  EXPECT_EQ(slab_file_name(SlabKind::kLayer, 3), "layer-003.slab");
  EXPECT_EQ(slab_file_name(SlabKind::kLayer, 1234), "layer-1234.slab");
  EXPECT_EQ(slab_file_name(SlabKind::kHead, 0), "head.slab");
}

TEST(StoreWriter, CommitLeavesOnlyTheStore) {
  const TemporaryFolder folder;
  write_small_store(folder / "deep/er/store");
  std::vector<std::string> names;
  for (const auto& [name, bytes] : folder_contents(folder / "deep/er/store")) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{"embedding.slab", "head.slab", "layer-000.slab",
                                             "layer-001.slab", "layer-002.slab", "manifest.json",
                                             "tokenizer/tokenizer.json"}));
}

TEST(StoreWriter, CompleteStoreStaysUntouched) {
  const TemporaryFolder folder;
  write_small_store(folder / "store");
  const auto before = folder_contents(folder / "store");
  const Error error = error_of([&] { StoreWriter(folder / "store", "a test"); });
  EXPECT_EQ(error.kind(), ErrorKind::kUsage);
  EXPECT_EQ(folder_contents(folder / "store"), before);
}

TEST(StoreWriter, ForeignFilesAreRefusedAndStay) {
  const TemporaryFolder folder;
  for (const char* name : {"thesis.txt", "layer-000.slab"}) {
    const fs::path root = folder / ("with-" + std::string(name));
    fs::create_directory(root);
    set_file_bytes(root / name, "years of work");
    const Error error = error_of([&] { StoreWriter(root, "a test"); });
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    EXPECT_EQ(folder_contents(root).size(), 1u);
    EXPECT_EQ(file_bytes(root / name), "years of work");
  }
  set_file_bytes(folder / "file", "x");
  EXPECT_EQ(error_of([&] { StoreWriter(folder / "file", "a test"); }).kind(), ErrorKind::kUsage);
}

TEST(StoreWriter, NothingFinishedLeavesNothing) {
  const TemporaryFolder folder;
  { StoreWriter writer(folder / "a/b/store", "a test"); }
  EXPECT_FALSE(fs::exists(folder / "a"));
  fs::create_directory(folder / "empty");
  {
    StoreWriter writer(folder / "empty", "a test");
    const auto fail = [](const TensorSpec&, const StoreWriter::Sink&) {
      throw data_error("bad tensor");
    };
    EXPECT_EQ(error_of([&] { write_layer(writer, 0, fail); }).kind(), ErrorKind::kData);
  }
  EXPECT_TRUE(fs::is_empty(folder / "empty"));
}

TEST(StoreWriter, FinishedSlabsSurviveAndAreRecognised) {
  const TemporaryFolder folder;
  SlabEntry first;
  {
    StoreWriter writer(folder / "store", "a test");
    first = write_layer(writer, 0);
    EXPECT_THROW(
        write_layer(writer, 1,
                    [](const TensorSpec&, const StoreWriter::Sink&) { throw std::bad_alloc(); }),
        std::bad_alloc);
  }
  EXPECT_FALSE(fs::exists(folder / "store/layer-001.slab.tmp"));
  {
    StoreWriter writer(folder / "store", "a test");
    const auto entry = writer.finished("layer-000.slab");
    ASSERT_TRUE(entry);
    EXPECT_EQ(to_json(*entry), to_json(first));
    EXPECT_FALSE(writer.finished("layer-001.slab"));
  }
  // A slab that lost its tail, or its header, is not finished any more.
  const std::string whole = file_bytes(folder / "store/layer-000.slab");
  std::string other_header = whole;
  other_header[16] ^= 1;
  for (const std::string& bytes : {whole.substr(0, whole.size() - 1), other_header}) {
    set_file_bytes(folder / "store/layer-000.slab", bytes);
    EXPECT_FALSE(StoreWriter(folder / "store", "a test").finished("layer-000.slab"));
  }
  fs::remove(folder / "store/layer-000.slab");
  EXPECT_FALSE(StoreWriter(folder / "store", "a test").finished("layer-000.slab"));
}

TEST(StoreWriter, AnotherImportsJournalIsRefused) {
  const TemporaryFolder folder;
  {
    StoreWriter writer(folder / "store", "model one");
    write_layer(writer, 0);
  }
  const auto before = folder_contents(folder / "store");
  const Error error = error_of([&] { StoreWriter(folder / "store", "model two"); });
  EXPECT_EQ(error.kind(), ErrorKind::kUsage);
  EXPECT_NE(std::string(error.what()).find("model one"), std::string::npos) << error.what();
  EXPECT_NE(error.hint(), "");
  EXPECT_EQ(folder_contents(folder / "store"), before);
}

TEST(StoreWriter, DamagedJournalIsADataErrorAndNothingIsLost) {
  const TemporaryFolder folder;
  {
    StoreWriter writer(folder / "store", "a test");
    write_layer(writer, 0);
  }
  const std::string journal = file_bytes(folder / "store/import.journal");
  for (const std::string& bytes :
       {std::string(), journal.substr(0, journal.size() / 2), journal + "{}\n"}) {
    set_file_bytes(folder / "store/import.journal", bytes);
    const Error error = error_of([&] { StoreWriter(folder / "store", "a test"); });
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    EXPECT_NE(error.hint(), "");
    EXPECT_TRUE(fs::exists(folder / "store/layer-000.slab"));
  }
}

TEST(StoreWriter, TwoWritersDoNotShareAFolder) {
  const TemporaryFolder folder;
  StoreWriter writer(folder / "store", "a test");
  EXPECT_EQ(error_of([&] { StoreWriter(folder / "store", "a test"); }).kind(), ErrorKind::kUsage);
  write_layer(writer, 0);
  EXPECT_TRUE(writer.finished("layer-000.slab"));
}

TEST(StoreWriter, DiscardLeavesNothing) {
  const TemporaryFolder folder;
  {
    StoreWriter writer(folder / "store", "a test");
    write_layer(writer, 0);
    writer.discard();
  }
  EXPECT_FALSE(fs::exists(folder / "store"));
}

TEST(StoreWriter, AsksForSpaceBeforeItWrites) {
  const TemporaryFolder folder;
  const StoreWriter writer(folder / "store", "a test");
  EXPECT_NO_THROW(writer.require_space(1));
  const Error error =
      error_of([&] { writer.require_space(std::numeric_limits<std::int64_t>::max()); });
  EXPECT_EQ(error.kind(), ErrorKind::kResources);
  EXPECT_NE(std::string(error.what()).find("expected"), std::string::npos) << error.what();
}

TEST(StoreWriter, WrongAmountOfBytesIsABugThatIsNoticed) {
  const TemporaryFolder folder;
  StoreWriter writer(folder / "store", "a test");
  const auto too_few = [](const TensorSpec&, const StoreWriter::Sink&) {};
  const auto too_many = [](const TensorSpec& tensor, const StoreWriter::Sink& sink) {
    sink(std::vector<std::byte>(static_cast<std::size_t>(tensor.bytes()) + 1));
  };
  EXPECT_EQ(error_of([&] { write_layer(writer, 0, too_few); }).kind(), ErrorKind::kInternal);
  EXPECT_EQ(error_of([&] { write_layer(writer, 0, too_many); }).kind(), ErrorKind::kInternal);
}

// A file-size limit stands in for a full disk: the same path through File, without a disk to fill.
TEST(StoreWriter, FullDiskKeepsWhatIsFinished) {
  const TemporaryFolder folder;
  const fs::path root = folder / "store";
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    int verdict = 1;
    {
      std::signal(SIGXFSZ, SIG_IGN);
      StoreWriter writer(root, "a test");
      write_layer(writer, 0);
      const rlimit limit{8192, 8192};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      const Error error = error_of([&] { write_layer(writer, 1); });
      if (error.kind() == ErrorKind::kResources &&
          error.hint().find("run the same command again: it keeps the 1 slabs") !=
              std::string::npos)
        verdict = 0;
    }
    ::_exit(verdict);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_FALSE(fs::exists(root / "manifest.json"));
  EXPECT_FALSE(fs::exists(root / "layer-001.slab"));
  EXPECT_FALSE(fs::exists(root / "layer-001.slab.tmp"));
  StoreWriter writer(root, "a test");
  EXPECT_TRUE(writer.finished("layer-000.slab"));
}

}  // namespace
}  // namespace stagecoach
