"""The lightning-bce command: fit, validate, test and predict, by flags and YAML; plot, report and compare."""

from lightning_bce.cli.command import BinaryCLI as BinaryCLI
from lightning_bce.cli.entry import main as main
