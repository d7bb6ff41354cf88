"""LightningCLI for the classifier and its data.

Only introduces the parts to each other: the data's labels to the model, the checkpoint's arguments to the module.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.seed import isolate_rng

import lightning_bce.data as _data
import lightning_bce.recipe as recipe
from lightning_bce._version import __version__
from lightning_bce.callbacks import (
    ExactResume,
    FiniteGuard,
    LiveLossTable,
    PerClassLossMonitor,
    PredictionWriter,
    ProbabilityCalibrator,
    RunRecorder,
    ThresholdTuner,
)
from lightning_bce.callbacks.label_names import of_single_label
from lightning_bce.classifier import BinaryClassifier
from lightning_bce.cli.equipment import SaveRun, as_list, loggers_in, shows_a_table, validates, with_whole_checkpoints
from lightning_bce.cli.given import configurations, gives_head, names_checkpoint, stated_names, value_of
from lightning_bce.cli.parser import Parser, refuse
from lightning_bce.cli.resuming import OptimizerChanges, changed, read_checkpoint, short
from lightning_bce.losses import LabelCounts
from lightning_bce.safe_yaml import check_yaml
from lightning_bce.spec import Spec, SpecError, call_factory

_DESCRIPTION = """Train, validate, test and predict with a binary or multi-label classifier, by flags and YAML.

Others: lightning-bce plot, report, compare (each with --help).
"""
_STAND_IN = "torch.nn.Identity"


class BinaryCLI(LightningCLI):
    """LightningCLI for :class:`BinaryClassifier`, or a subclass of it, on any LightningDataModule.

    A data module may have the attributes ``num_labels``, ``class_names`` and ``num_features``; the model and the
    classifier get them. ``--ckpt_path`` brings the checkpoint's own model, loss and data with it, and flags change
    single values. ``fit`` ends with a test of the best checkpoint.

    Args:
        model_class: The classifier.
        args: Arguments in place of those of the process.

    Example:
        >>> cli = BinaryCLI(args=["fit", "--data", "BreastCancerDataModule", "--trainer.fast_dev_run", "true"])
        ... # doctest: +SKIP
    """

    def __init__(
        self, model_class: type[BinaryClassifier] = BinaryClassifier, args: Sequence[str] | None = None
    ) -> None:
        # A range such as -14: reads as YAML with a number for a key, at which jsonargparse 4.53 raises a
        # TypeError; in a list it is a string.
        self._given = [re.sub(r"=(-?\d+:)$", r'=["\1"]', a) for a in (sys.argv[1:] if args is None else args)]
        for path in configurations(self._given):
            try:
                check_yaml(path)
            except ValueError as error:
                refuse(str(error))
        self._stated = stated_names(self._given)
        self._has_head = gives_head(self._given)
        self._fresh = self._given[:1] == ["fit"] and not names_checkpoint(self._given)
        if self._fresh and "data" not in self._stated and "data.path" in self._stated:
            self._given.insert(1, "--data=TableDataModule")
        self._classifier = model_class
        self._checkpoint: dict[str, Any] | None = None
        self._stopping: EarlyStopping | None = None
        self._deciding: list[pl.Callback] = []
        self._changes: dict[str, Any] = {}
        self._optimizer_changes: dict[str, Any] = {}
        super().__init__(
            model_class,
            pl.LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveRun,
            save_config_kwargs={"overwrite": True, "command": ["lightning-bce", *self._given]},
            parser_kwargs={"prog": "lightning-bce", "version": __version__, "description": _DESCRIPTION},
            trainer_defaults={"max_epochs": recipe.EPOCHS, "log_every_n_steps": 10, "default_root_dir": "runs"},
            args=self._given,
        )

    # -- the parser ---------------------------------------------------------------------------------------------------

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return Lightning's parser, of our class, which its constructor takes only in the latest releases."""
        parser = super().init_parser(**kwargs)
        parser.__class__ = Parser
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument(
                "--test_after_fit", type=bool, default=True, help="Whether to test the best checkpoint after training."
            )
            parser.add_argument(
                "--decide",
                type=Literal["auto", "both", "calibration", "threshold", "nothing"],
                default="auto",
                help="What to fit on the validation rows. auto is the threshold unless you give one, and the "
                "calibration unless the loss needs none and the rows are few.",
            )
        if subcommand in ("test", "validate"):
            parser.set_defaults({"verbose": False})  # Lightning's table has a row for every label; ours stands apart
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # they are written, not collected
            parser.add_lightning_class_args(PredictionWriter, "predictions")
            parser.set_defaults({"predictions.output": "predictions.csv"})
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set what a run needs by default and link the data to the model."""
        # A head has the loss, and its model takes the sparse inputs of such data too.
        parser.set_defaults(
            {
                "model.model": {"class_path": f"lightning_bce.{'SparseMLP' if self._has_head else 'TabularMLP'}"},
                "model.loss": None if self._has_head else {"class_path": "lightning_bce.BCEWithLogitsLoss"},
                "model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": recipe.LEARNING_RATE}},
            }
        )
        if self._fresh and not self._has_head and any(action.dest == "model.prior_bias" for action in parser._actions):
            parser.set_defaults({"model.prior_bias": "auto"})
        if self._fresh and not self._stated & {"model.lr_scheduler", "model.optimizer"}:
            parser.set_defaults({"model.lr_scheduler": recipe.SCHEDULER})
        out_features = "model.model.init_args.out_features"
        of_labels = "model.head.init_args.num_labels" if self._has_head else out_features
        if self._has_head and "model.model.out_features" not in self._stated:
            parser.link_arguments("model.head.init_args.in_features", out_features)
        for target, attribute, default in (
            ("model.num_labels", "num_labels", 1),
            ("model.class_names", "class_names", None),
            ("model.model.init_args.in_features", "num_features", None),
            (of_labels, "num_labels", 1),
        ):
            # A link's target cannot be given by hand, so that only what nobody said is linked.
            if target.replace(".init_args", "") not in self._stated:
                link = partial(self._of_data, attribute, default)
                parser.link_arguments("data", target, link, apply_on="instantiate")

    def _of_data(self, attribute: str, default: Any, data: pl.LightningDataModule) -> Any:
        state = (self._checkpoint or {}).get(type(data).__qualname__)
        if state is not None and hasattr(data, "restore"):
            data.restore(state)  # so that nothing has to be read again, from a file that may be gone
        value = getattr(data, attribute, default)
        return default if value == [] else value  # no names

    # -- arguments that come with a checkpoint ------------------------------------------------------------------------

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, after those of the checkpoint where one is given."""
        path = value_of("--ckpt_path", self._given)
        if path is None:
            self.config = parser.parse_args(self._given)
            path = self.config[self.config["subcommand"]].get("ckpt_path")  # of a YAML file
            if path is None and self.config["subcommand"] != "fit":
                parser.error(f"--ckpt_path is missing: {self.config['subcommand']} needs a trained model.")
        if path is None:
            if self._fresh and "model.lr_scheduler" not in self._stated and not validates(self.config["fit"]):
                self.config["fit"]["model"]["lr_scheduler"] = None  # the recipe's looks at the validation loss
            return
        self._checkpoint = read_checkpoint(path, parser)
        subcommand, given = self._given[0], self._given[1:]
        arguments = [subcommand, *self._from_checkpoint(given), *given]
        self.config = parser.parse_args(arguments)
        # What was said on top of the checkpoint. The model is required, so that a stand-in says that none was given.
        stated = [subcommand, f"--model.model={_STAND_IN}", *arguments[1:]]
        changes = parser.parse_args(stated, defaults=False)[subcommand]["model"].as_dict()
        if changes["model"]["class_path"] == _STAND_IN:
            del changes["model"]
        if self._checkpoint.get("hyper_parameters", {}).get("head") is not None:
            del changes["head"]  # a stand-in too
        self._changes = changes
        if subcommand == "fit":
            self._go_on_with(list(self._differences()))

    def _go_on_with(self, differences: Sequence[tuple[str, Any, Any]]) -> None:
        """Say what a resumed run has otherwise than its checkpoint, and refuse what would have no effect."""
        # ReduceLROnPlateau lowers the rate that there is; the others know what it was at first, and go by that.
        scheduled = any("base_lrs" in state for state in (self._checkpoint or {}).get("lr_schedulers") or [])
        for name, before, now in differences:
            change = f"{name} {short(now)}; the checkpoint has {short(before)}"
            _, part, *argument = name.split(".")
            kept = not argument if part == "optimizer" else part in ("lr_scheduler", "lr_scheduler_interval")
            if kept or (scheduled and name == "model.optimizer.lr"):
                self.parser.error(
                    f"A resumed run goes on with the optimizer and the scheduler of its checkpoint, so that this would "
                    f"have no effect: {change}. Leave it out, or train anew without --ckpt_path."
                )
            if part == "optimizer":
                self._optimizer_changes[argument[0]] = now
            sys.stderr.write(f"going on with {change}\n")

    def _differences(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield what flags change of the model and the data of the checkpoint: name, value before, value now."""
        checkpoint = self._checkpoint or {}
        config = self.config["fit"]
        data = config["data"]
        yield from changed("model", checkpoint.get("hyper_parameters", {}), self._changes)
        before = checkpoint.get("datamodule_hyper_parameters", {})
        if before.get("_class_path") == data["class_path"]:
            yield from changed("data", before, dict(data.get("init_args") or {}))

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's way would put the checkpoint's arguments above the user's flags."""

    def _from_checkpoint(self, given: Sequence[str]) -> Iterator[str]:
        """Yield the flags that say what the checkpoint was made with."""
        checkpoint = self._checkpoint or {}
        hyper_parameters = checkpoint.get("hyper_parameters", {})
        head = hyper_parameters.get("head")
        if head is not None:
            fixed = ("model.model", "model.head", "model.loss")
            if said := sorted(name for name in self._stated if name.startswith(fixed)):
                self.parser.error(
                    f"--{said[0]} cannot change what the checkpoint holds: a head and the model before it are those "
                    "of the training. Leave it out, or train anew without --ckpt_path."
                )
            # So that nothing as large as the head is made twice: the checkpoint's takes the place of both.
            yield f"--model.model={_STAND_IN}"
            yield f"--model.head={json.dumps({**head, 'init_args': {**head['init_args'], 'in_features': 1}})}"
            yield "--model.loss=null"
        for name in ("loss", "optimizer", "lr_scheduler"):
            if hyper_parameters.get(name) is not None:
                yield f"--model.{name}={json.dumps(hyper_parameters[name])}"
        data = {k: v for k, v in checkpoint.get("datamodule_hyper_parameters", {}).items() if k != "_instantiator"}
        path = data.pop("_class_path", None) or next(
            (f"lightning_bce.data.{name}" for name in vars(_data) if name in checkpoint and name[0].isupper()), None
        )
        if path is not None:
            yield f"--data={json.dumps({'class_path': path, 'init_args': data})}"
        elif not any(argument.startswith("--data") for argument in given):
            self.parser.error("The checkpoint does not say what data it was trained on. Add --data.")

    # -- the parts of a run -------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; the model from its checkpoint where one is given."""
        try:
            super().instantiate_classes()
        except (ValueError, OSError, ImportError, SpecError) as error:  # what was asked for is wrong, not the program
            self.parser.error(str(error), error)
        if self._checkpoint is not None and "model" not in self._changes:
            path = self.config[self.config["subcommand"]]["ckpt_path"]
            try:
                with isolate_rng():  # a split that the data draw later is then that of the first run
                    self.model = self._classifier.load_from_checkpoint(path, map_location="cpu", **self._changes)
            except ValueError as error:  # damaged, or weights that are no numbers
                self.parser.error(str(error), error)
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        """Refuse arguments that the optimizer refuses now, and not when the data are loaded and the training begins."""
        optimizer = self.config[self.config["subcommand"]]["model"].get("optimizer")
        if optimizer is not None:
            spec: Spec = {"class_path": optimizer["class_path"], "init_args": dict(optimizer.get("init_args") or {})}
            try:
                call_factory(spec, torch.optim.Optimizer, [torch.nn.Parameter(torch.zeros(1))])
            except (ValueError, TypeError) as error:
                self.parser.error(f"--model.optimizer: {error}", error)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer, with loggers, a record, a checkpoint callback and the loss table unless configured."""
        subcommand = self.config["subcommand"]
        given = self.config_init[subcommand]["trainer"]
        if subcommand != "fit":
            self.save_config_callback = None
        if subcommand == "predict":
            kwargs["logger"] = False
        elif given.get("logger") in (None, True):
            kwargs["logger"] = loggers_in(Path(given["default_root_dir"] or "."))
        callbacks = as_list(given.get("callbacks"))
        kinds: list[type[pl.Callback]] = [] if subcommand == "predict" else [PerClassLossMonitor, RunRecorder]
        if self.model.head is not None:
            kinds = [kind for kind in kinds if kind is not RunRecorder]  # it is made of logits, which do not exist
        kinds += [ExactResume, FiniteGuard] if subcommand == "fit" else []
        extra = [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in callbacks)]
        if subcommand == "fit" and shows_a_table(given, callbacks):
            extra.append(LiveLossTable())
        if subcommand == "fit":
            if validates(self.config["fit"]) and not any(isinstance(c, EarlyStopping) for c in callbacks):
                self._stopping = recipe.early_stopping()
                extra.append(self._stopping)
            self._deciding = self._decides(callbacks)
            extra += self._deciding
        wanted = given.get("enable_checkpointing") is not False and not given.get("fast_dev_run")
        if subcommand == "fit" and wanted and not any(isinstance(c, ModelCheckpoint) for c in callbacks):
            extra += self._checkpoint_callbacks()
        if given.get("barebones"):
            extra = []
        if self._optimizer_changes:
            extra.append(OptimizerChanges(self._optimizer_changes))
        kwargs["plugins"] = with_whole_checkpoints(given)
        return super().instantiate_trainer(**kwargs, callbacks=[*callbacks, *extra])

    def _decides(self, given: Sequence[Any]) -> list[pl.Callback]:
        """Return what finds calibration and thresholds, as far as it is wanted and not configured."""
        # Of data of other people nobody knows whether they validate on rows that they train on.
        ours = isinstance(self.datamodule, _data.BinaryDataModule) and validates(self.config["fit"])
        if self.model.head is not None and self.config["fit"]["decide"] not in ("auto", "nothing"):
            self.parser.error("--decide has no effect with a head, with which nothing is decided about single labels.")
        if not ours or self.model.head is not None:
            return []
        if isinstance(self.datamodule, _data.ManyLabelDataModule):
            self.parser.error(
                "ManyLabelDataModule gives sparse targets, which a head takes: add --model.head MultiLabelHead "
                "--model.head.in_features 64, or another width of what the model before it returns."
            )
        if self.config["fit"]["decide"] == "auto":
            parts = {"threshold": "model.threshold" not in self._stated, "calibration": self._wants_calibration()}
            chosen = [part for part, wanted in parts.items() if wanted] or ["nothing"]
            self.config["fit"]["decide"] = "both" if len(chosen) == 2 else chosen[0]  # and so it is saved
        wanted = self.config["fit"]["decide"]
        bins = 4096 if isinstance(self.datamodule, _data.ParquetStreamDataModule) else None  # larger than memory
        made: list[pl.Callback] = []
        if wanted in ("both", "calibration") and not any(isinstance(c, ProbabilityCalibrator) for c in given):
            made.append(ProbabilityCalibrator(bins=bins))
        if wanted in ("both", "threshold") and not any(isinstance(c, ThresholdTuner) for c in given):
            made.append(ThresholdTuner(bins=bins))
        return made

    def _wants_calibration(self) -> bool:
        if isinstance(self.datamodule, _data.ParquetStreamDataModule):
            return True
        counts = LabelCounts.of(self.datamodule.rows("val").columns["target"])
        return recipe.helps_to_calibrate(self.model.loss, counts)

    def _checkpoint_callbacks(self) -> list[pl.Callback]:
        """Return what writes names that a script can rely on: best.ckpt and, to go on from, last.ckpt."""
        own = getattr(self.datamodule, "val_path", None) is not None
        if not own and getattr(self.datamodule, "fractions", {}).get("val", 1) == 0:
            return [ModelCheckpoint(filename="best", save_last=True, enable_version_counter=False)]
        # Two, because `save_last` of the one for the best writes only when there is a new best.
        return [
            ModelCheckpoint(monitor="val_loss", filename="best", enable_version_counter=False),
            ModelCheckpoint(filename="last", enable_version_counter=False),
        ]

    def before_fit(self) -> None:
        """Say what was decided where nothing was said."""
        if not self._fresh or not self.trainer.is_global_zero:
            return
        counts = self.datamodule.label_counts() if isinstance(self.datamodule, _data.BinaryDataModule) else None
        choices = list(recipe.choices(self.config["fit"], self._stated, counts, self._stopping, bool(self._deciding)))
        if choices:
            print(recipe.shown(choices))

    def after_fit(self) -> None:
        """Test the best checkpoint and say where everything is."""
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if self.config["fit"]["test_after_fit"] and self._has_test():
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)
            self._report("test")
        for what, where in (("checkpoint", best), ("logs", self.trainer.log_dir)):
            if where and self.trainer.is_global_zero:
                print(f"{what}: {where}")

    def after_test(self) -> None:
        """Print the results."""
        self._report("test")

    def after_validate(self) -> None:
        """Print the results."""
        self._report("val")

    def _has_test(self) -> bool:
        if isinstance(self.datamodule, _data.BinaryDataModule):
            return self.datamodule.test_dataloader() != []
        return type(self.datamodule).test_dataloader is not pl.LightningDataModule.test_dataloader

    def _report(self, stage: str) -> None:
        """Print what was logged, without the values of single labels, which the loss table shows."""
        if not self.trainer.is_global_zero:
            return
        for name, value in sorted(self.trainer.callback_metrics.items()):
            if name.startswith(f"{stage}_") and not of_single_label(name):
                print(f"{name:<28}{value.item():10.4f}")
