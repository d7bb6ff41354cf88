"""Scores, against scikit-learn's, with weights of rows in place of drawn ones."""

import numpy as np
import pytest
import sklearn.metrics

from lightning_bce.comparison.scores import SCORES, Judged, score_of, scores


@pytest.fixture
def judged():
    """Two labels of which one is partly unknown, with scores that tie."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(257, 2)).round(1)
    target = (generator.random((257, 2)) < 1 / (1 + np.exp(1 - logits))).astype(float)
    known = np.stack([np.ones(257, bool), generator.random(257) < 0.7], axis=1)
    probability = 1 / (1 + np.exp(-logits))
    return Judged(logits, probability, probability > 0.4, target, known)


def of_scikit_learn(name, judged, precision, weight):
    values = []
    for c in range(2):
        rows = judged.known[:, c]
        y, z, p, d, w = (
            judged.target[rows, c],
            judged.logits[rows, c],
            *(part[rows, c] for part in (judged.probability, judged.decision)),
            weight[rows],
        )
        if name == "recall_at_precision":
            curve = sklearn.metrics.precision_recall_curve(y, z, sample_weight=w)
            values.append(curve[1][:-1][curve[0][:-1] >= precision].max(initial=0.0))
        else:
            function, argument = {
                "average_precision": (sklearn.metrics.average_precision_score, z),
                "auroc": (sklearn.metrics.roc_auc_score, z),
                "f1": (sklearn.metrics.f1_score, d),
                "log_loss": (sklearn.metrics.log_loss, p),
                "brier": (sklearn.metrics.brier_score_loss, p),
            }[name]
            values.append(function(y, argument, sample_weight=w))
    return np.mean(values)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_scikit_learn_with_the_same_weights(name, judged):
    weight = np.random.default_rng(1).multinomial(257, np.full(257, 1 / 257), size=3).astype(float)
    expected = [of_scikit_learn(name, judged, 0.6, row) for row in weight]
    np.testing.assert_allclose(score_of(name, judged, 0.6, weight), expected, rtol=1e-12)
    plain = of_scikit_learn(name, judged, 0.6, np.ones(257))
    np.testing.assert_allclose(scores(judged, 0.6)[name], [plain], rtol=1e-12)


@pytest.mark.parametrize(("target", "undefined"), [(0.0, {"average_precision", "auroc", "f1", "recall_at_precision"}),
                                                    (1.0, {"average_precision", "auroc"})])  # fmt: skip
def test_a_label_of_one_class_counts_only_where_it_is_defined(target, undefined, judged):
    one_sided = judged.target.copy()
    one_sided[:, 1] = target
    both, first = scores(judged._replace(target=one_sided), 0.6), scores(Judged(*(p[:, :1] for p in judged)), 0.6)
    same = {name for name in SCORES if both[name] == first[name]}
    assert undefined <= same and not same & {"log_loss", "brier"}


def test_what_no_label_defines_is_nan():
    nothing = Judged(*(np.zeros((3, 1), kind) for kind in (float, float, bool, float, bool)))
    assert all(np.isnan(value).all() for value in scores(nothing, 0.9).values())
