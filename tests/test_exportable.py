"""What is exported predicts what the classifier predicts."""

import lightning.pytorch as pl
import pytest
import sklearn.isotonic  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BinaryClassifier, SmallConvNet, TabularMLP
from lightning_bce.decision import fit_calibration

SIZES = 1, 7, 33
MODELS = {
    "one label": (lambda: TabularMLP(5), 1, (5,)),
    "labels": (lambda: TabularMLP(5, 3), 3, (5,)),
    "(N,)": (lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), 1, (5,)),
    "images": (lambda: SmallConvNet(), 1, (1, 8, 8)),
}


class OtherForward(BinaryClassifier):
    def forward(self, inputs):
        return self.model(-inputs)


def trained(model, num_labels, shape, kind=BinaryClassifier):
    """Return a classifier whose dropout, batch norm and threshold matter."""
    classifier = kind(model, num_labels=num_labels, threshold=0.4)
    rows = torch.randn(66, *shape)
    target = (rows.flatten(1)[:, :num_labels] > 0).float()
    loader = DataLoader(TensorDataset(rows, target), batch_size=22)
    trainer(max_epochs=2).fit(classifier, loader, loader)
    return classifier


def trainer(**options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(accelerator="cpu", **quiet, **options)


def predicted(classifier, inputs):
    (batch,) = trainer().predict(classifier, DataLoader(inputs, batch_size=len(inputs)))
    return batch["probability"], batch["decision"]


@pytest.mark.parametrize("model", MODELS)
def test_an_exported_program_predicts_batches_of_any_size(model):
    make, num_labels, shape = MODELS[model]
    classifier = trained(make(), num_labels, shape)
    samples = torch.export.Dim("samples", min=1)
    program = torch.export.export(classifier.exportable(), (torch.randn(5, *shape),), dynamic_shapes=({0: samples},))
    for size in SIZES:
        inputs = torch.randn(size, *shape)
        probability, decision = program.module()(inputs)
        expected = predicted(classifier, inputs)
        assert_close(probability, expected[0], rtol=0, atol=1e-6)
        assert torch.equal(decision, expected[1])


@pytest.mark.parametrize("method", ["temperature", "platt", "vector", "isotonic"])
@pytest.mark.parametrize("model", MODELS)
def test_calibration_and_thresholds_are_exported(model, method):
    make, num_labels, shape = MODELS[model]
    classifier = trained(make(), num_labels, shape)
    logits = classifier(torch.randn(66, *shape)).reshape(66, num_labels)
    target = (torch.rand(66, num_labels) < torch.sigmoid(logits * 2 - 1)).float()
    classifier.decision.calibration.set(fit_calibration(logits, target, method))
    classifier.decision.set_threshold(torch.linspace(0.3, 0.5, num_labels))
    samples = torch.export.Dim("samples", min=1)
    program = torch.export.export(classifier.exportable(), (torch.randn(5, *shape),), dynamic_shapes=({0: samples},))
    for size in SIZES:
        inputs = torch.randn(size, *shape)
        probability, decision = program.module()(inputs)
        expected = predicted(classifier, inputs)
        assert_close(probability, expected[0], rtol=0, atol=1e-6)
        assert torch.equal(decision, expected[1])


def test_a_forward_of_the_users_own_is_exported():
    classifier = trained(TabularMLP(5), 1, (5,), OtherForward)
    inputs = torch.randn(7, 5)
    program = torch.export.export(classifier.exportable(), (inputs,))
    assert_close(program.module()(inputs)[0], predicted(classifier, inputs)[0], rtol=0, atol=1e-6)


def test_it_is_a_copy_in_evaluation_mode():
    classifier = trained(TabularMLP(5), 1, (5,)).train()
    module, inputs = classifier.exportable(), torch.randn(7, 5)
    before = module(inputs)
    with torch.no_grad():
        next(classifier.parameters()).zero_()
    assert not any(part.training for part in module.modules())
    assert classifier.training
    assert torch.equal(module(inputs)[0], before[0])


def test_a_threshold_decides_as_in_prediction():
    # A third is no float32: both sides round it.
    classifier = BinaryClassifier(nn.Flatten(0), threshold=1 / 3)
    logits = torch.logit(torch.tensor(1 / 3, dtype=torch.float64)).float() + torch.linspace(-1, 1, 257).mul(1e-6)
    decision = classifier.exportable()(logits)[1]
    assert torch.equal(decision, classifier.predict_step(logits, 0)["decision"])
    assert 0 < decision.sum() < 257


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
@pytest.mark.parametrize("model", MODELS)
def test_an_onnx_file_predicts_batches_of_any_size(model, tmp_path):
    pytest.importorskip("onnxscript", reason="pip install 'lightning_bce[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'lightning_bce[onnx]'")
    make, num_labels, shape = MODELS[model]
    classifier, path = trained(make(), num_labels, shape), str(tmp_path / "model.onnx")
    torch.onnx.export(
        classifier.exportable(),
        (torch.randn(5, *shape),),
        path,
        input_names=["inputs"],
        output_names=["probability", "decision"],
        dynamic_shapes=({0: torch.export.Dim("samples", min=1)},),
        dynamo=True,
        verbose=False,
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in SIZES:
        inputs = torch.randn(size, *shape)
        probability, decision = session.run(["probability", "decision"], {"inputs": inputs.numpy()})
        expected = predicted(classifier, inputs)
        assert_close(torch.from_numpy(probability), expected[0], rtol=0, atol=1e-6)
        assert torch.equal(torch.from_numpy(decision), expected[1])
