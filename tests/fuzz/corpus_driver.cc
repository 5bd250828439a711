// Runs a fuzz target without libFuzzer: on every file of its corpus, then on changed copies of
// them, the same ones each time. A finding aborts; the input then lies in the working directory.
//
//   fuzz_NAME CORPUS [MUTATIONS]     or     fuzz_NAME FILE, to run one input again
#include <csignal>
#include <cstring>
#include <vector>

#include "base/file.h"
#include "fuzz_input.h"

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxSeedBytes = 1 << 20;
constexpr int kDefaultMutations = 4000;

// splitmix64 (Steele, Lea and Flood 2014): the same sequence everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    state_ += 0x9e3779b97f4a7c15;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t bound) { return next() % bound; }

 private:
  std::uint64_t state_;
};

// One small change, of the kinds that break parsers.
void mutate(std::string& bytes, const std::string& other, Random& random) {
  constexpr std::uint64_t kInteresting[] = {0,
                                            1,
                                            0x7f,
                                            0x80,
                                            0xff,
                                            0x7fff,
                                            0xffff,
                                            0x7fffffff,
                                            0xffffffff,
                                            0x7fffffffffffffff,
                                            0xffffffffffffffff};
  const std::size_t at = random.below(bytes.size() + 1);
  const std::size_t some = std::min(bytes.size() - at, 1 + random.below(16));
  switch (random.below(6)) {
    case 0:  // another byte
      if (at < bytes.size()) bytes[at] = static_cast<char>(random.next());
      return;
    case 1: {  // a number at a limit
      const std::uint64_t number = kInteresting[random.below(std::size(kInteresting))];
      std::memcpy(bytes.data() + at, &number,
                  std::min(bytes.size() - at, std::size_t{1} << random.below(4)));
      return;
    }
    case 2:
      bytes.erase(at, some);
      return;
    case 3:  // a piece a second time
      bytes.insert(at, bytes.substr(at, some));
      return;
    case 4:  // a piece of another seed
      bytes.replace(at, some, other.substr(random.below(other.size() + 1), some));
      return;
    default:
      if (random.below(8) == 0) bytes.resize(at);
  }
}

const std::string* running = nullptr;

void save_input(int signal) {
  if (std::FILE* file = running == nullptr ? nullptr : std::fopen("finding", "wb")) {
    std::fwrite(running->data(), 1, running->size(), file);
    std::fclose(file);
    std::fputs("the input is in the file \"finding\"\n", stderr);
  }
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void run(const std::string& bytes) {
  running = &bytes;
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  running = nullptr;
}

std::vector<std::string> read_seeds(const fs::path& path) {
  std::vector<fs::path> files;
  if (fs::is_directory(path)) {
    for (const fs::directory_entry& item : fs::directory_iterator(path))
      files.push_back(item.path());
  } else {
    files.push_back(path);
  }
  std::sort(files.begin(), files.end());
  std::vector<std::string> seeds;
  for (const fs::path& file : files)
    seeds.push_back(stagecoach::read_text_file(file, kMaxSeedBytes));
  return seeds;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS|FILE [MUTATIONS]\n", argv[0]);
    return 2;
  }
  for (const int signal : {SIGABRT, SIGSEGV, SIGFPE, SIGBUS}) std::signal(signal, save_input);
  const std::vector<std::string> seeds = read_seeds(argv[1]);
  if (seeds.empty()) {
    std::fprintf(stderr, "%s holds no seeds\n", argv[1]);
    return 1;
  }
  for (const std::string& seed : seeds) run(seed);
  const int mutations = !fs::is_directory(argv[1]) ? 0
                        : argc > 2                 ? std::atoi(argv[2])
                                                   : kDefaultMutations;
  Random random(1);
  for (int i = 0; i < mutations; ++i) {
    std::string bytes = seeds[static_cast<std::size_t>(i) % seeds.size()];
    for (std::size_t changes = 1 + random.below(4); changes > 0; --changes)
      mutate(bytes, seeds[random.below(seeds.size())], random);
    run(bytes);
  }
  std::printf("%zu seeds, %d mutations\n", seeds.size(), mutations);
  return 0;
}
