"""Figures, tables and hyper-parameters arrive in each logger: read back with the real package, wherever it is there.

MLflow and W&B are in the extra `loggers`; without it their tests are skipped. Nothing here asks the network.
"""

import csv
import importlib.util
import json
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_bce import loggers
from lightning_bce.loggers import log_figure, log_hyperparameters, log_table

COLUMNS = ["label", "loss", "target"]
ROWS = [["=1+2", 0.25, 1.0], ["a|b <script>", float("nan"), ""], ["[x](y) *z*", 3, None]]
VALUES = {"pos_weight": [2.0, 3.5], "class_names": ["cat", "a/b"], "threshold": 0.25}
RESOLVED = {f"resolved/{name}": value for name, value in VALUES.items()}

needs = {
    name: pytest.mark.skipif(not importlib.util.find_spec(name), reason=f"needs {name}, of the extra loggers")
    for name in ("mlflow", "wandb")
}


@pytest.fixture
def figure():
    figures = pytest.importorskip("matplotlib.figure")
    made = figures.Figure(figsize=(2, 1))
    made.subplots().plot([0, 1], [1, 0])
    return made


def send(logger, figure, step=7):
    log_figure(logger, "val/reliability", figure, step)
    log_table(logger, "val/loss", COLUMNS, ROWS, step)
    logger.log_metrics({"val_loss": 0.5}, step)
    logger.log_hyperparams({"loss": "FocalLoss"})
    log_hyperparameters(logger, VALUES)


def test_tensorboard_has_all_of_it(tmp_path, figure):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, name="")
    send(logger, figure)
    logger.save()
    log_hyperparameters(logger, VALUES | {"threshold": 0.75})  # after its file was written
    logger.finalize("success")
    found = accumulator.EventAccumulator(logger.log_dir).Reload()
    (image,) = found.Images("val/reliability")
    assert image.step == 7 and image.encoded_image_string.startswith(b"\x89PNG") and image.width == 200
    (table,) = found.Tensors("val/loss/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert text.split("\n")[:3] == ["| label | loss | target |", "| --- | --- | --- |", r"| =1\+2 | 0.25 | 1 |"]
    assert r"a\|b &lt;script&gt;" in text and r"\[x\](y) \*z\*" in text
    with open(f"{logger.log_dir}/hparams.yaml") as file:
        assert yaml.safe_load(file) == {"loss": "FocalLoss", **RESOLVED, "resolved/threshold": 0.75}
    resolved = found.Tensors("resolved/text_summary")[0].tensor_proto.string_val[0].decode()
    assert r"| pos\_weight | \[2.0, 3.5\] |" in resolved


def test_beside_a_csv_logger_are_files(tmp_path, figure):
    logger = CSVLogger(tmp_path, name="")
    send(logger, figure)
    logger.save()
    folder = tmp_path / "version_0"
    assert (folder / "pictures" / "val" / "reliability_step_7.png").read_bytes().startswith(b"\x89PNG")
    with open(folder / "tables" / "val" / "loss_step_7.csv", newline="") as file:
        read = list(csv.reader(file))
    assert read == [COLUMNS, ["'=1+2", "0.25", "1.0"], ["a|b <script>", "nan", ""], ["[x](y) *z*", "3", ""]]
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == {"loss": "FocalLoss", **RESOLVED}
    log_figure(logger, "../../a:b", figure, 0)  # a name leads nowhere else
    assert (folder / "pictures" / "_" / "_" / "a_b_step_0.png").exists()


@needs["mlflow"]
def test_mlflow_has_all_of_it(tmp_path):
    run_alone(tmp_path, "mlflow")


@needs["wandb"]
def test_wandb_has_all_of_it(tmp_path):
    run_alone(tmp_path, "wandb")


def run_alone(folder, what):
    """Run a check of this file in an interpreter of its own: these packages start threads and processes, and warn."""
    environment = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "HOME": str(folder),
        # Whatever asks the network all the same asks nobody.
        **{f"{scheme}_PROXY": "http://127.0.0.1:9" for scheme in ("HTTP", "HTTPS", "ALL")},
        "NO_PROXY": "127.0.0.1,localhost",
    }
    done = subprocess.run(
        [sys.executable, __file__, what, str(folder)],
        env=os.environ | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def check_mlflow(folder, figure):
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{folder}/mlflow.db"
    logger = MLFlowLogger("an experiment", tracking_uri=store, artifact_location=f"file:{folder}/artifacts")
    send(logger, figure)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        log_hyperparameters(logger, VALUES | {"threshold": 0.75})  # takes no second value
    assert any("keeps the first value of resolved/threshold" in str(w.message) for w in warned)
    client = MlflowClient(store)
    run = client.get_run(logger.run_id)
    assert run.data.metrics == {"val_loss": 0.5}
    assert run.data.params == {"loss": "FocalLoss"} | {name: str(value) for name, value in RESOLVED.items()}
    png = client.download_artifacts(logger.run_id, "val/reliability/step_7.png", folder)
    with open(png, "rb") as file:
        assert file.read(4) == b"\x89PNG"
    with open(client.download_artifacts(logger.run_id, "val/loss/step_7.csv", folder), newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["label", "'=1+2", "a|b <script>", "[x](y) *z*"]


def check_wandb(folder, figure):
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(project="a project", save_dir=folder, offline=True)
    send(logger, figure)
    wandb.finish()
    (run,) = Path(folder).glob("wandb/offline-run-*/*.wandb")
    history, config = {}, {}
    for record in records_of(run):
        for item in record.history.item:
            history[tuple(item.nested_key) or (item.key,)] = json.loads(item.value_json)
        for item in record.config.update:
            config[item.key] = json.loads(item.value_json)
    table = json.loads((run.parent / "files" / history["val/loss", "path"]).read_text())
    assert table["columns"] == COLUMNS
    assert str(table["data"]) == "[['=1+2', 0.25, 1.0], ['a|b <script>', nan, None], ['[x](y) *z*', 3, None]]"
    (image,) = history["val/reliability", "filenames"]
    assert (run.parent / "files" / image).read_bytes().startswith(b"\x89PNG")
    assert history["val_loss",] == 0.5 and history["trainer/global_step",] == 7
    assert {name: config[name] for name in ("loss", *RESOLVED)} == {"loss": "FocalLoss", **RESOLVED}


def records_of(path):
    """Yield the records of a run file of W&B: a log of LevelDB, in blocks of 32 KiB, behind 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        if left < 7:  # too little for the head of a record: the block ends in zeros
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


class Comet:
    """The methods of Comet's experiment, by its documentation."""

    def __init__(self):
        self.sent = []

    def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None):
        self.sent.append((figure_name, figure, step))

    def log_table(self, filename, tabular_data=None, headers=False, **format_kwargs):
        self.sent.append((filename, tabular_data, headers))


class Wrapping(Logger):
    """A logger of other people around something."""

    def __init__(self, experiment=None):
        super().__init__()
        self.experiment = experiment
        self.params = {}

    name, version = "wrapping", 0

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        self.params.update(params)


def test_what_is_like_comet_gets_all_of_it(figure):
    logger = Wrapping(Comet())
    send(logger, figure)
    assert logger.experiment.sent == [
        ("val/reliability", figure, 7),
        ("val/loss_step_7.csv", [list(row) for row in ROWS], COLUMNS),
    ]
    assert logger.params == {"loss": "FocalLoss", **RESOLVED}


def test_a_logger_of_another_kind_is_named_once(monkeypatch):
    monkeypatch.setattr(loggers, "_WARNED", set())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(3):
            log_figure(Wrapping(), "a", None, 0)
            log_table(Wrapping(object()), "a", ["x"], [[1]], 0)
    told = [str(warning.message) for warning in warned]
    assert len(told) == 2 and "Wrapping gets no figures" in told[0] and "Wrapping gets no tables" in told[1]


def test_no_logger_and_that_of_a_trial_run_take_nothing(figure):
    for logger in (None, DummyLogger()):
        log_figure(logger, "a", figure, 0)
        log_table(logger, "a", ["x"], [[1]], 0)
        log_hyperparameters(logger, VALUES)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="A row of the table 'a' has 1 values and there are 2 columns"):
        log_table(None, "a", ["x", "y"], [[1]], 0)


if __name__ == "__main__":
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([0, 1], [1, 0])
    {"mlflow": check_mlflow, "wandb": check_wandb}[sys.argv[1]](sys.argv[2], drawn)
