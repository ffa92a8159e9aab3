// A crew of blocks (csrc/cuda/crew_body.h) on a host. Its members are threads of which one runs at a time, from one
// barrier of the crew to the next, in another order each time: a member that relies on what another has not yet put,
// or puts what another still reads, gives changing results.
#pragma once

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#include "../cuda/storage.h"
#include "host_team.h"

namespace ak::test {

// Lets n threads run by turns.
class Turns {
 public:
  explicit Turns(int n) : order_(any_order(n)) {}

  void begin(int member) { wait_for(member); }
  // Ends the member's turn; returns when all others had theirs and it is his again.
  void next(int member) {
    pass();
    wait_for(member);
  }
  void end() { pass(); }

 private:
  void wait_for(int member) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return order_[at_] == member; });
  }
  void pass() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (++at_ == order_.size()) {
      order_ = any_order(int64_t(order_.size()));
      at_ = 0;
    }
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int64_t> order_;
  size_t at_ = 0;
};

// Memory of a block or a grid: aligned, and every float in it NaN.
class Poisoned {
 public:
  explicit Poisoned(int64_t bytes) : bytes_(bytes), chunks_(size_t((bytes + 31) / 32)) {
    std::memset(chunks_.data(), 0xff, chunks_.size() * sizeof(Chunk));
  }
  void* data() { return chunks_.data(); }
  // n values of type T from the i-th on; ends the program where they lie outside.
  template <class T>
  T* at(int64_t i, int64_t n) {
    if (i < 0 || (i + n) * int64_t(sizeof(T)) > bytes_) std::abort();
    return static_cast<T*>(data()) + i;
  }

 private:
  struct alignas(32) Chunk {
    char bytes[32];
  };
  int64_t bytes_;
  std::vector<Chunk> chunks_;
};

// What all members share: one exchange (a grid's), or one for each (a cluster's).
struct CrewMemory {
  std::vector<Poisoned> exchange;
  int64_t* queue;  // rows taken, by all crews
  int64_t taken;
};

template <class T, bool cluster>
class HostCrew {
 public:
  static constexpr bool kLocal = cluster, kSharedQueue = cluster;

  HostCrew(int member, int members, int64_t index, Turns& turns, CrewMemory& memory)
      : member_(member), members_(members), index_(index), turns_(turns), memory_(memory) {}

  int member() const { return member_; }
  int members() const { return members_; }
  int64_t index() const { return index_; }
  void sync() const { turns_.next(member_); }

  template <int n>
  void put(int64_t at, const cuda::Pack<T, n>& pack) const {
    for (Poisoned& exchange : memory_.exchange) cuda::store_pack<n>(exchange.at<T>(at, n), pack);
  }
  template <int n>
  cuda::Pack<T, n> get(int64_t at) const {
    return cuda::load_pack<n>(static_cast<const T*>(own().template at<T>(at, n)));
  }
  T* local(int64_t at) const { return own().template at<T>(at, 0); }
  void offer(int rows) const {
    if (!kSharedQueue) return;
    memory_.taken = *memory_.queue;
    *memory_.queue += rows;
  }
  int64_t taken() const { return memory_.taken; }

 private:
  Poisoned& own() const { return memory_.exchange[kLocal ? size_t(member_) : 0]; }

  const int member_, members_;
  const int64_t index_;
  Turns& turns_;
  CrewMemory& memory_;
};

}  // namespace ak::test
