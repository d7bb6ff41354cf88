"""Cut rows into parts in which every label keeps its share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lightning_bce.data.cells import listed

Rows = npt.NDArray[np.int64]


def stratified_split(target: npt.ArrayLike, fractions: Mapping[str, float], seed: int = 0) -> dict[str, Rows]:
    r"""Return the rows of each part, with every label's positives shared out like the rows.

    Labels are taken from the rarest to the most common, each time among the rows that are still free. The free
    positives of a label are dealt to the parts in proportion to what each part still lacks of that label; rows
    without any positive fill the parts up last. With one label this is the usual stratified split. With many it is
    the iterative stratification of Sechidis et al., dealing a label's rows at once instead of one by one: part sizes
    follow the labels and may be a few per cent off the fractions.

    A part gets at least one positive of a label wherever there are as many free positives as parts.

    Args:
        target: Labels (N, C) or (N,), positive above one half. NaN is unknown and counts as not positive.
        fractions: Share of the rows for each part, at least 0, with the sum 1. A part with 0 gets no row.
        seed: Decides which rows go where. The global random state is neither used nor changed.

    Returns:
        For each part its row numbers in ascending order. Together they are all rows, each once.

    Raises:
        ValueError: If the fractions do not add up to 1, or a part with a fraction above 0 would get no row.

    Example:
        >>> parts = stratified_split([0, 0, 0, 0, 0, 0, 1, 1], {"train": 0.5, "test": 0.5})
        >>> [len(rows) for rows in parts.values()], [int((rows >= 6).sum()) for rows in parts.values()]
        ([4, 4], [1, 1])

    References:
        Sechidis et al., On the Stratification of Multi-Label Data, ECML PKDD 2011.
        https://doi.org/10.1007/978-3-642-23808-6_10
    """
    if any(not 0 <= fraction <= 1 for fraction in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(
            f"The fractions are {dict(fractions)}: each must lie in [0, 1] and their sum must be 1. "
            "Give the training part what the others leave."
        )
    labels = np.asarray(target, dtype=np.float64)
    positive = labels.reshape(len(labels), -1) > 0.5  # false for NaN
    names = [name for name, fraction in fractions.items() if fraction > 0]
    share = np.array([fractions[name] for name in names])
    generator = np.random.default_rng(seed)

    part = np.full(len(positive), -1)
    wanted_rows = share * len(positive)
    wanted = share[:, None] * positive.sum(axis=0)
    has = np.zeros((len(names), positive.shape[1]), dtype=np.int64)
    free = positive.sum(axis=0)
    while free.any():
        label = int(np.where(free > 0, free, np.iinfo(np.int64).max).argmin())
        rows = generator.permutation(np.flatnonzero((part < 0) & positive[:, label]))
        counts = _one_for_each(_apportion(len(rows), wanted[:, label]), lacking=has[:, label] == 0)
        part[rows] = np.repeat(np.arange(len(names)), counts)
        dealt = np.stack([positive[rows[part[rows] == k]].sum(axis=0) for k in range(len(names))])
        wanted, has, free = wanted - dealt, has + dealt, free - dealt.sum(axis=0)
        wanted_rows = wanted_rows - counts
    rows = generator.permutation(np.flatnonzero(part < 0))
    part[rows] = np.repeat(np.arange(len(names)), _apportion(len(rows), wanted_rows))

    parts = {name: np.flatnonzero(part == names.index(name)) if name in names else rows[:0] for name in fractions}
    refuse_empty_parts({name: len(parts[name]) for name in names}, fractions)
    return parts


def refuse_empty_parts(sizes: Mapping[str, int], fractions: Mapping[str, float]) -> None:
    """Refuse a cut by which a part with a fraction above 0 gets no row.

    Args:
        sizes: Rows of each part.
        fractions: Share of the rows that each was to get.

    Raises:
        ValueError: With the first such part.

    Example:
        >>> refuse_empty_parts({"train": 7, "test": 0}, {"train": 1.0, "test": 0.0})
    """
    for name, size in sizes.items():
        if fractions[name] > 0 and size < 1:
            raise ValueError(
                f"The part {name!r} is to hold {fractions[name]:.3g} of {sum(sizes.values())} rows, which is no row at "
                "all. Bring more rows, or give this part a larger fraction, or 0 to do without it."
            )


def fold_split(target: npt.ArrayLike, fold: int, folds: int, val_fraction: float, seed: int = 0) -> dict[str, Rows]:
    """Return the parts of one fold of a stratified cross-validation: each row is a test row in exactly one fold.

    Args:
        target: Labels as for :func:`stratified_split`, by which both cuts are made.
        fold: Which one, from 0.
        folds: How many there are, at least 2.
        val_fraction: Share of all rows to validate on, below 1 - 1 / ``folds``; taken from those that are not tested.
        seed: Decides the folds; the same for all of them.

    Returns:
        The rows of "train", "val" and "test", in ascending order.

    Raises:
        ValueError: If a number is out of its range, or a part would get no row.

    Example:
        >>> parts = [fold_split([0, 1] * 6, fold, 3, 0.25)["test"] for fold in range(3)]
        >>> [len(rows) for rows in parts], len(set(np.concatenate(parts).tolist()))
        ([4, 4, 4], 12)
    """
    if folds < 2 or not 0 <= fold < folds:
        raise ValueError(f"Fold {fold} of {folds} is none: there must be at least 2, numbered from 0.")
    rest_share = 1 - 1 / folds
    if not 0 <= val_fraction < rest_share:
        raise ValueError(
            f"`val_fraction` is {val_fraction}: with {folds} folds it must lie in [0, {rest_share:.3g}), so that "
            "something is left to train on."
        )
    labels = np.asarray(target)
    cut = stratified_split(labels, {str(k): 1 / folds for k in range(folds)}, seed)
    rest = np.sort(np.concatenate([rows for name, rows in cut.items() if name != str(fold)]))
    share = val_fraction / rest_share
    inner = stratified_split(labels[rest], {"train": 1 - share, "val": share}, seed)
    return {"train": rest[inner["train"]], "val": rest[inner["val"]], "test": cut[str(fold)]}


def warn_about_labels(parts: Mapping[str, npt.ArrayLike], class_names: Sequence[str]) -> None:
    """Warn of labels that are all of one class in a part, with the counts of each part.

    Args:
        parts: For each part its labels (N, C), NaN for unknown. Parts without rows are passed over.
        class_names: The C names.

    Warns:
        UserWarning: If a label has no known positive or no known negative in some part.

    Example:
        >>> warn_about_labels({"train": [[0.0], [1.0]], "test": [[1.0], [0.0]]}, ["sick"])
    """
    counts: dict[str, tuple[Rows, Rows]] = {}
    for name, values in parts.items():
        labels = np.asarray(values, dtype=np.float64).reshape(-1, len(class_names))
        if len(labels):
            counts[name] = ((labels > 0.5).sum(axis=0), (labels <= 0.5).sum(axis=0))
    warn_about_counts(counts, class_names)


def warn_about_counts(counts: Mapping[str, tuple[Rows, Rows]], class_names: Sequence[str]) -> None:
    """Warn of labels that are all of one class in a part, by the positives and negatives of each label.

    Args:
        counts: For each part the known positives and negatives of each label, (C,) and (C,).
        class_names: The C names.

    Warns:
        UserWarning: If a label has no known positive or no known negative in some part.

    Example:
        >>> warn_about_counts({"train": (np.array([2]), np.array([5]))}, ["sick"])
    """
    one_sided = {
        class_name: {name: (int(positives[c]), int(negatives[c])) for name, (positives, negatives) in counts.items()}
        for c, class_name in enumerate(class_names)
        if any(positives[c] == 0 or negatives[c] == 0 for positives, negatives in counts.values())
    }
    if one_sided:
        by_part = next(iter(one_sided.values()))
        table = ", ".join(f"{name} {pos} positive and {neg} negative" for name, (pos, neg) in by_part.items())
        warnings.warn(
            f"{len(one_sided)} of {len(class_names)} labels have one class only in some part: {listed(one_sided)}. "
            f"The first of them: {table}. A label without both classes cannot be learnt from the training part, and "
            "ranking metrics such as AUROC are undefined on the others. Bring more rows, choose larger fractions, or "
            "leave the label out.",
            stacklevel=2,
        )


def _apportion(count: int, wanted: npt.NDArray[np.float64]) -> Rows:
    """Return whole numbers with the sum ``count`` in proportion to ``wanted``, by largest remainder."""
    weight = wanted.clip(min=0)
    if weight.sum() == 0:
        weight = np.ones_like(weight)
    quota = count * weight / weight.sum()
    whole: Rows = np.floor(quota + 1e-9).astype(np.int64)
    largest = np.argsort(whole - quota, kind="stable")[: count - int(whole.sum())]
    whole[largest] += 1
    return whole


def _one_for_each(counts: Rows, lacking: npt.NDArray[np.bool_]) -> Rows:
    """Move rows from the best-served parts to the lacking ones that would go away empty."""
    counts = counts.copy()
    for k in np.flatnonzero(lacking & (counts == 0)):
        giver = int(counts.argmax())
        if counts[giver] > (1 if lacking[giver] else 0):
            counts[giver] -= 1
            counts[k] += 1
    return counts
