"""What every loss gives to LossProfile: the gradient of its sums, also in inference mode and without values."""

import torch
from torch.testing import assert_close

from lightning_bce import LossProfile
from lightning_bce.metrics import losses_and_gradients


def batch_of(case):
    outputs, target = case.batch(33, 3)
    target[::5, 1] = -1
    return outputs if case.cls.input_space == "logits" else torch.logit(outputs), target


def test_a_profile_of_any_loss_has_the_gradient_of_its_sums(any_case):
    loss = any_case.make(ignore_index=-1)
    logits, target = batch_of(any_case)
    with torch.inference_mode():
        profile = LossProfile(loss, 3)
        profile.update(logits.clone(), target.clone())
    profile = profile.compute()
    loss.eval()
    x = logits.clone().requires_grad_()
    loss.sums(x if loss.input_space == "logits" else x.sigmoid(), target).loss.sum().backward()
    by_label = torch.stack([torch.where(target == side, x.grad, 0.0).sum(0) for side in (0, 1)], -1)
    assert_close(profile.gradient, by_label)
    assert profile.hardness.count.sum() == (target >= 0).sum()
    losses, gradient = losses_and_gradients(loss, logits, target)
    assert_close(gradient, x.grad)
    assert (losses is None) == (profile.distribution is None) == (not loss.per_element)
    if losses is not None:
        assert_close(profile.hardness.loss.sum(), losses.sum())
        assert_close(profile.distribution.loss.sum(), losses.sum())


def test_a_profile_of_any_loss_never_waits_for_the_device(any_case):
    logits, target = (t.to("meta") for t in batch_of(any_case))  # tensors without a value to wait for
    profile = LossProfile(any_case.make(ignore_index=-1), 3).to("meta")
    profile.update(logits, target)
    assert profile.label_gradient.is_meta
