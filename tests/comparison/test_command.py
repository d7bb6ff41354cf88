"""The command, called in process as a user would type it, and what it leaves."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import polars
import pytest
import yaml
from comparing import OWN, quick, write_table

from lightning_bce.cli import main
from lightning_bce.comparison import scheduling
from lightning_bce.comparison.pictures import cliques, draw_critical_difference, draw_differences
from lightning_bce.comparison.report import write_report
from lightning_bce.comparison.statistics import Estimate
from lightning_bce.comparison.tables import markdown
from lightning_bce.data import TableDataModule

TABLE = ["--data=TableDataModule", "--data.path=table.csv", "--data.batch_size=64"]
QUICK = ["--seeds=2", "--max_epochs=2", "--jobs=1"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *arguments])
    return int(stopped.value.code or 0)


# -- what it prints and leaves ----------------------------------------------------------------------------------------


def test_compare_prints_tables_and_a_verdict_and_leaves_a_report(capsys):
    assert run("--losses", "FocalLoss(gamma=1)", "BrierLoss", *TABLE, *QUICK) == 0
    shown = capsys.readouterr().out
    assert "FocalLoss(gamma=1)" in shown and "table: " in shown and "report: comparison/report.html" in shown
    left = {path.name for path in Path("comparison").iterdir()}
    assert left == {"report.html", "runs", "runs.csv", "runs.parquet", "summary.md", "differences.png"}


def test_every_run_is_in_the_csv_and_the_parquet_file():
    run("--losses", "FocalLoss", f"{OWN}.NotANumber", *TABLE, *QUICK)
    with open("comparison/runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    frame = polars.read_parquet("comparison/runs.parquet")
    assert len(rows) == frame.height == 6 and list(rows[0]) == frame.columns
    assert [float(row["brier"]) for row in rows if row["brier"]] == pytest.approx(frame["brier"].drop_nulls().to_list())
    assert sum("NotFiniteError" in (error or "") for error in frame["error"]) == 2
    assert {path.stem for path in Path("comparison/runs").iterdir()} == set(frame["key"])


def test_yaml_says_the_same_as_flags(capsys):
    run("--losses", "FocalLoss", "BrierLoss", *TABLE, *QUICK, "--markdown")
    by_flags = capsys.readouterr().out
    content = {
        "losses": ["FocalLoss", {"class_path": "lightning_bce.BrierLoss"}],
        "data": {"table": {"class_path": "TableDataModule", "init_args": {"path": "table.csv", "batch_size": 64}}},
        "seeds": 2,
        "max_epochs": 2,
        "jobs": 1,
    }
    Path("compare.yaml").write_text(yaml.safe_dump(content))
    run("--config=compare.yaml", "--markdown")
    assert capsys.readouterr().out == by_flags
    assert len(list(Path("comparison/runs").iterdir())) == 6  # found again
    with pytest.raises(SystemExit):
        main(["compare", "--config=compare.yaml", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["losses"][0] == "FocalLoss"


def test_several_data_sets_by_flags(capsys):
    write_table(Path("other.csv"), 1)
    data = ["--data+=TableDataModule", "--data.path=table.csv", "--data+=TableDataModule", "--data.path=other.csv"]
    assert run("--losses", "FocalLoss", *data, *QUICK, "--markdown") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("| loss | table | other | mean rank |") and "Over 2 data sets" in shown
    assert Path("comparison/critical_difference.png").exists()


def test_a_dry_run_prints_the_grid_and_runs_nothing(capsys):
    assert run("--losses", "FocalLoss", *TABLE, "--folds=3", "--repeats=2", "--dry_run", "--jobs=2") == 0
    shown = capsys.readouterr().out
    assert re.search(r"12 of 12 runs are to be made, 2 at a time: at most \d", shown) and "FocalLoss" in shown
    assert not Path("comparison").exists()


def test_shares_make_runs_and_the_command_without_them_reports(capsys, monkeypatch):
    assert run("--losses", "FocalLoss", *TABLE, *QUICK, "--shard=0/2") == 0
    assert run("--losses", "FocalLoss", *TABLE, *QUICK, "--shard=1/2") == 0
    assert not Path("comparison/report.html").exists() and "4 of 4 runs are there" in capsys.readouterr().err
    monkeypatch.setattr(scheduling, "make", None)
    assert run("--losses", "FocalLoss", *TABLE, *QUICK) == 0
    assert Path("comparison/report.html").exists()


# -- its status -------------------------------------------------------------------------------------------------------


def test_a_failed_run_is_status_one_and_named(capsys):
    assert run("--losses", f"{OWN}.NotANumber", "FocalLoss", *TABLE, *QUICK) == 1
    told = capsys.readouterr()
    assert "failed: table" in told.err and "NotFiniteError" in told.err and "table: " in told.out


def test_no_better_loss_is_status_three_where_that_is_asked_for():
    assert run("--losses", f"{OWN}.Twin", *TABLE, *QUICK, "--fail_unless_better") == 3
    assert run("--losses", f"{OWN}.Twin", *TABLE, *QUICK) == 0


def test_an_interruption_is_status_130_and_the_same_command_goes_on(capsys, monkeypatch):
    real, calls = scheduling.make, []

    def make(task, folder):
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(task, folder)

    monkeypatch.setattr(scheduling, "make", make)
    assert run("--losses", "FocalLoss", *TABLE, *QUICK) == 130
    assert "Interrupted: 2 of 4 runs are finished" in capsys.readouterr().err
    assert run("--losses", "FocalLoss", *TABLE, *QUICK) == 0
    assert len(calls) == 5 and "2 of 4 runs are in comparison already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--losses", "FocalLoss"], "--data is missing"),
        ([*TABLE], "There is no loss to compare"),
        (["--losses", "FocaLoss", *TABLE], "Did you mean FocalLoss?"),
        (["--losses", "FocalLoss(gamma=-1)", *TABLE], "`gamma` is -1"),
        (["--losses", "FocalLoss(2)", *TABLE], "is not of the form"),
        (["--losses", "FocalLoss", "--data=DigitsDataModul"], "Did you mean DigitsDataModule?"),
        (
            ["--losses", "FocalLoss", "--data=TableDataModule", "--data.path=nowhere.csv"],
            "There is no file nowhere.csv",
        ),
        (["--losses", "FocalLoss", *TABLE, "--seedz=3"], "Did you mean --seeds?"),
        (["--losses", "FocalLoss", *TABLE, "--metric=accuracy"], "average_precision"),
        (["--losses", "FocalLoss", *TABLE, "--folds=3", "--seeds=2"], "`--seeds` has no effect"),
        (["--losses", "FocalLoss", *TABLE, "--shard=2/2"], "`--shard` is '2/2'"),
        (["--losses", "FocalLoss", *TABLE, "--shard=0/2", "--dry_run"], "without it"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--losses", "FocalLoss", *TABLE, "--jobs=0"], "`jobs` is 0"),
    ],
)
def test_wrong_usage_is_answered_in_a_line_and_status_two(arguments, answer, capsys):
    assert run(*arguments) == 2
    told = capsys.readouterr().err
    assert answer in told and "Traceback" not in told and not Path("comparison/runs").exists()


def test_no_argument_is_without_help(capsys):
    assert run("--help") == 0
    blocks = capsys.readouterr().out.split("\n  --")[1:]
    assert len(blocks) > 20
    for block in blocks:
        words = " ".join(block.split())
        assert not re.match(r"[\w.+]+ (\{.*?\}|[A-Z_]+)(, --[\w.+]+ [A-Z_]+)? \(", words), f"--{words}"


# -- report, tables, pictures -----------------------------------------------------------------------------------------


def test_the_report_needs_nothing_beside_it_and_shows_names_as_they_are():
    name = "<script>alert('$1$')</script>|x"
    compared = quick(["FocalLoss"], {name: TableDataModule("table.csv")}, seeds=1, max_epochs=1)
    write_report(compared, Path("out"))
    page = Path("out/report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "default-src 'none'" in page
    assert all(text in page for text in ("FocalLoss", "Holm", "TabularMLP"))
    head, rule, *rows = markdown(compared).splitlines()[:4]
    assert head.count("|") - head.count(r"\|") == rule.count("|") == 3 and len(rows) == 2


def test_a_search_is_described_in_the_report():
    pytest.importorskip("optuna", reason="a search needs Optuna: pip install 'lightning_bce[compare]'")
    write_report(quick(["FocalLoss"], seeds=1, max_epochs=1, trials=1), Path("out"))
    assert "gamma 0 to 4" in Path("out/report.html").read_text()


def test_a_report_is_made_of_a_comparison_in_which_everything_failed():
    compared = quick([f"{OWN}.NotANumber"])
    write_report(compared, Path("out"))
    assert "There is no verdict" in str(compared) and "failed" in Path("out/summary.md").read_text()


def test_differences_are_drawn_where_they_are_with_their_intervals():
    compared = quick(["FocalLoss", "BrierLoss"], seeds=3)
    figure = draw_differences(compared)
    rows = compared.judgements[0].rows[1:]
    lines = [line.get_xdata() for line in figure.axes[0].get_lines()]
    for row in rows:
        assert any(len(x) == 2 and tuple(x) == pytest.approx(row.interval) for x in lines)
        assert any(len(x) == 1 and x[0] == pytest.approx(row.estimate.mean) for x in lines)
    low, high = figure.axes[0].get_xlim()
    assert all(low < end < high for row in rows for end in row.interval)
    assert draw_critical_difference(compared) is None


def test_cliques_are_the_largest_groups_that_are_not_told_apart():
    assert cliques([1.0, 2.0, 3.0, 6.0], 2.0) == [(0, 2)]
    assert cliques([1.0, 2.0, 3.0], 1.0) == [(0, 1), (1, 2)]
    assert cliques([1.0, 3.0], 1.0) == []


def test_records_hold_what_was_searched_as_json():
    pytest.importorskip("optuna", reason="a search needs Optuna: pip install 'lightning_bce[compare]'")
    write_report(quick(["FocalLoss"], seeds=1, max_epochs=1, trials=1), Path("out"))
    assert [set(json.loads(text)) for text in polars.read_csv("out/runs.csv")["searched"]] == [{"lr"}, {"lr", "gamma"}]


def test_a_loss_that_is_far_off_is_written_and_does_not_hide_the_others():
    compared = quick(["FocalLoss", "BrierLoss", "PolyLoss"], seeds=1, max_epochs=1)
    (judgement,) = compared.judgements
    estimates = [Estimate(mean, 0.002, math.inf) for mean in (0.001, -0.002, -0.78)]
    rows = [
        replace(row, estimate=estimate, interval=estimate.interval(0.95))
        for row, estimate in zip(judgement.rows[1:], estimates, strict=True)
    ]
    drawn = replace(compared, judgements=[replace(judgement, rows=[judgement.rows[0], *rows])])
    axes = draw_differences(drawn).axes[0]
    assert axes.get_xlim()[0] > -0.02 and [text.get_text() for text in axes.texts] == ["\u2190 -0.78"]
