"""Both callbacks on two gloo ranks: the values of the whole, one table, one file, and nobody waits in vain."""

import contextlib
import csv
import io
import os
import warnings

import lightning.pytorch as pl
import pytest
import torch
from foreign_lightning import LABELS, NAMES, Foreign, a_trainer, quiet_monitor, samples, validate
from torch.testing import assert_close
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from lightning_bce.callbacks import PerClassLossMonitor, PredictionWriter
from lightning_bce.losses import BCEWithLogitsLoss

pytestmark = [
    # Some runs only train.
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
]


class Iterated(IterableDataset):
    """Batches, maybe none, of a number that Lightning does not know."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def become(rank):
    """Tell Lightning that this process is one of two, as torchrun does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test"}


def validate_on_this_rank(rank, parts):
    """Validate a rank's batches: of the first loader few, of the second none on one rank, of the third none at all."""
    become(rank)
    shares = [parts[rank], parts[0] if rank == 0 else [], []]
    module = Foreign()
    told, monitor = io.StringIO(), PerClassLossMonitor(NAMES, BCEWithLogitsLoss())
    trainer = a_trainer(monitor, strategy="ddp", devices=2)
    loaders = [DataLoader(Iterated(share), batch_size=None) for share in shares]
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(told):
        warnings.simplefilter("always")
        trainer.validate(module, loaders, verbose=False)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}

    labels, step = LABELS - rank, module.step
    module.step = lambda batch: {name: step(batch)[name][:, :labels] for name in ("logits", "target")}
    try:
        a_trainer(quiet_monitor(), strategy="ddp", devices=2).validate(module, loaders[:1], verbose=False)
        refused = ""
    except ValueError as error:
        refused = str(error)
    about = ("sync_dist", "before the ``update``")
    return {
        "results": monitor.results["val"],
        "logged": logged,
        "printed": told.getvalue(),
        "warned": [str(w.message) for w in warned if any(text in str(w.message) for text in about)],
        "refused": refused,
    }


def test_two_ranks_give_the_values_of_the_whole(on_two_ranks):
    inputs, target = samples()
    parts = [[(inputs[s], target[s]) for s in (slice(0, 8), slice(8, 32), slice(32, 33))], [samples(5, seed=2)]]
    results = on_two_ranks(validate_on_this_rank, parts)

    alone = quiet_monitor(NAMES)
    whole = [DataLoader(Iterated(share), batch_size=None) for share in (parts[0] + parts[1], parts[0])]
    expected = validate(Foreign(), alone, whole)
    for result in results:
        assert_close(result["results"], [*alone.results["val"], {}], rtol=1e-6, atol=1e-9)
        assert result["warned"] == []
        assert result["refused"].startswith("Ranks have different numbers of labels in dataloader 0: from 2 to 3")
        assert result["logged"] == pytest.approx(expected, rel=1e-6)
    assert results[0]["printed"].count("loss by label") == 2 and results[1]["printed"] == ""


# -- predictions ------------------------------------------------------------------------------------------------------


class Echo(pl.LightningModule):
    """Predicts its input."""

    def predict_step(self, batch, batch_idx):
        return {"probability": batch[0], "decision": batch[0] > 0.5}


def predict_on_this_rank(rank, values, folder):
    """Predict into one file, by Lightning's sampler and by one that pads; then what is refused, on both ranks."""
    become(rank)

    def predict(loader, writer, **options):
        trainer = a_trainer(writer, strategy="ddp", devices=2, **options)
        try:
            trainer.predict(Echo(), loader, return_predictions=False)
            return "", os.path.exists(writer.paths[0])
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            return type(error).__name__, str(error)

    data = TensorDataset(values)
    padding = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=True, seed=3)
    given = {"plain": DataLoader(data, batch_size=4), "padded": DataLoader(data, batch_size=4, sampler=padding)}
    told = {
        name: predict(loader, PredictionWriter(f"{folder}/{name}.csv"), use_distributed_sampler=name == "plain")
        for name, loader in given.items()
    }
    told["exists"] = predict(given["plain"], PredictionWriter(f"{folder}/plain.csv"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning says that it does not know the rows
        unknown = DataLoader(Iterated([[values]]), batch_size=None)
        told["unknown"] = predict(unknown, PredictionWriter(f"{folder}/unknown.csv"))
    if rank == 0:
        os.fsync = None  # a disk that fails
    told["failed"] = predict(given["plain"], PredictionWriter(f"{folder}/failed.csv"))
    return told


def test_two_ranks_write_one_table_in_the_order_of_the_data(on_two_ranks, tmp_path):
    values = torch.rand(33)  # an odd number: a sampler that pads repeats a row
    results = on_two_ranks(predict_on_this_rank, values, str(tmp_path))
    for name in ("plain", "padded"):
        with open(tmp_path / f"{name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["probability"]) for row in rows] == values.tolist()
        assert [row["id"] for row in rows] == [str(i) for i in range(33)]
    for rank, told in enumerate(results):
        assert told["plain"] == told["padded"] == ("", True)  # no rank goes on before the file is there
        assert told["exists"][0] == "FileExistsError"
        assert told["unknown"][0] == "ValueError" and "devices=1" in told["unknown"][1]
        assert rank == 0 or told["failed"][1].startswith("The first rank could not write the predictions")
