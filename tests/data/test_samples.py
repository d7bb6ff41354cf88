"""The bundled samples: shapes, labels, parts."""

import pytest
import sklearn.datasets  # noqa: F401  # sets environment variables on its first import: not within a test
import torch

from lightning_bce.data import BreastCancerDataModule, DigitsDataModule


def ids(data, part):
    return set(data.rows(part).columns["id"].tolist())


@pytest.mark.parametrize("make", [DigitsDataModule, lambda: DigitsDataModule(None), BreastCancerDataModule])
def test_samples_keep_the_promises_of_a_data_module(make):
    data = make()
    batch = next(iter(data.train_dataloader()))
    assert batch["inputs"].dtype == batch["target"].dtype == torch.float32
    assert batch["inputs"][0].numel() == data.num_features
    assert batch["target"].shape == (256, data.num_labels)
    assert len(data.class_names) == data.num_labels
    assert not ids(data, "train") & ids(data, "val") and not ids(data, "train") & ids(data, "test")
    assert ids(data, "predict") == ids(data, "test")
    assert "target" not in next(iter(data.predict_dataloader()))


def test_digits_are_images_in_the_unit_interval():
    inputs = DigitsDataModule().rows("train").columns["inputs"]
    assert inputs.shape[1:] == (1, 8, 8)
    assert inputs.min() == 0 and inputs.max() == 1


def test_one_digit_is_a_column_of_all_ten():
    eight, everything = DigitsDataModule(8, val_fraction=0.0), DigitsDataModule(None, val_fraction=0.0)
    assert eight.class_names == ["digit 8"] and everything.class_names[8] == "digit 8"
    one, all_ten = (
        {int(row): target for part in ("train", "test") for row, target in zip(*columns(data, part), strict=True)}
        for data in (eight, everything)
    )
    assert len(one) == len(all_ten) == 1797
    assert all(one[row].item() == all_ten[row][8].item() for row in one)
    assert all(target.sum() == 1 for target in all_ten.values())


def columns(data, part):
    found = data.rows(part).columns
    return found["id"], found["target"]


def test_malignant_is_the_positive_class():
    data = BreastCancerDataModule(val_fraction=0.0, test_fraction=0.0)
    assert data.rows("train").columns["target"].sum() == 212  # the count in scikit-learn's description of the data
    assert data.test_dataloader() == [] and data.predict_dataloader() == []


def test_cancer_features_are_standardised_by_the_training_rows():
    inputs = BreastCancerDataModule().rows("train").columns["inputs"].double()
    torch.testing.assert_close(inputs.mean(0), torch.zeros(30).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(30).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("digit", [10, -1, 2.5])
def test_what_is_no_digit_is_refused(digit):
    with pytest.raises(ValueError, match="from 0 to 9"):
        DigitsDataModule(digit)
