// Products on tensor cores (csrc/cuda/tensor_product.h), packed weights included, run on the host against plain loops
// in double; both shapes of the tile give the same bits.
#include "../cuda/tensor_product.h"
#include "check.h"
#include "host_team.h"

namespace {

using namespace ak;
using namespace ak::test;

constexpr float kBefore = 0.5f;   // what a sum is added to
constexpr int64_t kUnwanted = 5;  // a row that is not

struct Operands {
  Operands(int64_t outputs, int64_t inputs, bool transposed)
      : outputs(outputs),
        inputs(inputs),
        w(outputs * inputs, [](int64_t) { return normal(); }),
        matrix{w.get(), outputs, inputs, transposed ? 1 : inputs, transposed ? outputs : 1},
        packed(cuda::tensor_weight_bytes(outputs, inputs) / int64_t(sizeof(cuda::MmaA))) {
    for (int64_t i : any_order(packed.size)) cuda::pack_tensor_weights(matrix, packed.get(), i);
  }

  int64_t outputs, inputs;
  Block<float> w;
  Matrix<float> matrix;
  Block<cuda::MmaA> packed;
};

struct alignas(16) Access {
  BFloat16 entry[8];
};

template <int rows, int threads>
std::vector<float> product(const Operands& o, const std::vector<BFloat16>& d) {
  using Team = HostTeam<threads>;
  const int64_t ld = cuda::tensor_row_entries(o.inputs);
  Block<Access> tile(rows * ld / 8);
  std::memset(tile.get(), 0xff, size_t(rows * ld) * sizeof(BFloat16));
  BFloat16* const entries = tile[0].entry;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t k = 0; k < cuda::tensor_padded(o.inputs, 64); ++k)
      entries[row * ld + k] = k < o.inputs ? d[size_t(row * o.inputs + k)] : BFloat16{0};
  std::vector<float> sums(size_t(rows * o.outputs), kBefore);
  std::vector<int64_t> wanted(rows);
  for (int64_t row = 0; row < rows; ++row) wanted[size_t(row)] = row == kUnwanted ? -1 : row;
  const cuda::TensorProduct<rows, threads, Team> tensor(o.packed.get(), entries, o.outputs, o.inputs);
  tensor.add_to(Team(nullptr), sums.data(), o.outputs, wanted.data());
  return sums;
}

void check(int64_t outputs, int64_t inputs, bool transposed) {
  const Operands o(outputs, inputs, transposed);
  std::vector<BFloat16> d(size_t(32 * inputs));
  for (BFloat16& x : d) x = cuda::narrow<BFloat16>(float(normal()));
  const std::vector<float> wide = product<32, 128>(o, d), few = product<8, 128>(o, d);
  CHECK(std::memcmp(wide.data(), few.data(), few.size() * sizeof(float)) == 0, "%d x %d: tiles differ in bits",
        int(outputs), int(inputs));
  for (int64_t row = 0; row < 32; ++row)
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = kBefore, size = kBefore;
      for (int64_t k = 0; k < inputs; ++k) {
        const float w = o.matrix.data[n * o.matrix.output_stride + k * o.matrix.input_stride];
        const double term =
            double(cuda::widen(cuda::narrow<BFloat16>(w))) * double(cuda::widen(d[size_t(row * inputs + k)]));
        if (row != kUnwanted) sum += term;
        size += std::fabs(term);
      }
      const double got = double(wide[size_t(row * outputs + n)]);
      CHECK(std::fabs(got - sum) <= 0x1p-24 * double(inputs + 1) * size, "%d x %d: [%d, %d] is %g, not %g",
            int(outputs), int(inputs), int(row), int(n), got, sum);
    }
}

}  // namespace

int main() {
  for (int64_t inputs : {1, 16, 31, 32, 33, 64, 100, 160, 257})
    for (int64_t outputs : {1, 16, 63, 64, 65, 300}) check(outputs, inputs, (inputs + outputs) % 2 == 0);
  return report();
}
