#include "base/module.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "base/error.h"

namespace stagecoach {
namespace {

constexpr const char* kCopyAgain =
    "copy lib/stagecoach again from where the binary was built, or install the package again";

class FileForReading {
 public:
  // Not blocking: a FIFO would wait for a writer.
  explicit FileForReading(const std::filesystem::path& path)
      : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
  ~FileForReading() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  FileForReading(const FileForReading&) = delete;
  FileForReading& operator=(const FileForReading&) = delete;

  bool is_open() const { return descriptor_ >= 0; }
  // Bytes; nullopt: it is no regular file.
  std::optional<std::uint64_t> size() const {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
    return static_cast<std::uint64_t>(status.st_size);
  }
  template <typename T>
  bool read(std::uint64_t offset, T& value) const {
    const auto bytes = static_cast<ssize_t>(sizeof(T));
    return ::pread(descriptor_, &value, sizeof(T), static_cast<off_t>(offset)) == bytes;
  }

 private:
  const int descriptor_;
};

// Bytes that the file of a shared object has at least, by its headers; 0: it is none.
std::uint64_t least_size(const FileForReading& file) {
  Elf64_Ehdr header{};
  if (!file.read(0, header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
      header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_type != ET_DYN ||
      header.e_phentsize != sizeof(Elf64_Phdr))
    return 0;
  const auto end_of = [](std::uint64_t begin, std::uint64_t count) {
    return begin > UINT64_MAX - count ? UINT64_MAX : begin + count;
  };
  std::uint64_t end =
      std::max(end_of(header.e_phoff, std::uint64_t{header.e_phnum} * header.e_phentsize),
               end_of(header.e_shoff, std::uint64_t{header.e_shnum} * header.e_shentsize));
  for (std::uint64_t i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment{};
    if (!file.read(header.e_phoff + i * sizeof(segment), segment))
      break;  // beyond the end: counted
    end = std::max(end, end_of(segment.p_offset, segment.p_filesz));
  }
  return end;
}

// What dlopen does not look at: of a file that ends early it maps pages that are not there, and a
// FIFO it waits for.
void check_shared_object(const std::string& name, const std::filesystem::path& path) {
  const FileForReading file(path);
  if (!file.is_open()) return;  // dlopen says why
  const auto problem = [&](const std::string& what) {
    return resource_error(
        fmt::format("the {} module cannot be opened: {}: {}", name, path.string(), what),
        kCopyAgain);
  };
  const std::optional<std::uint64_t> size = file.size();
  if (!size) throw problem("expected a regular file");
  const std::uint64_t least = least_size(file);
  if (least == 0) throw problem("expected a shared object, found something else");
  if (*size < least)
    throw problem(fmt::format("truncated: expected {} bytes, found {}", least, *size));
}

std::string display_name(const std::string& name) {
  return name == "cuda" ? "CUDA" : name == "mpi" ? "MPI" : name;
}

}  // namespace

void check_same_build(std::string_view module, std::string_view of_module,
                      std::string_view of_binary) {
  if (of_module != of_binary)
    throw resource_error(fmt::format("the {} module is of build {}, this binary of {}", module,
                                     of_module, of_binary),
                         "copy lib/stagecoach from where the binary was built, beside its bin");
}

std::filesystem::path module_folder() {
  if (const char* folder = std::getenv("STAGECOACH_MODULES")) return folder;
  std::error_code error;
  const auto binary = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error)
    throw resource_error("cannot find the running binary: " + error.message(),
                         "set STAGECOACH_MODULES");
  return binary.parent_path().parent_path() / "lib" / "stagecoach";
}

Module Module::open(const std::string& name) {
  const auto path = module_folder() / ("stagecoach-" + name + ".so");
  check_shared_object(name, path);
  // Global, because Open MPI opens plugins of its own that look for libmpi's symbols.
  void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    const std::string problem =
        fmt::format("the {} module cannot be opened: {}", name, ::dlerror());
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored))
      throw resource_error(
          problem, name == "mpi"
                       ? "copy lib/stagecoach from where the binary was built, beside its bin; a "
                         "build makes this module where Open MPI is (apt-get install "
                         "libopenmpi-dev openmpi-bin)"
                       : "copy lib/stagecoach from where the binary was built, beside its bin");
    throw resource_error(
        problem, name == "mpi"
                     ? "install Open MPI (apt-get install openmpi-bin), or run without mpirun"
                     : "install the libraries that it names; or --device cpu");
  }
  return Module(handle, name, path);
}

void* Module::find(const char* symbol) const {
  void* address = ::dlsym(handle_, symbol);
  if (address == nullptr)
    throw resource_error(fmt::format("{} is no {} module of Stagecoach: it has no {}",
                                     path_.string(), display_name(name_), symbol),
                         kCopyAgain);
  return address;
}

}  // namespace stagecoach
