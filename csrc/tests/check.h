// What the C++ test programs share: a check that says where it failed, exact-size buffers, two threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../cpu/kernels.h"

inline int failures = 0;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) {                                           \
      ++failures;                                                 \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (0)

// A heap block of exactly n entries: one read past it is an error under the address sanitizer.
template <class T>
struct Block {
  explicit Block(int64_t n) : size(n), data(new T[size_t(n)]) {}
  template <class Make>
  Block(int64_t n, const Make& make) : Block(n) {
    for (int64_t i = 0; i < n; ++i) data[size_t(i)] = T(make(i));
  }
  T& operator[](int64_t i) const { return data[size_t(i)]; }
  T* get() const { return data.get(); }
  int64_t size;
  std::unique_ptr<T[]> data;
};

inline std::mt19937_64 generator(7);
inline double normal() { return std::normal_distribution<double>()(generator); }

inline const ak::Executor kOneThread{1, [](int tasks, void (*body)(void*, int), void* context) {
                                       for (int i = 0; i < tasks; ++i) body(context, i);
                                     }};
inline const ak::Executor kThreads{3, [](int tasks, void (*body)(void*, int), void* context) {
                                     std::vector<std::thread> threads;
                                     for (int i = 0; i < tasks; ++i) threads.emplace_back(body, context, i);
                                     for (std::thread& thread : threads) thread.join();
                                   }};

inline int report() {
  std::printf(failures == 0 ? "all checks passed\n" : "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
