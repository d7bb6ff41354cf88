"""The lightning-bce command: fit, validate, test and predict, configured by flags and YAML; plot and report on runs.

Only introduces the parts to each other: the data's labels to the model, the checkpoint's arguments to the module.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning.pytorch as pl
import lightning.pytorch.loggers as _loggers
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng

import lightning_bce.data as _data
import lightning_bce.recipe as recipe
from lightning_bce._version import __version__
from lightning_bce.callbacks import (
    ExactResume,
    FiniteGuard,
    LiveLossTable,
    NotFiniteError,
    PerClassLossMonitor,
    PredictionWriter,
    ProbabilityCalibrator,
    RunRecorder,
    ThresholdTuner,
)
from lightning_bce.callbacks.label_names import of_single_label
from lightning_bce.checkpoints import AtomicCheckpointIO, DamagedCheckpointError, check_whole
from lightning_bce.classifier import BinaryClassifier
from lightning_bce.losses import LabelCounts
from lightning_bce.plot_command import plot
from lightning_bce.provenance import write_provenance
from lightning_bce.report.command import report
from lightning_bce.safe_yaml import check_yaml
from lightning_bce.spec import Spec, SpecError, call_factory, load_class
from lightning_bce.suggest import nearest_flag, nearest_name, shortened

_STAND_IN = "torch.nn.Identity"
_USAGE, _INTERRUPTED, _TERMINATED = 2, 130, 143  # exit codes beside 1, a run that failed; a signal n is 128 + n
_NOISE = [
    # Lightning's own call on this torch; nothing that a user could change.
    (".*LeafSpec.*is deprecated.*", FutureWarning),
    (".*LeafSpec.*is deprecated.*", DeprecationWarning),
    # In-memory tables load in microseconds: worker processes would only cost.
    (".*does not have many workers.*", UserWarning),
    # The exact loss of every epoch is logged whatever the interval of the single steps is.
    (".*smaller than the logging interval.*", UserWarning),
    # What is loaded for a test or a prediction is the model; those callbacks only train.
    (".*callbacks used to create the checkpoint need to be provided.*", UserWarning),
    # A resumed run has a folder of its own; the best checkpoint of the first stays where it is.
    (".*The dirpath has changed from.*", UserWarning),
    # Runs are numbered, so an existing folder is one that was named on purpose.
    (".*Checkpoint directory .* exists and is not empty.*", UserWarning),
]


class Parser(LightningArgumentParser):
    """Lightning's parser, which answers a misspelt name with the nearest one."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print what is wrong, what may have been meant and where help is, and exit with status 2."""
        hint = nearest_flag(message, self) or nearest_name(message)
        if "is not accepted" in message and not hint:
            flags = [action.dest for action in self._actions if action.dest not in ("help", "print_config", "config")]
            message = f"{message}; there are: {', '.join(flags)}"
        _refuse(f"{shortened(message)}\nDid you mean {hint}?" if hint else shortened(message))


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\nFor all options: lightning-bce fit --help (or validate, test, predict)\n")
    raise SystemExit(_USAGE)


class SaveRun(SaveConfigCallback):
    """Lightning's, which leaves the configuration in the run folder, and beside it what was typed.

    Args:
        command: By argument.
        options: Lightning's.
    """

    def __init__(self, *args: Any, command: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._command = command

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write both."""
        super().setup(trainer, pl_module, stage)
        folder = trainer.log_dir  # all ranks have to ask
        if folder is not None and stage == "fit" and trainer.is_global_zero:
            write_provenance(folder, self._command)


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
        for path in _configurations(self._given):
            try:
                check_yaml(path)
            except ValueError as error:
                _refuse(str(error))
        self._stated = _stated(self._given)
        self._fresh = self._given[:1] == ["fit"] and not _names_checkpoint(self._given)
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
            parser_class=Parser,
            parser_kwargs={"prog": "lightning-bce", "version": __version__, "description": __doc__},
            trainer_defaults={"max_epochs": recipe.EPOCHS, "log_every_n_steps": 10, "default_root_dir": "runs"},
            args=self._given,
        )

    # -- the parser ---------------------------------------------------------------------------------------------------

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
        parser.set_defaults(
            {
                "model.model": {"class_path": "lightning_bce.TabularMLP"},
                "model.loss": {"class_path": "lightning_bce.BCEWithLogitsLoss"},
                "model.optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": recipe.LEARNING_RATE}},
            }
        )
        if self._fresh and any(action.dest == "model.prior_bias" for action in parser._actions):
            parser.set_defaults({"model.prior_bias": "auto"})
        if self._fresh and not self._stated & {"model.lr_scheduler", "model.optimizer"}:
            parser.set_defaults({"model.lr_scheduler": recipe.SCHEDULER})
        for target, attribute, default in (
            ("model.num_labels", "num_labels", 1),
            ("model.class_names", "class_names", None),
            ("model.model.init_args.in_features", "num_features", None),
            ("model.model.init_args.out_features", "num_labels", 1),
        ):
            # A link's target cannot be given by hand, so that only what nobody said is linked.
            if target.replace(".init_args", "") not in self._stated:
                link = partial(self._of_data, attribute, default)
                parser.link_arguments("data", target, link, apply_on="instantiate")

    def _of_data(self, attribute: str, default: Any, data: pl.LightningDataModule) -> Any:
        state = (self._checkpoint or {}).get(type(data).__qualname__)
        if state is not None and hasattr(data, "restore"):
            data.restore(state)  # so that nothing has to be read again, from a file that may be gone
        return getattr(data, attribute, default)

    # -- arguments that come with a checkpoint ------------------------------------------------------------------------

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, after those of the checkpoint where one is given."""
        path = _value_of("--ckpt_path", self._given)
        if path is None:
            self.config = parser.parse_args(self._given)
            path = self.config[self.config["subcommand"]].get("ckpt_path")  # of a YAML file
            if path is None and self.config["subcommand"] != "fit":
                parser.error(f"--ckpt_path is missing: {self.config['subcommand']} needs a trained model.")
        if path is None:
            if self._fresh and "model.lr_scheduler" not in self._stated and not _validates(self.config["fit"]):
                self.config["fit"]["model"]["lr_scheduler"] = None  # the recipe's looks at the validation loss
            return
        self._checkpoint = _read_checkpoint(path, parser)
        subcommand, given = self._given[0], self._given[1:]
        arguments = [subcommand, *self._from_checkpoint(given), *given]
        self.config = parser.parse_args(arguments)
        # What was said on top of the checkpoint. The model is required, so that a stand-in says that none was given.
        stated = [subcommand, f"--model.model={_STAND_IN}", *arguments[1:]]
        changes = parser.parse_args(stated, defaults=False)[subcommand]["model"].as_dict()
        if changes["model"]["class_path"] == _STAND_IN:
            del changes["model"]
        self._changes = changes
        if subcommand == "fit":
            self._go_on_with(list(self._differences()))

    def _go_on_with(self, differences: Sequence[tuple[str, Any, Any]]) -> None:
        """Say what a resumed run has otherwise than its checkpoint, and refuse what would have no effect."""
        # ReduceLROnPlateau lowers the rate that there is; the others know what it was at first, and go by that.
        scheduled = any("base_lrs" in state for state in (self._checkpoint or {}).get("lr_schedulers") or [])
        for name, before, now in differences:
            change = f"{name} {_short(now)}; the checkpoint has {_short(before)}"
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
        yield from _changed("model", checkpoint.get("hyper_parameters", {}), self._changes)
        before = checkpoint.get("datamodule_hyper_parameters", {})
        if before.get("_class_path") == data["class_path"]:
            yield from _changed("data", before, dict(data.get("init_args") or {}))

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's way would put the checkpoint's arguments above the user's flags."""

    def _from_checkpoint(self, given: Sequence[str]) -> Iterator[str]:
        """Yield the flags that say what the checkpoint was made with."""
        checkpoint = self._checkpoint or {}
        hyper_parameters = checkpoint.get("hyper_parameters", {})
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
            kwargs["logger"] = _loggers_in(Path(given["default_root_dir"] or "."))
        callbacks = _as_list(given.get("callbacks"))
        kinds: list[type[pl.Callback]] = [] if subcommand == "predict" else [PerClassLossMonitor, RunRecorder]
        kinds += [ExactResume, FiniteGuard] if subcommand == "fit" else []
        extra = [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in callbacks)]
        if subcommand == "fit" and shows_a_table(given, callbacks):
            extra.append(LiveLossTable())
        if subcommand == "fit":
            if _validates(self.config["fit"]) and not any(isinstance(c, EarlyStopping) for c in callbacks):
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
            extra.append(_OptimizerChanges(self._optimizer_changes))
        kwargs["plugins"] = _with_whole_checkpoints(given)
        return super().instantiate_trainer(**kwargs, callbacks=[*callbacks, *extra])

    def _decides(self, given: Sequence[Any]) -> list[pl.Callback]:
        """Return what finds calibration and thresholds, as far as it is wanted and not configured."""
        # Of data of other people nobody knows whether they validate on rows that they train on.
        ours = isinstance(self.datamodule, _data.BinaryDataModule) and _validates(self.config["fit"])
        ours = ours and not self.config["fit"]["model"].get("head")  # with one nothing is decided about single labels
        if not ours:
            return []
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
        shift = self.model.loss.log_odds_shift
        proper = shift is not None and bool((shift == 0).all())
        if not proper or isinstance(self.datamodule, _data.ParquetStreamDataModule):
            return True
        counts = LabelCounts.of(self.datamodule.rows("val").columns["target"])
        fewest = torch.minimum(counts.positives.sum(), (counts.total - counts.positives).sum()).item()
        return fewest >= recipe.FEWEST_TO_CALIBRATE

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
        choices = list(self._choices()) if self._fresh and self.trainer.is_global_zero else []
        if choices:
            print(recipe.shown(choices))

    def _choices(self) -> Iterator[recipe.Choice]:
        config, stated = self.config["fit"], self._stated
        model = config["model"]
        counts = self.datamodule.label_counts() if isinstance(self.datamodule, _data.BinaryDataModule) else None
        if not any(name == "data" or name.startswith("data.class") for name in stated):
            yield recipe.Choice("data", "TableDataModule", "--data.path is given")
        if "model.loss" not in stated:
            why = "proper: its probabilities are right, and a threshold does what weights would"
            yield recipe.Choice("model.loss", recipe.short_name(model["loss"]["class_path"]), why)
        if not stated & {"model.model", "model.model.hidden"}:
            why = "wider and narrower was better on some tables and worse on others"
            yield recipe.Choice("model.model.hidden", str(list(model["model"]["init_args"]["hidden"])), why)
        if "model.prior_bias" not in stated and model.get("prior_bias"):
            rates = [] if counts is None else [f"{rate:.2%}" for rate in counts.prior.tolist()[:3]]
            seen = f": positives {', '.join(rates)}{', ...' if counts is not None and counts.num_labels > 3 else ''}"
            why = f"the first loss is the entropy of the labels{seen if rates else ''}"
            yield recipe.Choice("model.prior_bias", str(model["prior_bias"]), why)
        if not any(name.startswith("model.optimizer") for name in stated):
            value = f"{recipe.short_name(model['optimizer']['class_path'])}, lr {recipe.LEARNING_RATE}"
            yield recipe.Choice("model.optimizer", value, "higher rates were better on some tables and worse on others")
        if "model.lr_scheduler" not in stated and model.get("lr_scheduler"):
            arguments = model["lr_scheduler"]["init_args"]
            why = f"rate x {arguments['factor']} after {arguments['patience']} epochs without a better val_loss"
            yield recipe.Choice("model.lr_scheduler", "ReduceLROnPlateau", why)
        if "trainer.max_epochs" not in stated:
            yield recipe.Choice("trainer.max_epochs", str(recipe.EPOCHS), "at most")
        if self._stopping is not None:
            why = f"after {self._stopping.patience} epochs without a better val_loss; best.ckpt is the best"
            yield recipe.Choice("trainer.callbacks", "EarlyStopping", why)
        if self._deciding and "decide" not in stated:
            reasons = {
                "both": "Platt calibration, and the threshold that is then best for F1, from validation rows",
                "calibration": "Platt calibration from validation rows; the threshold is yours",
                "threshold": "the best for F1; too few validation rows for a calibration to help",
            }
            yield recipe.Choice("decide", config["decide"], reasons[config["decide"]])

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


class _OptimizerChanges(pl.Callback):
    """Gives a resumed optimizer, which has its arguments from the checkpoint, those that flags change."""

    def __init__(self, changes: Mapping[str, Any]) -> None:
        super().__init__()
        self._changes = changes

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Change the groups of parameters, which have been restored by now."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.update(self._changes)


def main(args: Sequence[str] | None = None, model_class: type[BinaryClassifier] = BinaryClassifier) -> None:
    """Run the command.

    Args:
        args: Arguments in place of those of the process.
        model_class: A subclass of BinaryClassifier, for a project's own command.
    """
    if importlib.util.find_spec("jsonargparse") is None:
        sys.exit("error: The command needs more than the library does: pip install 'lightning_bce[cli,data]'")
    # Advertisements for other packages.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    for message, category in _NOISE:
        warnings.filterwarnings("ignore", message, category)
    # A console script does not look in the current folder, where a user's own losses and models are.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["plot"]:
        plot(given[1:])
    elif given[:1] == ["report"]:
        report(given[1:])
    elif given[:1] == ["compare"]:
        from lightning_bce.comparison.command import command  # late: no other command waits for it

        sys.exit(command(given[1:]))
    else:
        try:
            BinaryCLI(model_class, args)
        except NotFiniteError as error:
            sys.exit(f"error: {error}")
        except FileExistsError as error:  # an output of before, which is not overwritten unasked
            _refuse(str(error))
        except SIGTERMException:  # of Lightning, with status 0
            sys.exit(_TERMINATED)
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning has ended the run in order, with status 1
                sys.exit(_INTERRUPTED)
            raise


def _as_list(callbacks: Any) -> list[Any]:
    callbacks = callbacks or []
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]


def _validates(config: Any) -> bool:
    """Return whether a configuration has something to validate on."""
    data = load_class(config["data"]["class_path"], pl.LightningDataModule)
    arguments = config["data"].get("init_args") or {}
    own = issubclass(data, _data.BinaryDataModule)
    there = own or data.val_dataloader is not pl.LightningDataModule.val_dataloader
    empty = arguments.get("val_fraction") == 0 and arguments.get("val_path") is None
    return there and not empty and config["trainer"].get("limit_val_batches") != 0


def _stated(arguments: Sequence[str]) -> set[str]:
    """Return the dotted names of all that flags and YAML files say, without "init_args"."""
    stated: set[str] = set()

    def walk(value: Any, name: str) -> None:
        for key, item in value.items() if isinstance(value, dict) else ():
            inner = name if key == "init_args" else f"{name}.{key}".lstrip(".")
            stated.add(inner)
            walk(item, inner)

    stated |= {argument.partition("=")[0].lstrip("-").replace(".init_args", "") for argument in arguments}
    for path in _configurations(arguments):
        with contextlib.suppress(OSError, yaml.YAMLError):  # the parser says it better
            walk(yaml.safe_load(Path(path).read_text(encoding="utf-8")), "")
    return stated


def _names_checkpoint(arguments: Sequence[str]) -> bool:
    """Return whether flags or YAML files name a checkpoint to go on with."""
    named = _value_of("--ckpt_path", arguments)
    for path in _configurations(arguments):
        # What is wrong the parser says better.
        with contextlib.suppress(OSError, yaml.YAMLError, AttributeError):
            named = named or yaml.safe_load(Path(path).read_text(encoding="utf-8")).get("ckpt_path")
    return bool(named)


def _configurations(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the paths of the YAML files among the arguments."""
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-c"):
            yield value if equals else arguments[index + 1] if index + 1 < len(arguments) else ""


def _changed(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the values of ``now`` that ``before`` has otherwise; arguments of another class are not compared."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)):
            before, now = list(before), list(now)
        if before != now:
            yield name, before, now
    elif "class_path" in now and not _same_class(before.get("class_path"), now["class_path"]):
        yield name, before.get("class_path"), now["class_path"]
    else:
        for key, value in now.items():
            if key != "class_path" and key in before:
                yield from _changed(name if key == "init_args" else f"{name}.{key}", before[key], value)


def _same_class(before: Any, now: Any) -> bool:
    with contextlib.suppress(SpecError, ImportError):  # one class has several paths
        return load_class(before, object) is load_class(now, object)
    return bool(before == now)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Return the last value of a flag, as the parser would."""
    found = None
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            found = argument.split("=", 1)[1]
        elif argument == flag and index + 1 < len(arguments):
            found = arguments[index + 1]
    return None if found in ("null", "None", "") else found


def _read_checkpoint(path: str, parser: LightningArgumentParser) -> dict[str, Any]:
    if not Path(path).is_file():
        parser.error(f"There is no checkpoint {path!r}. Give the path of a .ckpt file.")
    try:
        check_whole(path)
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except DamagedCheckpointError as error:
        parser.error(str(error))
    except Exception as error:
        parser.error(f"The checkpoint {path!r} is damaged or holds more than plain values ({type(error).__name__}).")
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        parser.error(f"{path!r} is no checkpoint of Lightning: it has no 'state_dict'.")
    return checkpoint


def shows_a_table(trainer: Any, callbacks: Sequence[Any]) -> bool:
    """Return whether there is a terminal, with Lightning's own bar or a rich one of the user's, and no table yet.

    Args:
        trainer: What was said of the trainer.
        callbacks: Those of the user.
    """
    if trainer.get("enable_progress_bar") is False or not sys.stdout.isatty():
        return False
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    return all(isinstance(bar, RichProgressBar) for bar in bars) and not any(
        isinstance(callback, LiveLossTable) for callback in callbacks
    )


def _with_whole_checkpoints(trainer: Any) -> Any:
    """Return the trainer's plugins, and the one for checkpoints unless there is one or the strategy has its own."""
    given = trainer.get("plugins") or []
    plugins = list(given) if isinstance(given, (list, tuple)) else [given]
    strategy = trainer.get("strategy") or "auto"
    simple = isinstance(strategy, str) and (strategy == "auto" or strategy.startswith("ddp"))
    if simple and not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    return plugins or None


def _loggers_in(folder: Path) -> list[Any]:
    """Return a CSV and, where it is installed, a TensorBoard logger that share one numbered folder."""
    made: list[Any] = [_loggers.CSVLogger(folder, name="")]
    if importlib.util.find_spec("tensorboard"):
        made.append(_loggers.TensorBoardLogger(folder, name="", default_hp_metric=False))
    for logger in made:
        _ = logger.version  # counts the folders now, before the first logger makes one
    return made


if __name__ == "__main__":
    main()
