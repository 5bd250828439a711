// Vectors in pages of their own, which can be page-locked without locking what others have.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

namespace stagecoach {

template <typename T>
struct PageAllocator {
  using value_type = T;
  static constexpr std::size_t kPage = 4096;

  PageAllocator() = default;
  template <typename U>
  PageAllocator(const PageAllocator<U>&) {}

  T* allocate(std::size_t count) {
    const std::size_t pages = (count * sizeof(T) + kPage - 1) / kPage;
    void* const memory = std::aligned_alloc(kPage, pages * kPage);
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* data, std::size_t) { std::free(data); }

  friend bool operator==(const PageAllocator&, const PageAllocator&) { return true; }
};

using PageFloats = std::vector<float, PageAllocator<float>>;

}  // namespace stagecoach
