"""Learn from training files in one pass: what columns are for, the scale of numbers, words and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from lightning_bce.data.cells import canonical, listed, words
from lightning_bce.data.columns import Columns, find_columns
from lightning_bce.data.labels import Value, asked_for, parse_labels, refuse_unknown, table_of
from lightning_bce.data.learning import Learnt
from lightning_bce.data.roles import refuse_two_roles, warn_of_row_numbers, weights
from lightning_bce.data.row_groups import Kind, ParquetSource
from lightning_bce.data.row_plan import RowSplit
from lightning_bce.data.running_fit import RunningFit
from lightning_bce.data.splits import Rows, warn_about_counts
from lightning_bce.losses import LabelCounts

if TYPE_CHECKING:
    import polars


@dataclass(kw_only=True)
class StreamLearnt(Learnt):
    """What the rows of a stream taught beside that.

    Args:
        columns: All columns and what they hold.
        features: The columns that features are made of.
        label_counts: Of the training rows, in plain numbers; None in checkpoints that were written without.
    """

    columns: dict[str, Kind]
    features: list[str]
    label_counts: dict[str, Any] | None = None


def learn(
    source: ParquetSource,
    split: RowSplit,
    *,
    target: Columns,
    positive: Value | list[Value] | None = None,
    id_column: int | str | None = None,
    weight_column: int | str | None = None,
    drop_columns: Columns | None = None,
    categorical: Columns | None = None,
    missing_values: Sequence[str] = (),
    max_categories: int = 64,
    missing_targets: Literal["error", "ignore"] = "error",
) -> StreamLearnt:
    """Read all rows once, one row group at a time: check the labels of all, and learn from the training rows.

    The arguments are those of :class:`ParquetStreamDataModule`.

    Raises:
        ValueError: If columns, cells or labels are not as the arguments say, naming file and row group.

    Warns:
        UserWarning: If a label has one class only in some part, or a column says nothing.

    Example:
        >>> import pathlib, tempfile, polars
        >>> path = pathlib.Path(tempfile.mkdtemp(), "a.parquet")
        >>> polars.DataFrame({"age": [20, 51], "sick": [0, 1]}).write_parquet(path)
        >>> learn(ParquetSource(str(path)), RowSplit({"train": 1.0}, seed=0), target=-1).targets
        ['sick']
    """
    names = list(source.columns)
    targets = find_columns(names, target, "target")
    if not targets:
        raise ValueError("`target` is an empty list: name at least one label column.")
    ids = find_columns(names, id_column, "id_column")
    weighed = find_columns(names, weight_column, "weight_column")
    as_words = find_columns(names, categorical, "categorical")
    dropped = find_columns(names, drop_columns, "drop_columns")
    roles = {"target": targets, "id_column": ids, "weight_column": weighed, "drop_columns": dropped}
    refuse_two_roles({**roles, "categorical": as_words})
    features = {name: source.columns[name] for name in names if not any(name in used for used in roles.values())}
    _refuse_features(features, source.path, list(roles))
    fit = RunningFit(features, categorical=as_words, max_categories=max_categories, missing_values=missing_values)
    asked = None if positive is None else asked_for(positive)
    labels: Counter[str] = Counter()
    sides = _Sides(split)
    counts: list[LabelCounts] = []
    for number, group in enumerate(source.groups):
        table = source.read(number, [*features, *targets, *weighed])
        train = split.rows("train", number, group.rows)
        try:
            if asked is not None:
                labels.update(_label_words(table, targets, missing_values))
            target_values, _ = parse_labels(
                table, targets, positive=positive, missing_values=missing_values, known=sorted(labels)
            )
            if missing_targets == "error":
                refuse_unknown(target_values, targets, np.arange(group.rows))
            # Weights are looked at now, and not in the middle of an epoch.
            row_weight = next((weights(table[name], np.arange(group.rows)) for name in weighed), None)
            counts.append(
                LabelCounts.of(
                    torch.from_numpy(target_values[train]), None if row_weight is None else row_weight[train]
                )
            )
            fit.add(table.select(list(features))[train], train.tolist())
        except ValueError as error:
            raise ValueError(f"{group}: {error}") from error
        if number == 0:
            warn_of_row_numbers(table[next(iter(features))])
        sides.add(target_values > 0.5, target_values <= 0.5, number)
    if asked is not None and (absent := [word for word in asked if word not in labels]):
        raise ValueError(
            f"`positive` asks for {listed(asked)}, and {listed(absent)} does not occur in {listed(targets, 3)} of "
            f"{source.path}, which has {table_of(labels)}. Give a value that occurs."
        )
    warn_about_counts(sides.counts, targets)
    preprocessor = fit.preprocessor()
    return StreamLearnt(
        preprocessor=preprocessor,
        columns=dict(source.columns),
        # A column that was empty in all training rows has no feature.
        features=[column["name"] for column in preprocessor.state_dict()["columns"]],
        targets=targets,
        id_column=next(iter(ids), None),
        weight_column=next(iter(weighed), None),
        label_words=sorted(labels),
        fingerprint=source.fingerprint,
        label_counts=sum(counts[1:], counts[0]).plain(),
    )


class _Sides:
    """Positives and negatives of each label, by part."""

    def __init__(self, split: RowSplit) -> None:
        self.split = split
        self.counts: dict[str, tuple[Rows, Rows]] = {}

    def add(self, positive: npt.NDArray[np.bool_], negative: npt.NDArray[np.bool_], group: int) -> None:
        for part in (part for part, fraction in self.split.fractions.items() if fraction > 0):
            rows = self.split.rows(part, group, len(positive))
            new = positive[rows].sum(axis=0), negative[rows].sum(axis=0)
            old = self.counts.get(part)
            self.counts[part] = new if old is None else (old[0] + new[0], old[1] + new[1])


def _refuse_features(features: Mapping[str, Kind], path: str, roles: Sequence[str]) -> None:
    if not features:
        raise ValueError(f"{path} has no column left to learn from: all are {', '.join(roles)}.")
    unreadable = [name for name, kind in features.items() if kind not in ("numbers", "words", "nothing")]
    if unreadable:
        raise ValueError(
            f"{len(unreadable)} columns are neither numbers nor text: {listed(unreadable)}; the first has the type "
            f"{features[unreadable[0]]}. Leave them out with `drop_columns`, or write them as numbers."
        )


def _label_words(table: polars.DataFrame, targets: list[str], missing_values: Sequence[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name in targets:
        counts = words(table[name], missing_values).drop_nulls().alias("word").value_counts()
        for word, count in zip(canonical(counts["word"].to_list()), counts["count"].to_list(), strict=True):
            found[word] += count
    return found
