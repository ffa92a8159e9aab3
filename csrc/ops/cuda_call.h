// What every CUDA operator does around its kernel: the tensor's device made current, torch's stream for it, errors.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

// Of libtorch_cuda, which is where this library is loaded; the header declares it for CUDA builds of torch only.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace ak::ops {

class CudaCall {
 public:
  explicit CudaCall(const torch::stable::Tensor& z) : device_(z.get_device_index()), guard_(device_) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream_));
  }

  void* stream() const { return stream_; }

  void check(const torch::stable::Tensor& t) const {
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == device_, "all tensors must be on the device of the first");
  }

  void done(const char* error) const { STD_TORCH_CHECK(error == nullptr, "CUDA kernel: ", error); }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace ak::ops
