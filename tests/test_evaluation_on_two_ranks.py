"""Validation, test and prediction on two ranks give the numbers of one process, with the default flags of the Trainer.

Lightning repeats a row where the ranks would not get as many; nothing of it may show.
"""

import math
import os
import warnings
from functools import partial

import polars  # noqa: F401  (sets a variable of the environment, which a test must not)
import pytest
import torch
from foreign_lightning import Foreign, a_trainer, quiet_monitor
from foreign_lightning import samples as known
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

from lightning_bce import BinaryClassifier, BrierLoss, FocalLoss
from lightning_bce.callbacks import PredictionWriter
from lightning_bce.data import TableDataModule

pytestmark = [
    # Lightning asks torch's pytree in a way that torch has deprecated; nothing that we could change.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    # The data are in memory: worker processes would only cost.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # A single row has labels of one class only.
    pytest.mark.filterwarnings("ignore:.*(positive|negative)"),
]

ROWS, FEATURES, LABELS = 37, 5, 3
NAN = math.nan
STILL = partial(torch.optim.SGD, lr=0.0)  # the weights stay, so that both runs validate one model


def samples(rows, seed=0):
    """Return inputs, labels of which some are unknown, and weights of rows."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, FEATURES, generator=generator).double()
    target = (torch.rand(rows, LABELS, generator=generator) > 0.6).double()
    target[torch.rand(rows, LABELS, generator=generator) > 0.8] = NAN
    return TensorDataset(inputs, target, torch.rand(rows, generator=generator).double())


def three_loaders():
    """Return loaders whose last batch on the second rank is a repeated row among others, alone, and all that there is.

    There are 19 rows on a rank with the one that is repeated.
    """
    return [DataLoader(samples(ROWS), 4), DataLoader(samples(ROWS, 1), 6), DataLoader(samples(1, 2), 4)]


def a_classifier(loss=None, **options):
    torch.manual_seed(0)
    # Batch normalisation has buffers, which ranks exchange in their first step; they stay as they are.
    net = nn.Sequential(nn.BatchNorm1d(FEATURES, momentum=0.0), nn.Linear(FEATURES, LABELS))
    loss = FocalLoss(ignore_index=NAN, reduction="weighted_mean") if loss is None else loss
    return BinaryClassifier(net, loss, num_labels=LABELS, optimizer=STILL, **options)


def a_table(folder, **options):
    labels = {"target": ["y0", "y1", "y2"], "missing_targets": "ignore"}
    roles = {"weight_column": "weight", "id_column": "name"}
    return TableDataModule(
        f"{folder}/table.csv", **labels, **roles, val_fraction=0.3, test_fraction=0.3, batch_size=4, **options
    )


def write_tables(folder):
    torch.manual_seed(5)
    for name, rows in (("table", 90), ("one", 1)):
        lines = ["name,weight,a,b,c,d,e,y0,y1,y2"]
        for i in range(rows):
            labels = ["" if torch.rand(()) > 0.8 else str(int(torch.rand(()) > 0.6)) for _ in range(LABELS)]
            values = [f"{value:.4f}" for value in [torch.rand(()).item(), *torch.randn(FEATURES).tolist()]]
            lines.append(",".join([f"row {i}", *values, *labels]))
        (folder / f"{name}.csv").write_text("\n".join(lines))


def evaluated(folder, **options):
    """Return what runs log, what their monitors hold and what they return; write predictions into the folder."""
    mixed = 0.5 * FocalLoss(ignore_index=NAN) + BrierLoss(ignore_index=NAN)
    objects = [MultilabelF1Score(LABELS, ignore_index=-1), MultilabelAveragePrecision(LABELS, ignore_index=-1)]
    items = [samples(ROWS)[start : start + 5] for start in range(0, ROWS, 5)] + [samples(3, 5)[:3]]  # 9 of them
    plain, uneven, one = three_loaders()
    trainer_of_fit = {"max_epochs": 2, "num_sanity_val_steps": 2}
    runs = {
        "fit": ("fit", a_classifier(), [DataLoader(samples(8), 4), three_loaders()], trainer_of_fit),
        "validate": ("validate", a_classifier(), [three_loaders()], {}),
        "combined": ("test", a_classifier(mixed), [{"a": plain, "b": uneven}], {}),
        "one row": ("test", a_classifier(metrics=objects), [one], {}),
        "batches": ("test", a_classifier(), [DataLoader(items, batch_size=None)], {}),
        "table validated": ("validate", a_classifier(), [None, None, True, a_table(folder)], {}),
        "table tested": ("test", a_classifier(), [None, None, True, a_table(folder)], {}),
        "foreign": ("validate", Foreign(), [DataLoader(TensorDataset(*known(33)), 4)], {}),
    }
    found = {}
    for name, (what, module, arguments, own) in runs.items():
        monitors = [quiet_monitor(loss=None), quiet_monitor(loss=BrierLoss(ignore_index=NAN), prefix="brier_")]
        trainer = a_trainer(*(monitors[1:] if name == "foreign" else monitors), precision="64-true", **options, **own)
        getattr(trainer, what)(module, *arguments)
        logged = {key: value.item() for key, value in trainer.callback_metrics.items() if not key.startswith("train")}
        found[name] = logged, [monitor.results for monitor in monitors]

    predictions = {
        "table": a_table(folder),
        "one": a_table(folder, predict_path=f"{folder}/one.csv"),
        "plain": plain,
        "several": [DataLoader(samples(5), 4), DataLoader(samples(4), 3)],
    }
    for name, data in predictions.items():
        trainer = a_trainer(PredictionWriter(f"{folder}/{name}.predicted.csv"), precision="64-true", **options)
        found[name] = trainer.predict(a_classifier(), data)
    return found


def on_this_rank(rank, folder):
    """Evaluate as one of two ranks, with all flags of the trainer as they are."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(counts twice|before the ``update``|sync_dist)")
        return evaluated(folder, strategy="ddp", devices=2)


def test_two_ranks_evaluate_and_predict_as_one_process_does(on_two_ranks, tmp_path):
    folders = [tmp_path / "alone", tmp_path / "together"]
    for folder in folders:
        folder.mkdir()
        write_tables(folder)
    expected, results = evaluated(str(folders[0])), on_two_ranks(on_this_rank, str(folders[1]))

    predicted = ("table", "one", "plain", "several")
    for result in results:
        for name in result.keys() - predicted:
            logged, tables = result[name]
            assert any("loss" in key for key in logged)
            assert logged == pytest.approx(expected[name][0], rel=1e-7, abs=1e-9, nan_ok=True)
            assert_close(tables, expected[name][1], rtol=1e-12, atol=0, equal_nan=True)

    for name in predicted:
        alone, together = ((folder / f"{name}.predicted.csv").read_text() for folder in folders)
        assert together == alone
    # Each rank returns its own rows: rank, rank + 2, ...
    whole = {name: torch.cat([part["probability"] for part in expected[name]]) for name in ("table", "one", "plain")}
    for rank, result in enumerate(results):
        for name, probability in whole.items():
            assert_close(torch.cat([part["probability"] for part in result[name]]), probability[rank::2])
    assert [part["id"] for part in results[0]["one"]] == [["row 0"]]
    assert [part["id"] for part in results[1]["one"]] == [[]]
