"""Tables and pictures of results."""

from __future__ import annotations

import io

from rich.console import Console

from attractor_kernels.bench.plots import plot_report
from attractor_kernels.bench.results import geometric_mean
from attractor_kernels.bench.tables import cell_text, markdown, reasons, result_tables, seconds


def rendered(report) -> str:
    out = Console(file=io.StringIO(), width=120)
    for table in result_tables(report):
        out.print(table)
    return out.file.getvalue()


def test_tables_hold_ratios_and_means(report):
    text = rendered(report)
    assert "affine float32, orth, forward: ak.fixed_point, auto mixed" in text
    assert "8.00" in text and "4.00" in text  # 64x64, and the mean over both shapes
    assert "0.25" in text  # ours / floor at 64x64
    assert "no speed: did not converge" in text


def test_the_floor_is_given_the_other_way_round(report):
    assert cell_text(report.rows[1], "floor", "auto mixed") == "0.25"
    assert cell_text(report.rows[1], "naive", "auto mixed") == "8.00"


def test_a_wrong_result_is_called_wrong(report):
    entry = report.rows[0].entries["naive"]
    entry.seconds, entry.why = None, "wrong: z is 1e-2 off"
    assert cell_text(report.rows[0], "naive", "auto mixed") == "wrong"


def test_reasons_are_given_once(report):
    assert sum("JAX is not installed" in line for line in reasons(report)) == 1


def test_markdown(report):
    text = markdown(report)
    assert "| orth | auto mixed | 4.0 (2.0) |" in text
    assert "a processor, 2 threads" in text


def test_seconds():
    assert [seconds(x) for x in (2.0, 1.5e-3, 2e-6, 3e-9, 0.0, None)] == ["2 s", "1.5 ms", "2 us", "3 ns", "0", "-"]


def test_one_picture_per_cell_dtype_and_pass(report, tmp_path):
    (path,) = plot_report(report, tmp_path / "new", "stem")
    assert path.name == "stem-affine-float32-forward.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_bars_that_differ_in_the_last_bit(report, tmp_path):
    """One ratio and its mean, which is the same but for rounding: such an axis once had no height."""
    row = report.rows[1]
    mine = report.names([row], ours=True)[0]
    ratio = 19.16857857641142
    assert 0 < geometric_mean([ratio]) - ratio < 1e-14
    report.rows[:] = [row]
    row.entries = {name: entry for name, entry in row.entries.items() if name in (mine, "naive")}
    row.entries[mine].seconds, row.entries["naive"].seconds = 1.0, ratio
    plot_report(report, tmp_path, "stem")
