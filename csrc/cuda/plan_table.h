// Plans that were measured: what is launched for calls of one kind, where nothing was chosen by hand.
#pragma once

#include <cstring>
#include <vector>

#include "plan_choices.h"

namespace ak::cuda {

// What an entry of the table tells calls apart by.
struct PlanCall {
  int64_t op, element_size, mixed, solver, rows, dim, hidden;
};

template <class Problem>
int64_t hidden_of(const Problem& problem) {
  if constexpr (requires { problem.hidden; }) return problem.hidden;
  return 0;
}

template <template <class> class Problem, class T>
PlanCall plan_call(const Problem<T>& problem, const SolveOptions& options) {
  return {operator_of(problem), sizeof(T),   options.mixed,     options.solver,
          problem.rows,         problem.dim, hidden_of(problem)};
}

// As attractor_kernels/backends/plan_table.py lists it. No choice of `mixed` and `wgmma`: which entry serves a call
// depends on the batch, and a row's bits may not.
struct MeasuredPlan {
  int64_t op, element_size, mixed, solver;
  int64_t least_rows, most_rows, least_dim, most_dim, least_hidden, most_hidden;
  int64_t tile_rows, blocks, crew;  // PlanChoices

  bool serves(const PlanCall& call) const {
    return call.op == op && call.element_size == element_size && call.mixed == mixed && call.solver == solver &&
           least_rows <= call.rows && call.rows <= most_rows && least_dim <= call.dim && call.dim <= most_dim &&
           least_hidden <= call.hidden && call.hidden <= most_hidden;
  }
};
constexpr int64_t kMeasuredColumns = sizeof(MeasuredPlan) / sizeof(int64_t);
using PlanTable = std::vector<MeasuredPlan>;

// From [rows, kMeasuredColumns].
inline PlanTable plan_table(const int64_t* numbers, int64_t rows) {
  PlanTable table(static_cast<size_t>(rows));
  if (rows > 0) std::memcpy(table.data(), numbers, table.size() * sizeof(MeasuredPlan));
  return table;
}

struct ToldPlan {
  PlanChoices choices;
  bool measured = false;  // they are the table's
};

// What was chosen by hand, whole, or else what the table has.
inline ToldPlan told_plan(const PlanChoices& by_hand, const PlanTable& table, const PlanCall& call) {
  if (by_hand.none())
    for (const MeasuredPlan& one : table)
      if (one.serves(call)) return {{int(one.tile_rows), one.blocks, -1, int(one.crew)}, true};
  return {by_hand};
}

// plan(choices) under what was told. An entry serves calls that were not measured, a longer history say, and what it
// chooses may be more than the device has for them: then the model chooses.
template <class Plan>
auto planned(ToldPlan& told, const Plan& plan) {
  auto found = plan(told.choices);
  if (found.refused == nullptr || !told.measured) return found;
  told = {};
  return plan(told.choices);
}

}  // namespace ak::cuda
