"""The plain sentence: which loss to use, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_bce.comparison.judging import Judgement, Row
from lightning_bce.comparison.planning import Settings
from lightning_bce.comparison.scores import SCORES
from lightning_bce.comparison.statistics import Ranks

_FEW = 5
"""Splits below which the sentence says that they are few."""


def verdict(judgement: Judgement, settings: Settings) -> str:
    """Return what to use on a data set, how sure that is and what would tell more."""
    reference, *others = judgement.rows
    title = SCORES[settings.metric].title
    if math.isnan(reference.scores[settings.metric][0]):
        return f"There is no verdict: {reference.label} has no {title} to compare with."
    judged = [row for row in others if row.estimate is not None]
    if not judged:
        return f"There is no verdict: no other loss has a {title} on a split on which {reference.label} has one."
    better = sorted((row for row in judged if row.state == "better"), key=_mean, reverse=True)
    sentences = [_winner(better, title, settings, len(judged))] if better else [_stay(judged, judgement, settings)]
    worse = [row.label for row in judged if row.state == "worse"]
    if worse:
        sentences.append(f"Worse than {reference.label}: {', '.join(worse)}.")
    sentences += _caveats(judgement)
    return " ".join(sentences)


def _mean(row: Row) -> float:
    assert row.estimate is not None
    return row.estimate.mean


def _winner(better: Sequence[Row], title: str, settings: Settings, tested: int) -> str:
    best = better[0]
    low, high = best.interval
    sure = (
        f"; more than the {settings.worth:g} that is worth it, surely"
        if low > settings.worth
        else f"; whether by the {settings.worth:g} that is worth it, is not sure"
        if settings.worth > 0
        else ""
    )
    also = [row.label for row in better[1:]]
    return (
        f"Use {best.label}: its {title} is better than that of tuned BCE by {_mean(best):.3f} ({_level(settings)} "
        f"interval {low:.3f} to {high:.3f}, {_p(best.p_value)} after Holm over {tested} "
        f"loss{'es' if tested > 1 else ''}){sure}."
        + (f" Also better than BCE, and not told apart from it here: {', '.join(also)}." if also else "")
    )


def _stay(judged: Sequence[Row], judgement: Judgement, settings: Settings) -> str:
    title = SCORES[settings.metric].title
    upper = {row.label: row.estimate.interval(1 - 2 * settings.alpha)[1] for row in judged if row.estimate is not None}
    reachable = {label: value for label, value in upper.items() if value >= settings.worth}
    if not reachable:
        return (
            f"Stay with BCE and a tuned threshold: no loss here is better by the {settings.worth:g} in {title} that "
            f"would be worth it, which is sure to {_level(settings)}."
        )
    label, most = max(reachable.items(), key=lambda item: item[1])
    limit = f"{label} may be better by up to {most:.3f}" if math.isfinite(most) else "nothing can be excluded"
    told = (
        f"{judgement.enough} splits would tell, if they vary as these do."
        if judgement.enough is not None
        else "More splits of these rows would not tell; more rows would."
        if judgement.splits >= 3
        else "Give more splits."
    )
    return f"No loss is shown to be better than BCE with a tuned threshold, nor is that excluded: {limit}. {told}"


def _caveats(judgement: Judgement) -> list[str]:
    found = []
    if judgement.method == "same rows":
        if judgement.splits == 1:
            found.append("All rests on one training of each loss: how another would turn out is not known.")
        else:
            found.append("All splits have the same test rows, for whose chance the intervals make room by a bootstrap.")
    elif judgement.splits == 1:
        found.append("One split tells nothing of how its numbers vary.")
    if 1 < judgement.splits < _FEW:
        found.append(f"{judgement.splits} splits are few.")
    failed = [f"{row.label} ({row.failed} of {judgement.splits})" for row in judgement.rows if row.failed]
    if failed:
        found.append(f"Runs failed: {', '.join(failed)}; the others are judged without those splits.")
    return found


def verdict_over_data(ranks: Ranks, labels: Sequence[str], count: int, settings: Settings) -> str:
    """Return what the ranks over several data sets say."""
    best = min(range(len(labels)), key=lambda place: ranks.mean[place])
    apart = ranks.p_value < settings.alpha
    sentences = [
        f"Over {count} data sets {labels[best]} has the best mean rank, {ranks.mean[best]:.2f} of {len(labels)}"
        + (f"; {labels[0]} has {ranks.mean[0]:.2f}." if best else "."),
        f"That the losses differ at all is {'sure enough' if apart else 'not shown'} "
        f"(Friedman's test, {_p(ranks.p_value)}).",
    ]
    far = [
        labels[place]
        for place in range(1, len(labels))
        if abs(ranks.mean[place] - ranks.mean[0]) > ranks.critical_difference
    ]
    if apart and far:
        sentences.append(
            f"Further than Nemenyi's critical difference of {ranks.critical_difference:.2f} from {labels[0]}: "
            f"{', '.join(far)}."
        )
    else:
        sentences.append(
            f"None is told apart from {labels[0]}: the critical difference is {ranks.critical_difference:.2f} ranks."
        )
    if ranks.least_p > settings.alpha / max(1, len(labels) - 1):
        sentences.append(
            f"So few data sets could not show a difference from {labels[0]} by Wilcoxon's test, whose least p-value is "
            f"{ranks.least_p:.3g} before Holm's adjustment."
        )
    return " ".join(sentences)


def _level(settings: Settings) -> str:
    return f"{100 * (1 - settings.alpha):g} %"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
