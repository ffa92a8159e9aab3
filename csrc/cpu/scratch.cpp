#include "scratch.h"

#include <cstdlib>
#include <new>

namespace ak {

Scratch::~Scratch() { std::free(data_); }

void* Scratch::get(size_t bytes) {
  if (bytes > capacity_) {
    std::free(data_);
    capacity_ = (bytes + 4095) / 4096 * 4096;
    data_ = std::aligned_alloc(64, capacity_);
    if (data_ == nullptr) {
      capacity_ = 0;
      throw std::bad_alloc();
    }
  }
  return data_;
}

void Scratch::release_if_large() {
  constexpr size_t kKeep = size_t(32) << 20;
  if (capacity_ <= kKeep) return;
  std::free(data_);
  data_ = nullptr;
  capacity_ = 0;
}

Scratch& tile_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

Scratch& packed_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

Scratch& product_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

}  // namespace ak
