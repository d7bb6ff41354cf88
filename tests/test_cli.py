"""The command, called in process as a user would type it."""

from __future__ import annotations

import csv
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import polars
import pytest
import sklearn.datasets  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
import yaml
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from lightning_bce import BinaryClassifier, FocalLoss
from lightning_bce.callbacks import LiveLossTable, PerClassLossMonitor
from lightning_bce.cli import main
from lightning_bce.cli.equipment import shows_a_table
from lightning_bce.data import BreastCancerDataModule, TableDataModule
from lightning_bce.record import read_run

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
TABLE = ["--data=TableDataModule", "--data.path=table.csv", "--data.positive=yes", "--data.batch_size=33"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, with a table in it: two numbers, a word and a rare label."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(257, 2, generator=generator)
    labels = (x.sum(1) + 0.3 * torch.randn(257, generator=generator)) > 1.5
    rows = [
        f"{a:.6f},{b if i % 7 else '?'},{'red' if i % 3 else 'blue'},{'yes' if y else 'no'}"
        for i, ((a, b), y) in enumerate(zip(x.tolist(), labels.tolist(), strict=True))
    ]
    Path("table.csv").write_text("a,b,colour,label\n" + "\n".join(rows) + "\n")
    return tmp_path


def fit(*flags: str) -> Path:
    """Train two epochs and return the checkpoint."""
    main(["fit", *flags, *QUIET, "--trainer.max_epochs=2"])
    return max(Path("runs").glob("**/best.ckpt"), key=lambda path: path.stat().st_mtime)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what the command answers to arguments that it refuses, with the status for wrong usage."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    answer = capsys.readouterr().err
    assert "Traceback" not in answer
    return answer


def predictions(path: str = "predictions.csv") -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# -- a run and what it leaves -----------------------------------------------------------------------------------------


def test_fit_trains_tests_and_leaves_logs_a_configuration_and_a_checkpoint(capsys):
    checkpoint = fit(*TABLE, "--model.loss=FocalLoss", "--model.loss.gamma=1.5")
    run = checkpoint.parents[1]
    shown = capsys.readouterr().out
    assert "test_AveragePrecision" in shown and str(checkpoint) in shown
    assert (run / "metrics.csv").exists() and list(run.glob("events.*"))
    record = read_run(run)
    assert [line.stage for line in record.history] == ["val", "train", "val", "train"]
    assert sorted(record.evaluations) == ["test", "val"] and record.evaluations["test"].metrics["test_loss"] > 0
    assert "resolved/threshold" in yaml.safe_load((run / "hparams.yaml").read_text())
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["loss"]["init_args"]["gamma"] == 1.5
    logged = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train_loss", "val_loss", "val_log_loss", "val_AUROC", "test_loss"} <= set(logged)
    assert "val_loss_class/label" in logged


def test_each_run_has_a_folder_of_its_own_for_both_loggers():
    first, second = fit(*TABLE).parents[1], fit(*TABLE).parents[1]
    assert [first.name, second.name] == ["version_0", "version_1"]
    assert len(list(Path("runs").iterdir())) == 2


def test_a_run_is_repeated_by_its_configuration():
    first = fit(*TABLE, "--model.optimizer.lr=0.01")
    again = fit("--config", str(first.parents[1] / "config.yaml"))
    weights = [torch.load(path, weights_only=True)["state_dict"] for path in (first, again)]
    assert first != again
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_yaml_and_flags_say_the_same(folder):
    configuration = {
        "data": {"class_path": "TableDataModule", "init_args": {"path": "table.csv", "positive": "yes"}},
        "model": {"loss": {"class_path": "FocalLoss", "init_args": {"gamma": 3.0}}, "threshold": 0.25},
        "trainer": {"callbacks": [{"class_path": "PerClassLossMonitor"}]},
    }
    Path("run.yaml").write_text(yaml.safe_dump(configuration))
    classifier = BinaryClassifier.load_from_checkpoint(fit("--config=run.yaml", "--model.loss.gamma=1"))
    assert isinstance(classifier.loss, FocalLoss)
    assert (classifier.loss.gamma, classifier.threshold) == (1.0, 0.25)


# -- from a checkpoint alone ------------------------------------------------------------------------------------------


def test_predict_from_the_checkpoint_alone_gives_the_probabilities_of_the_run():
    checkpoint = fit(*TABLE)
    main(["predict", f"--ckpt_path={checkpoint}", "--data.predict_path=table.csv", *QUIET])
    Path("new.csv").write_text(Path("table.csv").read_text())
    Path("table.csv").unlink()
    main(
        [
            "predict",
            f"--ckpt_path={checkpoint}",
            "--data.predict_path=new.csv",
            "--predictions.output=again.csv",
            *QUIET,
        ]
    )
    assert predictions() == predictions("again.csv")
    assert len(predictions()) == 257 and [row["id"] for row in predictions()] == [str(i) for i in range(257)]

    # The same in Python, without the command.
    content = torch.load(checkpoint, weights_only=True)
    data = TableDataModule("table.csv", positive="yes", predict_path="new.csv")
    data.restore(content["TableDataModule"])
    classifier = BinaryClassifier.load_from_checkpoint(checkpoint).eval()
    with torch.no_grad():
        logits = torch.cat([classifier(batch["inputs"]) for batch in data.predict_dataloader()])
    probability, decision = classifier.decision(logits)
    written = torch.tensor([float(row["probability"]) for row in predictions()])
    torch.testing.assert_close(written, probability)
    assert [row["decision"] for row in predictions()] == [str(int(d)) for d in decision.tolist()]


def test_predictions_are_written_as_parquet_too():
    checkpoint = fit(*TABLE)
    main(["predict", f"--ckpt_path={checkpoint}", "--predictions.output=p.parquet", *QUIET])
    main(["predict", f"--ckpt_path={checkpoint}", "--predictions.output=p.csv", *QUIET])
    table = polars.read_parquet("p.parquet")
    assert table["probability"].to_list() == pytest.approx([float(row["probability"]) for row in predictions("p.csv")])


def test_test_repeats_the_numbers_of_the_run_that_made_the_checkpoint(capsys):
    def results() -> dict[str, str]:
        return dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("test_"))

    checkpoint = fit(*TABLE, "--model.loss=FocalLoss")
    of_the_run = results()
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    assert results() == of_the_run and len(of_the_run) >= 6


def test_a_flag_changes_a_single_value_of_the_checkpoint():
    checkpoint = fit(*TABLE)
    main(["predict", f"--ckpt_path={checkpoint}", "--model.threshold=0.01", *QUIET])
    decisions = [(float(row["probability"]) > 0.01, row["decision"] == "1") for row in predictions()]
    assert all(expected == written for expected, written in decisions) and any(written for _, written in decisions)


def test_a_checkpoint_may_be_named_in_yaml(capsys):
    checkpoint = fit(*TABLE, "--model.loss=FocalLoss", "--model.model.hidden=[7]")
    content = {"ckpt_path": str(checkpoint), "model": {"threshold": 0.1}}
    content["data"] = {"class_path": "TableDataModule", "init_args": {"path": "table.csv", "positive": "yes"}}
    Path("test.yaml").write_text(yaml.safe_dump(content))
    capsys.readouterr()
    main(["test", "--config=test.yaml", *QUIET])
    assert "FocalLoss" in capsys.readouterr().out


def test_a_checkpoint_born_in_python_is_tested_and_predicts_by_the_command(capsys):
    data = TableDataModule("table.csv", positive="yes")
    model = torch.nn.Sequential(torch.nn.Linear(data.num_features, 7), torch.nn.ReLU(), torch.nn.Linear(7, 1))
    classifier = BinaryClassifier(model, FocalLoss(gamma=1.0), class_names=data.class_names)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(classifier, data)
    expected = torch.cat([part["probability"] for part in trainer.predict(classifier, data)])
    main(["predict", f"--ckpt_path={trainer.checkpoint_callback.best_model_path}", *QUIET])
    written = torch.tensor([float(row["probability"]) for row in predictions()])
    assert torch.equal(written, expected)


def test_a_stream_trains_and_predicts_from_its_checkpoint_without_the_training_files(capsys):
    pytest.importorskip("pyarrow", reason="streams need pyarrow: pip install 'lightning_bce[stream]'")
    rows = polars.read_csv("table.csv", null_values="?")
    for part in ("train", "val"):
        Path(part).mkdir()
        for number in (0, 1):
            rows[number::2].write_parquet(f"{part}/{number}.parquet", row_group_size=33)
    checkpoint = fit(
        "--data=ParquetStreamDataModule", "--data.path=train", "--data.val_path=val", "--data.positive=yes",
        "--data.batch_size=33",
    )  # fmt: skip
    assert "test_AveragePrecision" in capsys.readouterr().out
    # The best by the loss on val_path, not the last.
    assert any("'monitor': 'val_loss'" in name for name in torch.load(checkpoint, weights_only=True)["callbacks"])
    shutil.rmtree("train")
    main(["predict", f"--ckpt_path={checkpoint}", "--data.predict_path=val", *QUIET])
    assert [row["id"] for row in predictions()] == [str(i) for i in range(257)]


def test_a_data_module_of_other_people_needs_no_attributes(folder):
    (folder / "foreign_of_the_cli_test.py").write_text(
        "import lightning.pytorch as pl\n"
        "import torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "class Foreign(pl.LightningDataModule):\n"
        "    def setup(self, stage):\n"
        "        x = torch.randn(66, 3)\n"
        "        self.rows = TensorDataset(x, (x[:, 0] > 1).float())\n"
        "    def train_dataloader(self):\n"
        "        return DataLoader(self.rows, batch_size=16)\n"
        "    val_dataloader = test_dataloader = train_dataloader\n"
    )
    checkpoint = fit(
        "--data=foreign_of_the_cli_test.Foreign", "--model.model=torch.nn.Linear", "--model.model.bias=false",
        "--model.model.in_features=3", "--model.model.out_features=1",
    )  # fmt: skip
    assert isinstance(BinaryClassifier.load_from_checkpoint(checkpoint).model, torch.nn.Linear)


def test_a_resumed_run_goes_on_with_the_loss_of_the_checkpoint():
    checkpoint = fit(*TABLE, "--model.loss=FocalLoss", "--model.loss.gamma=3")
    main(["fit", f"--ckpt_path={checkpoint}", "--trainer.max_epochs=4", *QUIET])
    newest = max(Path("runs").glob("**/best.ckpt"), key=lambda path: path.stat().st_mtime)
    content = torch.load(newest, weights_only=True)
    assert content["hyper_parameters"]["loss"]["init_args"]["gamma"] == 3.0
    assert content["epoch"] >= 2
    assert isinstance(BinaryClassifier.load_from_checkpoint(newest).loss, FocalLoss)


def test_a_loss_and_a_model_of_the_users_own_are_found_in_the_current_folder(folder):
    (folder / "mine_of_the_cli_test.py").write_text(
        "import torch\n"
        "from lightning_bce import BinaryLoss\n"
        "class Brier(BinaryLoss):\n"
        "    def __init__(self, *, scale: float = 1.0, **options):\n"
        "        super().__init__(**options)\n"
        "        self.scale = scale\n"
        "    def elementwise(self, logits, target):\n"
        "        return self.scale * (logits.sigmoid() - target).square()\n"
        "class Line(torch.nn.Module):\n"
        "    def __init__(self, in_features: int, out_features: int = 1):\n"
        "        super().__init__()\n"
        "        self.in_features, self.out_features = in_features, out_features\n"
        "        self.layer = torch.nn.Linear(in_features, out_features)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x)\n"
    )
    own = ["--model.loss=mine_of_the_cli_test.Brier", "--model.loss.scale=2", "--model.model=mine_of_the_cli_test.Line"]
    checkpoint = fit(*TABLE, *own)
    classifier = BinaryClassifier.load_from_checkpoint(checkpoint)
    assert (type(classifier.loss).__name__, type(classifier.model).__name__) == ("Brier", "Line")
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])


# -- parts by name ----------------------------------------------------------------------------------------------------


def test_callbacks_and_loggers_are_known_by_their_short_names(capsys):
    main(
        [
            "fit",
            *TABLE,
            *QUIET,
            "--trainer.max_epochs=2",
            "--trainer.callbacks+=EarlyStopping",
            "--trainer.callbacks.monitor=val_loss",
            "--trainer.callbacks+=PerClassLossMonitor",
            "--trainer.callbacks.max_rows=3",
            "--trainer.logger=CSVLogger",
            "--trainer.logger.save_dir=elsewhere",
        ]
    )
    assert list(Path("elsewhere").glob("**/metrics.csv")) and not list(Path().glob("**/events.*"))
    (checkpoint,) = Path("elsewhere").glob("**/best.ckpt")
    kept = torch.load(checkpoint, weights_only=True)["callbacks"]
    assert any(name.startswith("EarlyStopping") for name in kept)
    assert capsys.readouterr().out.count("loss by label") == 2  # of the last validation and of the test: one monitor


def test_schedulers_and_optimizers_are_known_by_their_short_names():
    checkpoint = fit(
        *TABLE,
        "--model.optimizer=SGD",
        "--model.optimizer.lr=0.05",
        "--model.lr_scheduler=StepLR",
        "--model.lr_scheduler.step_size=1",
    )
    hyper_parameters = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert hyper_parameters["optimizer"]["class_path"] == "torch.optim.SGD"
    assert hyper_parameters["lr_scheduler"]["init_args"]["step_size"] == 1


@pytest.mark.parametrize(
    "name",
    [
        "FocalLoss",
        "BCEWithLogitsLoss",
        "WeightedBCELoss",
        "BCEFocalLoss",
        "BCELoss",
        "ZLPRLoss",
        "TverskyLoss",
        "PairwiseLoss",
        "PositiveUnlabeledLoss",
        "AUCMarginLoss",
    ],
)
def test_no_argument_of_a_loss_is_without_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--model.loss.help={name}"])
    assert stopped.value.code == 0
    undocumented(capsys.readouterr().out)


@pytest.mark.parametrize(
    "name", ["TableDataModule", "ParquetStreamDataModule", "DigitsDataModule", "BreastCancerDataModule"]
)
def test_no_argument_of_a_data_module_is_without_help(name, capsys):
    with pytest.raises(SystemExit):
        main(["fit", f"--data.help={name}"])
    undocumented(capsys.readouterr().out)


def test_no_argument_of_the_command_is_without_help(capsys):
    for subcommand in ("fit", "validate", "test", "predict"):
        with pytest.raises(SystemExit):
            main([subcommand, "--help"])
        undocumented(capsys.readouterr().out)


def undocumented(shown: str) -> None:
    """Fail where an argument is followed by its type and nothing else."""
    blocks = shown.split("\n  --")[1:]
    assert len(blocks) >= 4
    for block in blocks:
        words = " ".join(block.split())
        assert not re.match(r"[\w.+]+ (\{.*?\}|[A-Z_]+)(, --[\w.+]+ [A-Z_]+)? \(", words), f"--{words}"


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["fitt"], "Did you mean fit?"),
        (["fit"], "--data is missing"),
        (["fit", "--data=DigitsDataModul"], "Did you mean DigitsDataModule?"),
        (["fit", "--data=DigitsDataModule", "--model.loss=FocaLoss"], "Did you mean FocalLoss?"),
        (["fit", "--data=DigitsDataModule", "--model.loss=FocalLoss", "--model.loss.gama=2"], "Did you mean --gamma?"),
        (["fit", "--data=DigitsDataModule", "--trainer.max_epochz=2"], "Did you mean --trainer.max_epochs?"),
        (["fit", "--data=DigitsDataModule", "--trainer.max_epochs=two"], "--trainer.max_epochs"),
        (["fit", "--data=DigitsDataModule", "--model.loss=os.system"], "--model.loss"),
        (["fit", "--data=DigitsDataModule", "--model.loss=FocalLoss", "--model.loss.gamma=-1"], "`gamma` is -1"),
        (["fit", "--data=DigitsDataModule", "--model.threshold=2"], "`threshold` is 2"),
        (["fit", "--data=DigitsDataModule", "--model.metrics=[AUROCC]"], "Did you mean AUROC"),
        (["fit", "--data=TableDataModule", "--data.path=nowhere.csv"], "There is no file nowhere.csv"),
        (["fit", "--data=TableDataModule", "--data.path=table.csv"], "positive="),
        (["fit", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["predict", "--data=DigitsDataModule"], "--ckpt_path is missing"),
        (["test", "--ckpt_path=nowhere.ckpt"], "There is no checkpoint 'nowhere.ckpt'"),
    ],
)
def test_wrong_usage_is_answered_in_a_line_and_status_two(arguments, answer, capsys):
    assert answer in refused(capsys, *arguments)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02]q\x00."])
def test_a_damaged_checkpoint_is_named(content, capsys, folder):
    (folder / "bad.ckpt").write_bytes(content)
    assert "'bad.ckpt'" in refused(capsys, "test", "--ckpt_path=bad.ckpt")


def test_a_checkpoint_with_a_payload_is_refused_and_not_run(capsys, folder):
    torch.save({"state_dict": {}, "hyper_parameters": Payload()}, folder / "payload.ckpt")
    assert "payload.ckpt" in refused(capsys, "test", "--ckpt_path=payload.ckpt")
    assert not (folder / "was_run").exists()


class Payload:
    def __reduce__(self) -> Any:
        return open, ("was_run", "w")


def test_predictions_are_not_overwritten_unasked(capsys):
    checkpoint = fit(*TABLE)
    arguments = ["predict", f"--ckpt_path={checkpoint}", *QUIET]
    main(arguments)
    before = Path("predictions.csv").read_text()
    assert "overwrite" in refused(capsys, *arguments, "--model.threshold=0.9")
    assert Path("predictions.csv").read_text() == before
    main([*arguments, "--predictions.overwrite=true"])


def test_thresholds_and_a_calibration_are_fitted_by_flags_and_used_from_the_checkpoint(capsys):
    flags = ["--trainer.callbacks+=ThresholdTuner", "--trainer.callbacks.objective=mcc"]
    checkpoint = fit("--data=BreastCancerDataModule", *flags, "--trainer.callbacks+=ProbabilityCalibrator")
    shown = capsys.readouterr().out
    assert "val thresholds: best mcc" in shown and "val probabilities: platt calibration" in shown
    results = {line.split()[0]: line.split()[1] for line in shown.splitlines() if line.startswith("test_")}
    held = BinaryClassifier.load_from_checkpoint(checkpoint).eval()
    assert held.decision.calibration.method == "platt" and held.decision.is_tuned

    data = BreastCancerDataModule()
    data.setup("test")
    with torch.no_grad():
        rows = [(held(batch["inputs"]), batch["target"]) for batch in data.test_dataloader()]
    logits, target = (torch.cat(part).flatten() for part in zip(*rows, strict=True))
    probability, decision = held.decision(logits)
    right = (decision == (target > 0.5)).float().mean().item()
    assert float(results["test_Accuracy"]) == pytest.approx(right, abs=1e-4)
    calibrated = torch.nn.functional.binary_cross_entropy(probability, target)
    assert float(results["test_log_loss_calibrated"]) == pytest.approx(calibrated.item(), abs=1e-4)

    main(["predict", f"--ckpt_path={checkpoint}", *QUIET])
    written = predictions()
    threshold = held.threshold.item()
    assert {row["decision"] for row in written} == {"0", "1"}
    assert all((float(row["probability"]) > threshold) == (row["decision"] == "1") for row in written)

    # A trained model fitted anew, into a file of its own.
    anew = ["--trainer.callbacks+=ThresholdTuner", "--trainer.callbacks.per_label=false"]
    main(["validate", f"--ckpt_path={checkpoint}", *anew, "--trainer.callbacks.output=tuned.ckpt", *QUIET])
    assert "val_threshold" in capsys.readouterr().out
    assert BinaryClassifier.load_from_checkpoint("tuned.ckpt").decision.calibration.method == "platt"


def test_a_threshold_for_each_label_is_a_list():
    Path("two.csv").write_text("\n".join(["x,a,b"] + [f"{i / 50},{int(i % 5 == 0)},{int(i > 60)}" for i in range(99)]))
    checkpoint = fit("--data=TableDataModule", "--data.path=two.csv", "--data.target=-2:", "--model.threshold=[0,1]")
    main(["predict", f"--ckpt_path={checkpoint}", *QUIET])
    assert {(row["decision_a"], row["decision_b"]) for row in predictions()} == {("1", "0")}


def test_multi_label_tables_are_predicted_label_by_label():
    lines = ["x,first,second"] + [f"{i / 50},{int(i % 5 == 0)},{int(i > 60)}" for i in range(99)]
    Path("two.csv").write_text("\n".join(lines))
    checkpoint = fit("--data=TableDataModule", "--data.path=two.csv", "--data.target=-2:")
    main(["predict", f"--ckpt_path={checkpoint}", *QUIET])
    assert list(predictions()[0]) == [
        "id",
        "probability_first",
        "decision_first",
        "probability_second",
        "decision_second",
    ]
    assert all(math.isfinite(float(row["probability_second"])) for row in predictions())


def test_a_live_table_is_shown_where_a_terminal_has_a_rich_bar(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert shows_a_table({}, [PerClassLossMonitor()]) and shows_a_table({}, [RichProgressBar()])
    assert not shows_a_table({"enable_progress_bar": False}, [])
    assert not shows_a_table({}, [TQDMProgressBar()]) and not shows_a_table({}, [LiveLossTable()])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert not shows_a_table({}, [])


# -- the recipe -------------------------------------------------------------------------------------------------------


def recipe(shown: str) -> dict[str, str]:
    """Return the lines of the recipe by flag."""
    lines = shown.partition("The recipe")[2].splitlines()[1:]
    return dict(re.findall(r"  --(\S+)  +(.*)", "\n".join(lines)))


def test_a_path_alone_is_trained_by_the_recipe_which_says_what_it_decided(capsys):
    checkpoint = fit("--data.path=table.csv", "--data.positive=yes")
    said = recipe(capsys.readouterr().out)
    assert list(said) == [
        "data",
        "model.loss",
        "model.model.hidden",
        "model.prior_bias",
        "model.optimizer",
        "model.lr_scheduler",
        "trainer.callbacks",
        "decide",
    ]
    held = BinaryClassifier.load_from_checkpoint(checkpoint).decision
    assert said["decide"].startswith("threshold ") and held.is_tuned and held.calibration.method is None
    content = torch.load(checkpoint, weights_only=True)
    rows = content["label_counts"]
    assert f"{rows['positives'][0] / rows['known'][0]:.2%}" in said["model.prior_bias"]
    assert content["hyper_parameters"]["lr_scheduler"]["class_path"].endswith("ReduceLROnPlateau")
    assert any(name.startswith("EarlyStopping") for name in content["callbacks"])


@pytest.mark.parametrize(
    ("flags", "method", "tuned"),
    [
        (["--model.loss=FocalLoss"], "platt", True),  # which does not give probabilities
        (["--model.loss.pos_weight=auto"], "platt", True),  # nor does this
        (["--decide=both"], "platt", True),
        (["--decide=calibration"], "platt", False),
        (["--model.threshold=0.3"], None, False),
        (["--model.threshold=0.3", "--model.loss=FocalLoss"], "platt", False),
        (["--data=rows_of_the_cli_test.Many"], "platt", True),  # enough of both sides to validate on
    ],
)
def test_calibration_and_threshold_are_decided_by_loss_rows_and_flags(flags, method, tuned, folder):
    (folder / "rows_of_the_cli_test.py").write_text(
        "import torch\n"
        "from lightning_bce.data.base import BinaryDataModule\n"
        "from lightning_bce.data.tensors import TensorRows\n"
        "class Many(BinaryDataModule):\n"
        "    num_features, num_labels, class_names = 2, 1, ['a']\n"
        "    def rows(self, part):\n"
        "        generator = torch.Generator().manual_seed(len(part))\n"
        "        inputs = torch.randn(257, 2, generator=generator)\n"
        "        noise = torch.randn(257, generator=generator)\n"
        "        target = (inputs[:, 0] + noise > 0.7).float()[:, None]\n"
        "        return TensorRows({'inputs': inputs, 'target': target})\n"
    )
    checkpoint = fit(*([] if flags[0].startswith("--data=") else TABLE), *flags)
    decision = BinaryClassifier.load_from_checkpoint(checkpoint).decision
    assert (decision.calibration.method, decision.is_tuned) == (method, tuned)


def test_every_part_of_the_recipe_gives_way_to_a_flag(capsys):
    checkpoint = fit(
        *TABLE,
        "--model.loss=FocalLoss",
        "--model.model.hidden=[7]",
        "--model.prior_bias=false",
        "--model.optimizer.lr=0.05",
        "--model.lr_scheduler=null",
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val_AUROC",
        "--decide=nothing",
    )
    assert recipe(capsys.readouterr().out) == {}
    content = torch.load(checkpoint, weights_only=True)
    assert "label_counts" not in content and not content["lr_schedulers"]
    assert content["hyper_parameters"]["optimizer"]["init_args"]["lr"] == 0.05
    assert sum(name.startswith("EarlyStopping") for name in content["callbacks"]) == 1


def test_without_validation_rows_nothing_of_the_recipe_looks_at_them(capsys):
    main(["fit", *TABLE, "--data.val_fraction=0", "--trainer.limit_val_batches=0", *QUIET, "--trainer.max_epochs=1"])
    assert not {"model.lr_scheduler", "trainer.callbacks", "decide"} & set(recipe(capsys.readouterr().out))


def test_labels_decide_the_weights_of_a_loss_and_the_checkpoint_predicts_without_them(capsys):
    flags = ["--model.loss.pos_weight=auto", "--data.positive_share=0.5"]
    checkpoint = fit(*TABLE, "--model.loss.pos_weight={rule: ratio, power: 0.5, cap: 2}")
    shown = max(Path("runs").glob("**/hparams.yaml")).read_text()
    weight = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["loss"]["init_args"]["pos_weight"]
    assert weight == 2.0 and "pos_weight: 2.0" in shown
    Path("new.csv").write_text(Path("table.csv").read_text())
    Path("table.csv").unlink()
    main(["predict", f"--ckpt_path={checkpoint}", "--data.predict_path=new.csv", *QUIET])
    assert len(predictions()) == 257
    Path("table.csv").write_text(Path("new.csv").read_text())
    loss = BinaryClassifier.load_from_checkpoint(fit(*TABLE, *flags)).loss
    assert loss.pos_weight.item() == pytest.approx(1, abs=0.02)  # the draw is balanced already


def test_a_rate_of_deployment_is_given_to_a_trained_model(capsys):
    checkpoint = fit(*TABLE)
    moved = "--model.deployment_prior=0.01"
    before, after = (predict(checkpoint, *more) for more in (["a.csv"], ["b.csv", moved]))
    counts = torch.load(checkpoint, weights_only=True)["label_counts"]
    rate = counts["positives"][0] / counts["known"][0]
    odds = before / (1 - before) * (0.01 / 0.99) / (rate / (1 - rate))  # Bayes' rule
    torch.testing.assert_close(after, odds / (1 + odds), rtol=1e-4, atol=1e-7)


def predict(checkpoint: Path, output: str, *flags: str) -> torch.Tensor:
    """Write predictions and return the probabilities."""
    main(["predict", f"--ckpt_path={checkpoint}", f"--predictions.output={output}", *flags, *QUIET])
    return torch.tensor([float(row["probability"]) for row in predictions(output)], dtype=torch.float64)
