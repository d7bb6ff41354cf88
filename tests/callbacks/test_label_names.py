"""Names of labels: where they come from, what is refused, and dataloaders and monitors beside each other."""

import pytest
import torch
from foreign_lightning import FEATURES, LABELS, NAMES, Foreign, a_trainer, loader, quiet_monitor, samples, validate
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from lightning_bce.callbacks import PerClassLossMonitor
from lightning_bce.classifier import BinaryClassifier
from lightning_bce.losses import BCEWithLogitsLoss, FocalLoss, LossSums

pytestmark = [
    # Some runs only train.
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
]


def labels_logged(module, monitor, **options):
    return {
        name.partition("/")[2] for name in validate(module, monitor, **options) if name.startswith("val_loss_class/")
    }


def test_names_come_from_the_argument_then_the_module_then_the_number():
    module = Foreign()
    assert labels_logged(module, quiet_monitor()) == {"label_0", "label_1", "label_2"}
    module.class_names = ["x", "y"]
    assert labels_logged(module, quiet_monitor()) == {"label_0", "label_1", "label_2"}
    module.class_names = ("x", "y", "z")
    assert labels_logged(module, quiet_monitor()) == {"x", "y", "z"}
    assert labels_logged(module, quiet_monitor(NAMES)) == set(NAMES)


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'a' more than once"):
        PerClassLossMonitor(["a", "b", "a"])
    with pytest.raises(ValueError, match="more than once"):  # they would look the same
        PerClassLossMonitor(["a\n", "a\\n"])
    with pytest.raises(TypeError, match="a list of names"):
        PerClassLossMonitor("abc")
    with pytest.raises(ValueError, match=r"2 name\(s\) and there are 3 label\(s\)"):
        validate(Foreign(), quiet_monitor(["a", "b"]))
    module = Foreign()
    module.class_names = ["x", "x", "y"]
    with pytest.raises(ValueError, match=r"Foreign\.class_names"):
        validate(module, quiet_monitor())


def test_names_that_do_not_fit_the_module_are_refused_before_it_trains():
    module = BinaryClassifier(torch.nn.Linear(FEATURES, LABELS), num_labels=LABELS)
    with pytest.raises(ValueError, match=r"2 name\(s\)"):
        a_trainer(PerClassLossMonitor(["a", "b"], stages=["test"])).fit(module, loader(samples()))


def test_a_loss_without_a_form_by_label_has_one_row_for_all():
    def in_one_row(outputs):
        sums = BCEWithLogitsLoss().sums(outputs["logits"], outputs["target"])
        return {"sums": LossSums(sums.loss.sum(0, keepdim=True), sums.weight.sum(0, keepdim=True))}

    module = Foreign()
    plain = module.step
    module.step = lambda batch: in_one_row(plain(batch))
    module.num_labels = LABELS
    assert labels_logged(module, PerClassLossMonitor(NAMES, print_table=False)) == {"all"}


def test_batches_of_different_widths_are_refused():
    ragged = DataLoader([samples(7), samples(7, labels=2)], batch_size=None)
    module = Foreign()
    module.net = torch.nn.Identity()
    module.step = lambda batch: {"logits": batch[1], "target": batch[1]}
    with pytest.raises(ValueError, match=r"2 label\(s\) and those before it had 3"):
        validate(module, quiet_monitor(), ragged)


def test_two_monitors_need_different_names():
    with pytest.raises(ValueError, match=r'prefix ..? and would overwrite.*prefix="focal_"'):
        a_trainer(quiet_monitor(), quiet_monitor(loss=FocalLoss())).validate(
            Foreign(), loader(samples()), verbose=False
        )
    apart = [quiet_monitor(stages=["val"]), quiet_monitor(stages=["test"]), quiet_monitor(prefix="again_")]
    a_trainer(*apart).validate(Foreign(), loader(samples()), verbose=False)
    assert [list(monitor.results) for monitor in apart] == [["val"], [], ["val"]]


def test_several_dataloaders_are_kept_apart():
    monitor = quiet_monitor(NAMES)
    logged = validate(Foreign(), monitor, [loader(samples(7)), loader(samples(17, seed=1))])
    first, second = (logged[f"val_count_negative/cat/dataloader_idx_{i}"] for i in (0, 1))
    assert [len(monitor.results["val"]), first + second < 7 + 17, "val_loss_class/cat" in logged] == [2, True, False]
    assert sum(monitor.summary("val", 1)[0][side] for side in ("negatives", "positives")) == 17
    assert "dataloader 1:" in str(monitor.table("val", 1).title)


def test_dataloaders_that_run_together_are_one():
    class Pairs(Foreign):
        def validation_step(self, batch, batch_idx):
            return super().validation_step(batch["a"], batch_idx)

    together = CombinedLoader({"a": loader(samples(7)), "b": loader(samples(17))}, "min_size")
    assert "val_loss_class/cat" in validate(Pairs(), quiet_monitor(NAMES), together)
