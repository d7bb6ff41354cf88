"""The examples run, and what they say of themselves is so. The README's Python runs too."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import polars  # these two set variables of the environment when first imported, which is no test's leak
import pytest
import sklearn.datasets  # noqa: F401
import torch

from lightning_bce import BinaryClassifier
from lightning_bce.cli import main

ROOT = Path(__file__).parents[1]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    """Import a file of examples/ as a user in the repository's folder does."""
    monkeypatch.syspath_prepend(ROOT)

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"examples.{name}")

    return load


def newest_checkpoint() -> Path:
    return max(Path("runs").glob("**/best.ckpt"), key=lambda path: path.stat().st_mtime)


def test_the_run_as_yaml_trains_and_a_flag_changes_it():
    main(
        [
            "fit",
            f"--config={ROOT / 'examples' / 'digits.yaml'}",
            "--trainer.max_epochs=1",
            "--model.loss.gamma=1",
            *QUIET,
        ]
    )
    assert BinaryClassifier.load_from_checkpoint(newest_checkpoint()).loss.gamma == 1.0


def test_a_loss_of_ones_own_trains_and_comes_back_from_its_checkpoint(example):
    module = example("own_loss")
    classifier = module.main(max_epochs=1)
    assert isinstance(classifier.loss, module.CappedBCE) and classifier.loss.knee == 1.0


def test_a_loss_of_ones_own_is_smooth_at_its_knee(example):
    loss = example("own_loss").CappedBCE(knee=2.0, reduction="none").double()
    logits = torch.tensor([-5.0, -1.854586, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, torch.ones_like(x)), [logits])


def test_a_loss_of_ones_own_is_used_from_the_command_line(example):
    example("own_loss")
    main(
        [
            "fit",
            "--data=BreastCancerDataModule",
            "--model.loss=examples.own_loss.CappedBCE",
            "--model.loss.knee=1.5",
            "--trainer.max_epochs=1",
            *QUIET,
        ]
    )
    assert BinaryClassifier.load_from_checkpoint(newest_checkpoint()).loss.knee == 1.5


def test_a_subclass_trains_by_its_own_command_and_reloads_as_itself(example):
    module = example("subclass")
    main(
        ["fit", "--data=DigitsDataModule", "--model.shift=2", "--trainer.max_epochs=1", *QUIET],
        model_class=module.AugmentedClassifier,
    )
    classifier = module.AugmentedClassifier.load_from_checkpoint(newest_checkpoint())
    assert classifier.shift == 2
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(classifier.eval().unpack_batch((images,)).inputs, images)
    assert not torch.equal(classifier.train().unpack_batch((images,)).inputs, images)


def test_the_callback_on_a_foreign_module_adds_up_to_its_loss(example, capsys):
    monitor = example("foreign_module").main(max_epochs=1)
    assert sum(row["share"] for row in monitor.summary("val")) == pytest.approx(1)
    assert "digit 3" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:Using `DistributedSampler`")  # which is what the example is about
def test_every_cut_gives_our_gradients_and_measures_and_not_the_plain_ones(example, monkeypatch, capsys):
    for name in ("MASTER_ADDR", "MASTER_PORT"):  # Lightning sets them to start a rank: set and unset here, they go
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    module = example("exact_gradients")
    found = module.main(["2 accumulated, uneven"])
    plain_gradient, gradient, plain_weights, weights = found.pop("2 accumulated, uneven")
    assert plain_gradient > 1e-3 and plain_weights > 1e-3
    assert gradient < 1e-6 and weights < 1e-6
    assert found.keys() == module.MEASURES.keys()
    for name, (plain_alone, alone, plain_together, together) in found.items():
        assert alone < 1e-6 and together < 1e-6
        assert plain_together > 1e-3 and (plain_alone > 1e-3 or name == "average precision")
    printed = capsys.readouterr().out
    assert "gradient: ours" in printed and "2 ranks: ours" in printed
    on_two_ranks = module.by_lightning(module.Ours(module.a_model()), "2 ranks of 32")
    for found, right in zip(on_two_ranks, module.by_a_plain_loop(), strict=True):
        assert (found - right).norm() < 1e-6 * right.norm()


def test_many_labels_train_on_zipf_data_and_tell_their_memory(example, capsys):
    found = example("million_labels").main(labels=20_000, samples=512, batch=64, epochs=2)
    assert found["val_PrecisionAt5"] > 20 / 20_000  # far above chance, 5 of 20,000
    assert found["val_log_loss"] < 0.0025 and 0 < found["weights"] < found["before"] <= found["peak"]
    assert "20,000 labels" in capsys.readouterr().out


def test_a_file_of_very_many_labels_is_trained_on_tested_and_predicted_by_the_command(example, capsys):
    table = polars.read_csv(example("extreme_labels").main(labels=1_000, rows=600, epochs=5))
    shown = capsys.readouterr().out
    found = re.search(r"test_PrecisionAt1 +(\S+)", shown)
    assert found is not None and float(found[1]) > 0.2  # the most frequent label is in 7 of 60 test rows
    assert "test_PropensityScoredPrecisionAt3" in shown
    assert table.columns == ["id", *(f"{name}_{k}" for k in (1, 2, 3) for name in ("label", "probability"))]
    assert table["id"].to_list() == list(range(60)) and table["label_1"].n_unique() > 1
    assert (table["probability_1"] >= table["probability_3"]).all()


def test_a_head_and_a_dense_layer_train_to_the_same_numbers(example):
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 4, generator=random)
    labels = (inputs @ torch.randn(4, 6, generator=random) > 0.5).int()
    names = [f"x{i}" for i in range(4)] + [f"y{i}" for i in range(6)]
    lines = [",".join(map(str, [*row.tolist(), *marks.tolist()])) for row, marks in zip(inputs, labels, strict=True)]
    Path("table.csv").write_text("\n".join([",".join(names), *lines]) + "\n")
    for head, dense in example("head_and_dense").main("table.csv", "-6:", epochs=2).values():
        assert head == pytest.approx(dense, rel=1e-6)  # Lightning keeps what is logged in float32


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("max_epochs=20", "max_epochs=1, accelerator='cpu', logger=False"), names)
    assert isinstance(names["again"], BinaryClassifier)


def test_the_picture_of_the_readme_is_drawn(example):
    example("loss_shares").main("picture.png", max_epochs=1)
    assert Path("picture.png").stat().st_size > 10_000


@pytest.mark.parametrize(("name", "labels"), [("digits", 1), ("digit_labels", 10)])
def test_a_run_is_drawn_and_reported_as_the_readme_says(name, labels, capsys):
    main(["fit", f"--config={ROOT / 'examples' / f'{name}.yaml'}", "--trainer.max_epochs=2", *QUIET])
    main(["report", "runs/version_0"])
    main(["plot", "run", "runs/version_0", "--text"])
    page = Path("runs/version_0/report.html").read_text(encoding="utf-8")
    assert page.count("<img") == (10 if labels == 1 else 11)  # and the samples that cost the most, as images
    assert f"lightning-bce fit --config={ROOT}/examples/{name}.yaml" in page and "class_path: lightning_bce" in page
    assert ("digit 8" if labels == 1 else "10 labels; test set") in page
    assert "The validation loss is lowest in epoch" in capsys.readouterr().out


def test_the_comparison_as_yaml_compares(capsys):
    config = f"--config={ROOT / 'examples' / 'compare.yaml'}"
    with pytest.raises(SystemExit) as stopped:
        main(["compare", config, "--seeds=2", "--max_epochs=1", "--jobs=1", "--markdown"])
    assert not stopped.value.code
    assert capsys.readouterr().out.startswith("| loss | breast cancer | digit 8 | mean rank |")


def test_the_recipe_is_compared_with_scikit_learn_on_the_same_rows(example, capsys):
    module = example("against_sklearn")
    found = module.main([], splits=1, draws=50)
    assert "average precision on 114 test rows, 42 of them positive" in (shown := capsys.readouterr().out)
    for name, (ahead, low, high) in found.items():
        assert name in shown and low <= ahead <= high
        assert low < 0.01 and high > -0.05  # nobody is far ahead on this table
    with torch.no_grad():  # the difference is that of the scores, and its sign the recipe's
        split = {"target": torch.tensor([0.0, 1.0, 0.0, 1.0] * 9).numpy(), "other": torch.zeros(36).numpy()}
        better = {**split, module.OURS: split["target"]}
    assert module.difference([better], "other", draws=20)[0] == pytest.approx(0.5)


def test_loops_of_ones_own_train_the_same_with_torch_alone_and_with_fabric_in_any_cut(example, monkeypatch, capsys):
    module = example("own_loops")
    # Not on two processes: of those that Fabric spawns, one run in three ended in an abort of gloo's at their end.
    module.main(cuts=((1, 1), (1, 3)))
    away = re.findall(r"^\d process\S* x \d batch\S* +(\S+) +(\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert len(away) == 2 and all(float(number) < 1e-14 for line in away for number in line)

    class MeanOfMeans(module.Window):
        def weigh(self, loss, parts, reduce):
            return loss

        def close(self, parts, reduce, optimizers):
            pass

    monkeypatch.setattr(module, "Window", MeanOfMeans)
    weights, _ = module.with_fabric(module.Fabric(accelerator="cpu", devices=1), accumulate=3)
    assert max(abs(a - b) for a, b in zip(weights, module.plain()[0], strict=True)) > 1e-3
