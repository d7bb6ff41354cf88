"""A compiled model and loss give the same training and the same checkpoint."""

import copy
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import lightning_bce.classifier.module as classifier_module
from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, DiceLoss, FocalLoss, TabularMLP

# torch's own look at logits that it compiles for, which it hides, but not from pytest.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

# 33 rows in batches of 7: the last has another size.
ROWS, SIZE = 33, 7
compile_for_good = torch.compile


@pytest.fixture
def graphs(monkeypatch):
    """Have torch.compile only trace, which takes a second in place of a minute; return what it traced."""
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(compile_for_good, backend=backend))
    monkeypatch.setattr(classifier_module, "reason_against", lambda device: None)
    classifier_module._compiled_sums.cache_clear()
    yield traced
    classifier_module._compiled_sums.cache_clear()
    torch.compiler.reset()


def loader(target=None):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(ROWS, 5, generator=generator)
    return DataLoader(TensorDataset(inputs, (inputs[:, :2] > 0).float() if target is None else target), batch_size=SIZE)


def trained(folder, loss, rows=None, **options):
    torch.manual_seed(3)
    classifier = BinaryClassifier(TabularMLP(5, 2, dropout=0.2), loss, num_labels=2, **options)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", num_sanity_val_steps=0, **quiet)
    trainer.fit(classifier, rows or loader(), loader())
    path = folder / f"{options}.ckpt"
    trainer.save_checkpoint(path)
    return classifier, dict(trainer.callback_metrics), path


@pytest.mark.parametrize(
    "loss", [lambda: FocalLoss(gamma=0.5), lambda: 0.5 * BCEWithLogitsLoss() + DiceLoss()], ids=["one", "combined"]
)
def test_it_trains_and_saves_the_same(loss, graphs, tmp_path):
    eager, expected, plain = trained(tmp_path, loss())
    assert not graphs
    compiled, logged, path = trained(tmp_path, loss(), compile_model=True)
    names = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert any("linear" in name for name in names)  # the model, and of the loss:
    assert any("log" in name for name in names)
    assert_close(logged, expected)
    assert list(compiled.state_dict()) == list(eager.state_dict())
    assert_close(dict(compiled.state_dict()), dict(eager.state_dict()))
    saved = [torch.load(file, weights_only=True) for file in (path, plain)]
    assert list(saved[0]["state_dict"]) == list(saved[1]["state_dict"])
    assert BinaryClassifier.load_from_checkpoint(path).compile_model
    assert not BinaryClassifier.load_from_checkpoint(path, compile_model=False).compile_model


def test_wrong_targets_are_refused_all_the_same(graphs, tmp_path):
    with pytest.raises(ValueError, match="target"):
        trained(tmp_path, FocalLoss(), loader(torch.full((ROWS, 2), 2.0)), compile_model=True)


def test_a_copy_and_an_export_are_not_compiled(graphs, tmp_path):
    classifier, *_ = trained(tmp_path, FocalLoss(), compile_model=True)
    inputs = torch.randn(7, 5)
    program = torch.export.export(classifier.exportable(), (inputs,))
    assert_close(program.module()(inputs)[0], torch.sigmoid(copy.deepcopy(classifier).eval()(inputs)))


def test_without_a_compiler_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(classifier_module, "reason_against", lambda device: f"there is no compiler for {device}")
    with pytest.raises(RuntimeError, match="`compile_model` is True, and there is no compiler for cpu"):
        trained(tmp_path, FocalLoss(), compile_model=True)
