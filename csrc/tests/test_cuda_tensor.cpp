// Products on tensor cores, by warps (csrc/cuda/tensor_product.h) and by warpgroups (csrc/cuda/group_product.h), packed
// weights included, run on the host against plain loops in double; both shapes of the tile give the same bits.
#include "../cuda/group_product.h"
#include "../cuda/tensor_product.h"
#include "check.h"
#include "host_team.h"

namespace {

using namespace ak;
using namespace ak::test;

constexpr float kBefore = 0.5f;   // what a sum is added to
constexpr int64_t kUnwanted = 5;  // a row that is not

struct alignas(16) Access {
  BFloat16 entry[8];
};

struct Operands {
  Operands(int64_t outputs, int64_t inputs, bool transposed)
      : outputs(outputs),
        inputs(inputs),
        w(outputs * inputs, [](int64_t) { return normal(); }),
        matrix{w.get(), outputs, inputs, transposed ? 1 : inputs, transposed ? outputs : 1},
        changes(size_t(32 * inputs)) {
    for (BFloat16& x : changes) x = cuda::narrow<BFloat16>(float(normal()));
  }

  int64_t outputs, inputs;
  Block<float> w;
  Matrix<float> matrix;
  std::vector<BFloat16> changes;
};

template <int rows>
struct ByWarps {
  using Team = HostTeam<128>;
  using Layout = cuda::TensorTile<rows>;
  using Product = cuda::TensorProduct<rows, 128, Team>;
  static int64_t packed(const Matrix<float>& w, Access* to) {
    const int64_t bytes = cuda::tensor_weight_bytes(w.outputs, w.inputs);
    for (int64_t i : any_order(to ? bytes / int64_t(sizeof(cuda::MmaA)) : 0))
      cuda::pack_tensor_weights(w, reinterpret_cast<cuda::MmaA*>(to), i);
    return bytes / int64_t(sizeof(Access));
  }
};

template <int rows>
struct ByWarpgroup {
  using Team = HostTeam<cuda::kWarpgroup>;
  using Layout = cuda::GroupTile<rows>;
  using Product = cuda::GroupProduct<rows, Team>;
  static int64_t packed(const Matrix<float>& w, Access* to) {
    const int64_t bytes = cuda::group_weight_bytes(w.outputs, w.inputs);
    for (int64_t i : any_order(to ? bytes / int64_t(sizeof(BFloat16)) : 0)) cuda::pack_group_weights(w, to[0].entry, i);
    return bytes / int64_t(sizeof(Access));
  }
};

template <class Way, int rows>
std::vector<float> product(const Operands& o) {
  using Layout = typename Way::Layout;
  const int64_t weights = Way::packed(o.matrix, nullptr), tile = Layout::entries(o.inputs) / 8;
  Block<Access> shared(weights + tile);  // weights first
  std::memset(shared.get(), 0xff, size_t(shared.size) * sizeof(Access));
  Way::packed(o.matrix, shared.get());
  BFloat16* const changes = shared[weights].entry;
  for (int row = 0; row < rows; ++row)
    for (int k = 0; k < int(Layout::filled(o.inputs)); ++k)
      changes[Layout::place(o.inputs, row, k)] = k < o.inputs ? o.changes[size_t(row * o.inputs + k)] : BFloat16{0};
  std::vector<float> sums(size_t(rows * o.outputs), kBefore);
  std::vector<int64_t> wanted(rows);
  for (int64_t row = 0; row < rows; ++row) wanted[size_t(row)] = row == kUnwanted ? -1 : row;
  shared_memory = shared.get();
  const typename Way::Product tensor(shared.get(), changes, o.outputs, o.inputs);
  tensor.add_to(typename Way::Team(nullptr), sums.data(), o.outputs, wanted.data());
  return sums;
}

template <template <int> class Way>
void check(int64_t outputs, int64_t inputs, bool transposed) {
  const Operands o(outputs, inputs, transposed);
  const std::vector<float> wide = product<Way<32>, 32>(o), few = product<Way<8>, 8>(o);
  CHECK(std::memcmp(wide.data(), few.data(), few.size() * sizeof(float)) == 0, "%d x %d: tiles differ in bits",
        int(outputs), int(inputs));
  for (int64_t row = 0; row < 32; ++row)
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = kBefore, size = kBefore;
      for (int64_t k = 0; k < inputs; ++k) {
        const float w = o.matrix.data[n * o.matrix.output_stride + k * o.matrix.input_stride];
        const double term =
            double(cuda::widen(cuda::narrow<BFloat16>(w))) * double(cuda::widen(o.changes[size_t(row * inputs + k)]));
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
    for (int64_t outputs : {1, 16, 63, 64, 65, 300}) {
      check<ByWarps>(outputs, inputs, (inputs + outputs) % 2 == 0);
      check<ByWarpgroup>(outputs, inputs, (inputs + outputs) % 2 == 0);
    }
  return report();
}
