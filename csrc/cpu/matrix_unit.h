// The processor's matrix unit (AMX): eight registers of up to 16 rows of 64 bytes, products of pairs of bfloat16 added
// up in float32, and of four 8-bit integers in 32 bits. A thread configures its unit before the first product and
// releases it after the last.
//
// Without the unit the same text runs on plain arrays where AK_EMULATE_MATRIX_UNIT asks for it, for tests.
#pragma once

#include <type_traits>

#include "simd.h"

#if defined(AK_EMULATE_MATRIX_UNIT) || (defined(__AMX_BF16__) && AK_VECTOR_BYTES == 64)
#define AK_HAS_MATRIX_UNIT 1
#else
#define AK_HAS_MATRIX_UNIT 0
#endif

namespace ak::AK_ISA {

constexpr int kUnitRows = 16;                             // of a register at most
constexpr int kUnitColumns = 16;                          // float32, or pairs of bfloat16, in a row of it
constexpr int kUnitDepth = 32;                            // bfloat16 entries in a row of it
constexpr int64_t kUnitWords = kUnitRows * kUnitColumns;  // 4-byte words in a register

#if AK_HAS_MATRIX_UNIT && !defined(AK_EMULATE_MATRIX_UNIT)

struct MatrixUnit {
  // Rows that registers 0 to 5, sums and left factors, have from now on; all registers become undefined.
  static void configure(int rows) {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof config == 64);
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = uint8_t(i < 6 ? rows : kUnitRows);
    }
    // Not the intrinsic: GCC 12 takes it to read 8 bytes and drops what is written to the others.
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  static void release() { asm volatile("tilerelease"); }

  // The intrinsics take literal register numbers only.
  template <int r>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(r));
  }
  template <int r>
  static void load(const void* from, int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(r) : "memory");
  }
  template <int r>
  static void store(void* to, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(r) : "memory");
  }
  // sum += left right; right holds two rows of the factor in each of its own
  template <int sum, int left, int right>
  static void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(left), "i"(right));
  }
  // The same with four signed bytes a word, in 32-bit integers.
  template <int sum, int left, int right>
  static void multiply_add_bytes() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(left), "i"(right));
  }
};

#elif AK_HAS_MATRIX_UNIT

class MatrixUnit {
 public:
  static void configure(int rows) { state().rows = rows; }
  static void release() { state().rows = 0; }
  template <int r>
  static void zero() {
    std::memset(state().words[r], 0, sizeof state().words[r]);
  }
  template <int r>
  static void load(const void* from, int64_t stride_bytes) {
    for (int i = 0; i < rows(r); ++i)
      std::memcpy(state().words[r] + i * kUnitColumns, static_cast<const char*>(from) + i * stride_bytes, 64);
  }
  template <int r>
  static void store(void* to, int64_t stride_bytes) {
    for (int i = 0; i < rows(r); ++i)
      std::memcpy(static_cast<char*>(to) + i * stride_bytes, state().words[r] + i * kUnitColumns, 64);
  }
  // As the instruction adds: entries of even and of odd index apart, then both to the sum.
  template <int sum, int left, int right>
  static void multiply_add() {
    for (int i = 0; i < rows(sum); ++i)
      for (int j = 0; j < kUnitColumns; ++j) {
        float even = 0, odd = 0;
        for (int k = 0; k < kUnitRows; ++k) {
          const uint32_t a = state().words[left][i * kUnitColumns + k], b = state().words[right][k * kUnitColumns + j];
          even += number(a << 16) * number(b << 16);
          odd += number(a & 0xffff0000u) * number(b & 0xffff0000u);
        }
        uint32_t& word = state().words[sum][i * kUnitColumns + j];
        const float total = number(word) + (even + odd);
        std::memcpy(&word, &total, sizeof word);
      }
  }
  template <int sum, int left, int right>
  static void multiply_add_bytes() {
    for (int i = 0; i < rows(sum); ++i)
      for (int j = 0; j < kUnitColumns; ++j)
        for (int k = 0; k < kUnitRows; ++k) {
          const uint32_t a = state().words[left][i * kUnitColumns + k], b = state().words[right][k * kUnitColumns + j];
          for (int shift = 0; shift < 32; shift += 8)
            state().words[sum][i * kUnitColumns + j] += uint32_t(int(int8_t(a >> shift)) * int(int8_t(b >> shift)));
        }
  }

 private:
  struct State {
    int rows = 0;
    uint32_t words[8][kUnitWords];
  };
  static State& state() {
    thread_local State state;
    return state;
  }
  static int rows(int r) { return r < 6 ? state().rows : kUnitRows; }
  static float number(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

#endif

#if AK_HAS_MATRIX_UNIT

// body(0), body(1), ... with numbers the compiler knows, as registers are named by.
template <int... i, class Body>
inline void each(std::integer_sequence<int, i...>, const Body& body) {
  (body(std::integral_constant<int, i>{}), ...);
}

// Where a register is loaded from or stored to: rows of 64 bytes, `stride` bytes apart.
template <class Data>
struct UnitPlace {
  Data* data;
  int64_t stride;
};

// Sums of products of 8-bit entries: `groups` groups of rows times `columns` blocks of 16 outputs, over `steps` times
// 64 inputs, all sums in registers, 4 of them at most. left(group, step), right(column, step) and to(group, column) are
// UnitPlaces.
template <int groups, int columns, class Left, class Right, class To>
inline void multiply_bytes(int64_t steps, const Left& left, const Right& right, const To& to) {
  using Unit = MatrixUnit;
  static_assert(groups * columns <= 4);
  constexpr std::make_integer_sequence<int, groups> each_group{};
  constexpr std::make_integer_sequence<int, columns> each_column{};
  constexpr std::make_integer_sequence<int, groups * columns> each_sum{};
  each(each_sum, [](auto i) { Unit::zero<i>(); });
  for (int64_t step = 0; step < steps; ++step) {
    each(each_column, [&](auto c) {
      constexpr int in_right = 6 + c % 2;
      const auto weights = right(int(c), step);
      Unit::load<in_right>(weights.data, weights.stride);
      each(each_group, [&](auto g) {
        // One column: the groups take turns in two registers.
        constexpr int in_left = 4 + g % 2;
        if constexpr (columns == 1 || c == 0) {
          const auto rows = left(int(g), step);
          Unit::load<in_left>(rows.data, rows.stride);
        }
        Unit::multiply_add_bytes<g * columns + c, in_left, in_right>();
      });
    });
  }
  each(each_sum, [&](auto i) {
    const auto place = to(int(i) / columns, int(i) % columns);
    Unit::store<i>(place.data, place.stride);
  });
}

// Rows the calling thread's unit is configured for; 0: it is not.
inline int& unit_rows() {
  thread_local int rows = 0;
  return rows;
}

// Makes the unit ready for n rows at a time, or the most it takes. To configure it costs as much as some products, so
// it is left as it is while less than half of it would lie idle.
inline void ready_unit(int n) {
  const int wanted = n < kUnitRows ? n : kUnitRows;
  int& rows = unit_rows();
  if (wanted <= rows && 2 * wanted > rows) return;
  MatrixUnit::configure(wanted);
  rows = wanted;
}

#endif

// While it lives, the calling thread may use the unit.
struct UnitLease {
  UnitLease() = default;
  UnitLease(const UnitLease&) = delete;
  UnitLease& operator=(const UnitLease&) = delete;
  ~UnitLease() {
#if AK_HAS_MATRIX_UNIT
    if (unit_rows() != 0) MatrixUnit::release();
    unit_rows() = 0;
#endif
  }
};

}  // namespace ak::AK_ISA
