// Memory a thread keeps from call to call: a fresh allocation of a tile's size costs more in page faults than
// many a small solve. It grows to the largest solve seen; a very large one is given back at the end.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ak {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  void* get(size_t bytes);  // 64-byte aligned; throws std::bad_alloc
  void release_if_large();

 private:
  void* data_ = nullptr;
  size_t capacity_ = 0;
};

Scratch& tile_scratch();     // of the calling thread: rows in flight
Scratch& packed_scratch();   // of the calling thread: packed weights
Scratch& product_scratch();  // of the calling thread: rows on their way through the matrix unit

}  // namespace ak
