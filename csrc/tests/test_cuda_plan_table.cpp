// Which entry of a table of measured plans serves a call, and what it may not do.
#include "../cuda/affine_cell.h"
#include "../cuda/gated_cell.h"
#include "../cuda/mlp_cell.h"
#include "../cuda/plan_table.h"
#include "check.h"

namespace {

using namespace ak;
using namespace ak::cuda;

constexpr DeviceFacts kSmall{132, 101376};  // with the least shared memory

// Of 33 to 64 rows of 65 to 128 entries, with up to 256 hidden units where there are some.
MeasuredPlan entry(int64_t op, int64_t hidden = 0) {
  return {op, 4, 0, kAuto, 33, 64, 65, 128, hidden > 0 ? hidden / 2 + 1 : 0, hidden, 32, 7, 0};
}

AffineProblem<float> affine(int64_t rows, int64_t dim) {
  AffineProblem<float> problem{};
  problem.rows = rows;
  problem.dim = dim;
  return problem;
}

SolveOptions options(int solver, int history = 5, bool mixed = false) {
  SolveOptions found{};
  found.solver = solver;
  found.history = history;
  found.mixed = mixed;
  return found;
}

void entries_serve_their_kind_alone() {
  const PlanTable table{entry(kSolveMlp, 256), entry(kSolveAffine)};
  const auto serves = [&](const auto& problem, const SolveOptions& how) {
    return told_plan({}, table, plan_call(problem, how)).measured;
  };
  for (const auto& [rows, dim, wanted] : {std::tuple<int64_t, int64_t, bool>{32, 100, false},
                                          {33, 100, true},
                                          {64, 100, true},
                                          {65, 100, false},
                                          {50, 64, false},
                                          {50, 65, true},
                                          {50, 128, true},
                                          {50, 129, false}})
    CHECK(serves(affine(rows, dim), options(kAuto)) == wanted, "%d x %d", int(rows), int(dim));
  CHECK(!serves(affine(50, 100), options(kPicard)), "another solver");
  CHECK(!serves(affine(50, 100), options(kAuto, 5, true)), "another precision");
  AffineProblem<double> wide{};
  wide.rows = 50;
  wide.dim = 100;
  CHECK(!serves(wide, options(kAuto)), "another type");
  MlpProblem<float> mlp{};
  mlp.rows = 50;
  mlp.dim = 100;
  for (int64_t hidden : {128, 129, 256, 257}) {
    mlp.hidden = hidden;
    CHECK(serves(mlp, options(kAuto)) == (hidden > 128 && hidden < 257), "%d hidden units", int(hidden));
  }
  GatedProblem<float> gated{};
  gated.rows = 50;
  gated.dim = 100;
  CHECK(!serves(gated, options(kAuto)), "another operator");
}

void what_is_chosen_by_hand_goes_first() {
  const PlanTable table{entry(kSolveAffine)};
  const PlanCall call = plan_call(affine(50, 100), options(kAuto));
  const ToldPlan measured = told_plan({}, table, call);
  CHECK(measured.choices.rows == 32 && measured.choices.blocks == 7 && measured.choices.crew == 0, "the entry's");
  CHECK(measured.choices.mixed == -1, "never a choice of mixed");
  for (const PlanChoices& by_hand :
       {PlanChoices{8, 0, -1, -1}, PlanChoices{0, 3, -1, -1}, PlanChoices{0, 0, 0, -1}, PlanChoices{0, 0, -1, 1}}) {
    const ToldPlan told = told_plan(by_hand, table, call);
    CHECK(!told.measured && told.choices.rows == by_hand.rows && told.choices.crew == by_hand.crew, "whole");
  }
}

// Wide tiles do not fit a device of little shared memory where the history is much longer than the one measured. By
// hand that is an error.
void what_cannot_be_had_is_left_out() {
  const auto problem = affine(50, 100);
  const auto planned_with = [&](ToldPlan& told, int history) {
    return planned(told, [&](const PlanChoices& choices) {
      return plan_rows<float>(AffineCell<float>::size(problem), options(kAnderson, history), kSmall, choices);
    });
  };
  PlanTable table{entry(kSolveAffine)};
  table[0].solver = kAnderson;
  const PlanCall call = plan_call(problem, options(kAnderson));
  ToldPlan told = told_plan({}, table, call);
  const RowPlan measured = planned_with(told, 5);
  CHECK(told.measured && measured.refused == nullptr && measured.tile_rows == 32, "%d rows", measured.tile_rows);
  const RowPlan model = planned_with(told, kMaxHistory);
  CHECK(!told.measured && model.refused == nullptr && model.tile_rows == 8, "%d rows", model.tile_rows);
  ToldPlan by_hand{{32, 0, -1, -1}};
  CHECK(planned_with(by_hand, kMaxHistory).refused != nullptr, "by hand");
}

void tables_are_read() {
  const int64_t numbers[kMeasuredColumns] = {kSolveGated, 8, 1, kPicard, 3, 4, 5, 8, 0, 0, 16, 9, -1};
  const PlanTable table = plan_table(numbers, 1);
  CHECK(table.size() == 1, "%d entries", int(table.size()));
  const MeasuredPlan& one = table[0];
  CHECK(one.op == kSolveGated && one.element_size == 8 && one.mixed == 1 && one.solver == kPicard, "the kind");
  CHECK(one.least_rows == 3 && one.most_rows == 4 && one.least_dim == 5 && one.most_dim == 8, "the sizes");
  CHECK(one.most_hidden == 0 && one.tile_rows == 16 && one.blocks == 9 && one.crew == -1, "the choices");
  CHECK(plan_table(nullptr, 0).empty(), "none");
}

}  // namespace

int main() {
  entries_serve_their_kind_alone();
  what_is_chosen_by_hand_goes_first();
  what_cannot_be_had_is_left_out();
  tables_are_read();
  return report();
}
