"""The curves are the losses; the pictures show them; the command draws what it is told."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import BCEFocalLoss, BCELoss, BCEWithLogitsLoss, FocalLoss, ZLPRLoss
from lightning_bce.cli import main
from lightning_bce.plotting import loss_curves, loss_from_text, plot_losses, text_losses
from lightning_bce.spec import SpecError


@pytest.mark.parametrize("loss", [BCEWithLogitsLoss(pos_weight=3.0), FocalLoss(gamma=0.5), BCEFocalLoss()], ids=repr)
def test_the_curves_are_the_loss_and_its_slope(loss):
    curves = loss_curves(loss, limit=5.0, points=33)
    for side, target in (("positive", 1.0), ("negative", 0.0)):
        scores = curves.logits if loss.input_space == "logits" else curves.logits.sigmoid()
        values = getattr(curves, side)
        assert_close(values, loss.elementwise(scores, torch.full_like(scores, target)))
        slope = torch.gradient(values, spacing=(curves.logits,))[0][1:-1]
        assert_close(getattr(curves, f"{side}_gradient")[1:-1], slope, rtol=0.05, atol=0.02)


def test_a_loss_on_probabilities_has_its_slope_by_the_logit():
    assert_close(loss_curves(BCELoss()), loss_curves(BCEWithLogitsLoss()), rtol=1e-9, atol=1e-9)


def test_a_picture_has_four_panels_with_a_curve_for_each_loss():
    figure = plot_losses({"a": BCEWithLogitsLoss(), "b": FocalLoss()})
    assert len(figure.axes) == 4
    assert all(len([line for line in axis.lines if len(line.get_xdata()) > 2]) == 2 for axis in figure.axes)
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["a", "b"]


def test_text_shows_every_loss_rising_towards_its_mistakes():
    text = text_losses({"bce": BCEWithLogitsLoss()}, width=60, height=7)
    assert text.isascii() and max(map(len, text.splitlines())) <= 60
    panel = text.split("loss of a positive\n")[1].splitlines()[:7]
    assert panel[0].strip().startswith("8|*") and panel[-1].rstrip().endswith("*")


@pytest.mark.parametrize("bad", [{}, {"limit": 0.0}, {"points": 1}])
def test_an_empty_picture_is_refused(bad):
    with pytest.raises(ValueError, match=r"expected|There is no loss"):
        loss_curves(FocalLoss(), **bad) if bad else plot_losses({})


def test_factors_by_label_cannot_be_drawn():
    with pytest.raises(ValueError, match="cannot be drawn"):
        loss_curves(BCEWithLogitsLoss(pos_weight=[1.0, 2.0]))


ROWS = [
    "AUCMarginLoss",
    "DiceLoss",
    "JaccardLoss",
    "MCCLoss",
    "PairwiseLoss",
    "PositiveUnlabeledLoss(prior=0.3)",
    "SoftF1Loss",
    "TverskyLoss",
    "TwoWayLoss",
    "ZLPRLoss",
]


@pytest.mark.parametrize("text", ROWS)
def test_a_loss_of_rows_can_be_drawn(text):
    curves = loss_curves(loss_from_text(text), points=33)
    assert all(values.isfinite().all() and values.shape == (33,) for values in curves)
    # Somewhere on its way a positive gets cheaper as it gets surer, and a negative dearer.
    assert (curves.positive_gradient < 0).any() and (curves.negative_gradient > 0).any()


def test_a_loss_of_rows_is_that_of_an_element_beside_a_positive_and_a_negative():
    curves = loss_curves(ZLPRLoss(), limit=2.0, points=5)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    assert_close(curves.positive, torch.log(2 + (-x).exp()) + math.log(2))
    assert_close(curves.negative, torch.log(2 + x.exp()) + math.log(2))
    assert_close(curves.negative_gradient, x.exp() / (2 + x.exp()))


def test_text_names_a_loss_with_its_arguments():
    loss = loss_from_text("BCEWithLogitsLoss(pos_weight=3, reduction='sum')")
    assert isinstance(loss, BCEWithLogitsLoss) and loss.pos_weight == 3 and loss.reduction == "sum"
    assert isinstance(loss_from_text("lightning_bce.FocalLoss"), FocalLoss)


@pytest.mark.parametrize(
    "text", ["", "FocalLoss(2)", "FocalLoss(gamma=open('x'))", "FocalLoss()()", "1 + 1", "FocalLoss(**{})"]
)
def test_text_is_read_and_never_evaluated(text):
    with pytest.raises((ValueError, SpecError)):
        loss_from_text(text)


@pytest.mark.parametrize("text", ["os.system(command='exit')", "torch.nn.BCELoss", "NoSuchLoss"])
def test_text_names_losses_only(text):
    with pytest.raises(SpecError):
        loss_from_text(text)


def test_the_command_draws_text_and_a_picture(tmp_path, capsys):
    path = tmp_path / "new" / "losses.png"
    main(["plot", "losses", "BCEWithLogitsLoss", "FocalLoss(gamma=0.5)", f"--output={path}"])
    assert path.stat().st_size > 10_000 and "o FocalLoss(gamma=0.5)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plot", "losses", f"--output={path}"])
    assert "--overwrite" in capsys.readouterr().err
    main(["plot", "losses", f"--output={path}", "--overwrite"])


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["losses", "FocaLoss"], "Did you mean FocalLoss?"),
        (["losses", "FocalLoss(gamma=-1)"], "`gamma` is -1"),
        (["losses", "FocalLoss(gama=1)"], "gama"),
        (["losses", "--limit=0"], "`limit` is 0"),
        (["lossess"], "lossess"),
        ([], "losses"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, answer, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plot", *arguments])
    assert stopped.value.code == 2 and answer in capsys.readouterr().err
