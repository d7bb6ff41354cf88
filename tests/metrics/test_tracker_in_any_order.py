"""LossTracker under anything that can be done to it: the number is that of one loop over what was seen."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule
from torch.testing import assert_close

from lightning_bce import BCEWithLogitsLoss, DiceLoss, FocalLoss, LossTracker

LABELS = 2
LOSSES = {
    "mean": BCEWithLogitsLoss(ignore_index=-1),
    "weighted_mean": FocalLoss(reduction="weighted_mean", class_weight=[1.0, 5.0], ignore_index=-1),
    "batchmean": BCEWithLogitsLoss(reduction="batchmean", pos_weight=3.0, ignore_index=-1),
    "rows": DiceLoss(ignore_index=-1),
}


def batch(seed, size):
    own = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(size, LABELS, generator=own, dtype=torch.float64),
        torch.randint(-1, 2, (size, LABELS), generator=own),
    )


class Trackers(RuleBasedStateMachine):
    """Several trackers and, beside each, the list of the batches that it has to have counted."""

    loss = None
    trackers = Bundle("trackers")

    def fresh(self):
        tracker = LossTracker(self.loss, num_labels=LABELS)
        tracker.persistent(True)
        return tracker

    @rule(target=trackers)
    def new(self):
        return self.fresh(), []

    @rule(pair=trackers, seed=st.integers(0, 99), size=st.integers(0, 5))
    def update(self, pair, seed, size):
        pair[0].update(*batch(seed, size))
        pair[1].append((seed, size))

    @rule(pair=trackers, seed=st.integers(0, 99), size=st.integers(0, 5), cut=st.integers(0, 5))
    def update_in_two(self, pair, seed, size, cut):
        if self.loss.couples_samples or self.loss.reduction == "batchmean":
            cut = size  # a part of such a batch is another batch
        logits, target = batch(seed, size)
        for part in (slice(cut, None), slice(cut)):
            pair[0].update(self.loss.sums(logits[part], target[part]))
        pair[1].append((seed, size))

    @rule(pair=trackers, seed=st.integers(0, 99), size=st.integers(1, 5))
    def forward(self, pair, seed, size):
        value = pair[0](*batch(seed, size))
        self.same(value, [(seed, size)])
        pair[1].append((seed, size))

    @rule(pair=trackers, other=consumes(trackers))
    def merge(self, pair, other):
        if pair[0] is other[0]:
            return
        pair[0].merge_state(other[0])
        pair[1].extend(other[1])

    @rule(pair=trackers)
    def reset(self, pair):
        pair[0].reset()
        pair[1].clear()

    @rule(target=trackers, pair=trackers, how=st.sampled_from(["deepcopy", "pickle", "clone", "state_dict"]))
    def copy_of(self, pair, how):
        tracker = pair[0]
        if how == "state_dict":
            twin = self.fresh()
            twin.load_state_dict(copy.deepcopy(tracker.state_dict()))
            twin._update_count = tracker._update_count  # only a warning hangs on it
        else:
            twin = {
                "deepcopy": copy.deepcopy,
                "pickle": lambda t: pickle.loads(pickle.dumps(t)),
                "clone": lambda t: t.clone(),
            }[how](tracker)
        return twin, list(pair[1])

    @rule(pair=trackers, cast=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
    def cast(self, pair, cast):
        torch.nn.Sequential(pair[0]).to(cast)

    @rule(
        target=trackers,
        parts=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 5)), min_size=1, max_size=5),
        ranks=st.integers(1, 3),
        random=st.randoms(use_true_random=False),
    )
    def ranks(self, parts, ranks, random):
        """Batches are dealt out to ranks, and their trackers added up in some order."""
        each = [self.fresh() for _ in range(ranks)]
        for part in parts:
            random.choice(each).update(*batch(*part))
        random.shuffle(each)
        for other in each[1:]:
            each[0].merge_state(other)
        return each[0], list(parts)

    @rule(pair=trackers)
    def compute(self, pair):
        if pair[1] and pair[0]._update_count:
            self.same(pair[0].compute(), pair[1])
            self.same(pair[0].compute(), pair[1])  # what it keeps is the same

    def same(self, found, parts):
        sums = [self.loss.sums(*batch(*part)) for part in parts]
        loss, weight = (
            [[math.fsum(s[kind][row, side].item() for s in sums) for side in (0, 1)] for row in range(len(sums[0][0]))]
            for kind in (0, 1)
        )
        total, count = math.fsum(map(math.fsum, loss)), math.fsum(map(math.fsum, weight))
        means = [sum(a) / sum(b) if sum(b) else math.nan for a, b in zip(loss, weight, strict=True)]
        expected = {
            "loss": [total / count if count else math.nan],
            "class_loss": means,
            "negative_weight": [row[0] for row in weight],
            "positive_weight": [row[1] for row in weight],
        }
        for key, value in expected.items():
            assert_close(found[key].reshape(-1).tolist(), value, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", LOSSES)
def test_any_split_merge_order_copy_and_reset_give_the_number_of_what_was_seen(name):
    machine = type("Machine", (Trackers,), {"loss": LOSSES[name]}).TestCase
    machine.settings = settings(stateful_step_count=20)
    machine().runTest()
