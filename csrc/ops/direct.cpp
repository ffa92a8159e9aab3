// solve_affine on memory that Python has checked: a small solve is shorter than torch's dispatcher takes to call one.
// Python's own interface, since twenty arguments by pybind11 take as long as the half of that solve.
// attractor_kernels/solve/direct.py is the only caller.
#define PY_SSIZE_T_CLEAN
#include "direct.h"

#include <Python.h>

#include <exception>

namespace {

// What follows the tail, in the order of the call.
enum Argument {
  kTail,
  kIsDouble,
  kRows,
  kDim,
  kZ0,
  kU,
  kWeight,
  kOutputStride,
  kInputStride,
  kLeak,
  kScale,
  kActivation,
  kPieces,
  kZ,
  kSteps,
  kResidual,
  kStatus,
  kArguments
};
constexpr Py_ssize_t kTailFields = 11;

template <class T>
T* pointer(PyObject* address) {
  return static_cast<T*>(PyLong_AsVoidPtr(address));
}

ak::SolveOptions options_of(PyObject* tail) {
  const auto integer = [&](Py_ssize_t i) { return int(PyLong_AsLong(PyTuple_GET_ITEM(tail, i))); };
  const auto real = [&](Py_ssize_t i) { return PyFloat_AsDouble(PyTuple_GET_ITEM(tail, i)); };
  const auto truth = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(tail, i) == Py_True; };
  return {integer(0), integer(1), real(2), real(3), real(4), real(5), integer(6), integer(7), truth(8), truth(10)};
}

template <class T>
void solve(PyObject* const* arguments) {
  const auto integer = [&](Argument i) { return int64_t(PyLong_AsLongLong(arguments[i])); };
  const int64_t rows = integer(kRows), dim = integer(kDim);
  const ak::AffineProblem<T> problem{
      rows,
      dim,
      pointer<const T>(arguments[kZ0]),
      pointer<const T>(arguments[kU]),
      {pointer<const T>(arguments[kWeight]), dim, dim, integer(kOutputStride), integer(kInputStride)},
      pointer<const T>(arguments[kLeak]),
      pointer<const T>(arguments[kScale]),
      int(integer(kActivation)),
      int(integer(kPieces))};
  const ak::SolveResult<T> result{pointer<T>(arguments[kZ]), pointer<int32_t>(arguments[kSteps]),
                                  pointer<float>(arguments[kResidual]), pointer<uint8_t>(arguments[kStatus]), nullptr};
  const ak::SolveOptions options = options_of(arguments[kTail]);
  if (PyErr_Occurred() != nullptr) return;
  PyThreadState* const state = PyEval_SaveThread();
  try {
    ak::run_affine(problem, options, result);
  } catch (...) {
    PyEval_RestoreThread(state);
    throw;
  }
  PyEval_RestoreThread(state);
}

PyObject* solve_affine(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != kArguments || !PyTuple_Check(arguments[kTail]) || PyTuple_GET_SIZE(arguments[kTail]) != kTailFields) {
    PyErr_Format(PyExc_TypeError, "solve_affine takes a tail of %zd and %d more arguments", kTailFields,
                 int(kArguments) - 1);
    return nullptr;
  }
  try {
    arguments[kIsDouble] == Py_True ? solve<double>(arguments) : solve<float>(arguments);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  if (PyErr_Occurred() != nullptr) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"solve_affine", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(solve_affine)), METH_FASTCALL,
     "solve_affine(tail, is_double, rows, dim, z0, u, weight, output_stride, input_stride, leak, scale, activation, "
     "pieces, z, steps, residual, status): pointers as ints, 0 for none; nothing is checked."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_direct",
                          "Fused solves past torch's dispatcher; import torch first.",
                          0,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__direct() { return PyModule_Create(&definition); }
