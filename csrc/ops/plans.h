#pragma once

#include <pybind11/pybind11.h>

void define_cuda_plans(pybind11::module_& module);
