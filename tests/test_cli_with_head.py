"""A head by the command: from a file of lists of labels to a table of the most probable ones, and what is refused."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import lightning.pytorch as pl
import polars
import pytest
import sklearn.datasets  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch

from lightning_bce import BinaryClassifier, MultiLabelHead, SparseMLP
from lightning_bce.callbacks import PerClassLossMonitor, PredictionWriter, ThresholdTuner
from lightning_bce.cli import main
from lightning_bce.data import ManyLabelDataModule
from lightning_bce.metrics import PropensityScoredPrecisionAtK

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
DATA = ["--data=ManyLabelDataModule", "--data.path=train.txt", "--data.batch_size=16"]
HEAD = ["--model.head=MultiLabelHead", "--model.head.in_features=8", "--model.head.loss=FocalLoss"]
FEATURES, LABELS, ROWS = 40, 33, 97


def lines(rows: int, seed: int = 0) -> str:
    random = torch.Generator().manual_seed(seed)
    found = [f"{rows} {FEATURES} {LABELS}"]
    for _ in range(rows):
        topic = int(torch.randint(10, (), generator=random))
        labels = sorted({topic, 10 + topic, int(torch.randint(20, LABELS, (), generator=random))})
        words = [f"{4 * topic + i}:{float(torch.rand((), generator=random)) + 0.5:.3f}" for i in range(4)]
        found.append(" ".join([",".join(map(str, labels)), *words]))
    return "\n".join(found) + "\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("train.txt").write_text(lines(ROWS))
    return tmp_path


def fit(*flags: str) -> Path:
    main(["fit", *DATA, *HEAD, *flags, *QUIET, "--trainer.max_epochs=2"])
    return max(Path("runs").glob("**/best.ckpt"), key=lambda path: path.stat().st_mtime)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_head_trains_and_its_checkpoint_validates_tests_and_predicts_by_itself(capsys):
    metrics = "lightning_bce.metrics.PropensityScoredPrecisionAtK"
    path = fit(f"--model.metrics=[{{class_path: {metrics}, init_args: {{k: 2, a: 0.6, b: 2.6}}}}]")
    tested = capsys.readouterr().out
    assert "--model.loss" not in tested and "prior_bias" not in tested  # nothing was decided about them
    classifier = BinaryClassifier.load_from_checkpoint(path)
    assert type(classifier.model) is SparseMLP and classifier.model.in_features == FEATURES
    assert classifier.head is not None and classifier.head.weight.shape == (LABELS, 8)
    assert type(classifier.loss).__name__ == "FocalLoss"
    main(["test", f"--ckpt_path={path}", *QUIET])
    name = "test_PropensityScoredPrecisionAt2"
    assert [line for line in tested.splitlines() if name in line] == [
        line for line in capsys.readouterr().out.splitlines() if name in line
    ]
    main(["validate", f"--ckpt_path={path}", *QUIET])
    assert "val_PropensityScoredPrecisionAt2" in capsys.readouterr().out

    Path("new.txt").write_text(lines(7, seed=1))
    Path("train.txt").unlink()  # the checkpoint knows how many features and labels there are
    main(["predict", f"--ckpt_path={path}", "--data.predict_path=new.txt", "--model.top_k=3", *QUIET])
    with open("predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    batch = next(iter(ManyLabelDataModule("new.txt", batch_size=7).predict_dataloader()))
    with torch.no_grad():
        probability = (classifier.eval()(batch["inputs"]) @ classifier.head.weight.T + classifier.head.bias).sigmoid()
    best, labels = probability.topk(3)
    assert [list(row) for row in rows] == 7 * [
        ["id", *(f"{n}_{k}" for k in (1, 2, 3) for n in ("label", "probability"))]
    ]
    assert [[int(row[f"label_{k}"]) for k in (1, 2, 3)] for row in rows] == labels.tolist()
    assert [[float(row[f"probability_{k}"]) for k in (1, 2, 3)] for row in rows] == [
        pytest.approx(row, rel=1e-5) for row in best.tolist()
    ]


def test_a_run_goes_on_with_its_head(capsys):
    path = fit()
    main(["fit", f"--ckpt_path={path.parent / 'last.ckpt'}", "--trainer.max_epochs=3", *QUIET])
    again = max(Path("runs").glob("**/last.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.load(again, weights_only=True)["epoch"] == 2


def test_a_run_with_a_head_is_repeated_by_its_configuration():
    first = fit("--test_after_fit=false")
    main(["fit", "--config=runs/version_0/config.yaml"])
    second = Path("runs/version_1/checkpoints/best.ckpt")
    one, other = (torch.load(path, weights_only=True)["state_dict"]["head.weight"] for path in (first, second))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--model.loss=FocalLoss"], "`loss` was given beside a `head`"),
        (["--model.threshold=0.3"], "`threshold` has no effect"),
        (["--decide=threshold"], "--decide has no effect with a head"),
        (["--model.prior_bias=true"], "give it its `prior`"),
        (["--model.metrics=[F1Score]"], "metrics of the first k labels"),
        (["--data.label_column=tags"], "no effect on train.txt"),
    ],
)
def test_what_has_no_effect_with_a_head_is_refused(capsys, flags, what):
    assert what in refused(capsys, "fit", *DATA, *HEAD, *flags, *QUIET, "--trainer.max_epochs=1")


def test_lists_of_labels_without_a_head_are_refused_before_training(capsys):
    assert "add --model.head MultiLabelHead" in refused(capsys, "fit", *DATA, *QUIET)


@pytest.mark.parametrize(
    "flag", ["--model.head.per_label=true", "--model.model.dropout=0.5", "--model.loss=FocalLoss", "--model.head=null"]
)
def test_flags_that_would_change_a_trained_head_are_refused(capsys, flag):
    path = fit()
    assert "cannot change what the checkpoint holds" in refused(capsys, "test", f"--ckpt_path={path}", flag, *QUIET)


def test_a_file_that_is_faulty_is_named_before_training(capsys):
    Path("train.txt").write_text("3 5\n")
    assert "train.txt, line 1 is '3 5'" in refused(capsys, "fit", *DATA, *HEAD, *QUIET)


# -- in Python --------------------------------------------------------------------------------------------------------


def trainer(*callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def classifier(**options: object) -> BinaryClassifier:
    per_label = bool(options.pop("per_label", False))
    head = MultiLabelHead(8, LABELS, per_label=per_label)
    return BinaryClassifier(SparseMLP(FEATURES, 8), head=head, **options)  # type: ignore[arg-type]


def test_names_of_labels_are_written_beside_their_numbers_and_are_no_formula():
    names = [f"=label({i})" for i in range(LABELS)]
    data = ManyLabelDataModule("train.txt", batch_size=16)
    writer = PredictionWriter(["p.csv", "p.parquet"])
    predicted = trainer(writer).predict(classifier(class_names=names, top_k=2), data)
    table = polars.read_parquet("p.parquet")
    labels = torch.cat([batch["label"] for batch in predicted])
    assert table["label_2"].to_list() == labels[:, 1].tolist() and table["id"].to_list() == list(range(ROWS))
    assert table["name_1"].to_list() == [names[label] for label in labels[:, 0].tolist()]
    assert Path("p.csv").read_text().splitlines()[1].split(",")[2].startswith("'=label(")


def test_the_worst_of_many_labels_are_shown_and_not_one_by_one_logged():
    monitor = PerClassLossMonitor(max_rows=3, max_logged=LABELS - 1, print_table=False)
    run = trainer(monitor)
    model = classifier(per_label=True)
    run.fit(model, ManyLabelDataModule("train.txt", batch_size=16))
    assert not [name for name in run.callback_metrics if "label_" in name]
    everything, worst = monitor.summary("val"), monitor.summary("val", most=3)
    assert len(everything) == LABELS and [row["label"] for row in everything[:3]] == [row["label"] for row in worst]
    assert worst[0]["share"] == max(row["share"] for row in everything)
    shown = monitor.table("val", plain=True)
    assert shown.row_count == 4 and str(list(shown.columns[0].cells)[-1]) == f"{LABELS - 3} more"
    loss = run.callback_metrics["val_loss"].item()
    total = sum(row["loss"] * (row["negatives"] + row["positives"]) for row in everything)
    assert total / sum(row["negatives"] + row["positives"] for row in everything) == pytest.approx(loss, rel=1e-5)


def test_without_sums_by_label_the_monitor_has_one_row_for_all():
    monitor = PerClassLossMonitor(print_table=False)
    trainer(monitor).fit(classifier(), ManyLabelDataModule("train.txt", batch_size=16))
    assert [row["label"] for row in monitor.summary("val")] == ["all"]


def test_a_callback_that_looks_at_logits_is_refused_before_training():
    with pytest.raises(TypeError, match="ThresholdTuner looks at the logits of all labels"):
        trainer(ThresholdTuner()).fit(classifier(), ManyLabelDataModule("train.txt"))


def test_sparse_targets_without_a_head_are_refused():
    model = BinaryClassifier(SparseMLP(FEATURES, LABELS), num_labels=LABELS)
    with pytest.raises(TypeError, match="no `head` that takes one"):
        trainer().fit(model, ManyLabelDataModule("train.txt"))


def test_propensities_that_nobody_gives_are_asked_for():
    data = ManyLabelDataModule("train.txt", batch_size=16)
    model = classifier(metrics=[PropensityScoredPrecisionAtK(k=1)])
    with pytest.raises(ValueError, match="has no propensities"):
        trainer().fit(model, data.train_dataloader(), data.val_dataloader())
