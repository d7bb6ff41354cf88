"""A finished run in TensorBoard, in a real browser: names are grouped, and no chart is empty."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
from browser import Browser, find_browser

from lightning_bce.cli import main

pytestmark = [
    pytest.mark.skipif(find_browser() is None, reason="there is no Chromium (Debian: apt install chromium)"),
    pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="there is no TensorBoard"),
]
SECONDS = 60
GROUPS = """[...document.querySelectorAll(".group-title")].map(group => group.textContent.trim())"""
CARDS = """[...document.querySelectorAll("scalar-card")].map(card => card.innerText.split(/\\s+/))"""


def until(browser, wanted, expression):
    """Return what an expression is as soon as it is as wanted."""
    end = time.monotonic() + SECONDS
    while True:
        found = browser.value(expression)
        if found and wanted(found):
            return found
        assert time.monotonic() < end, found
        time.sleep(0.2)


@pytest.fixture
def tensorboard(tmp_path, monkeypatch):
    """The address of TensorBoard on a run of two epochs with ten labels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    example = Path(__file__).parents[1] / "examples" / "digit_labels.yaml"
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    main(["fit", f"--config={example}", "--trainer.max_epochs=2", "--trainer.accelerator=cpu", *quiet])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The slower of its two readers, which needs no second program.
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "runs", "--port", str(port), "--load_fast=false"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        end = time.monotonic() + SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < end and server.poll() is None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.kill()
        server.wait()


def test_names_are_grouped_and_no_chart_is_empty(tensorboard, tmp_path):
    with Browser() as browser:
        browser.open(f"{tensorboard}#timeseries", width=1500, height=2600)
        groups = until(browser, lambda found: "val_loss_share" in found, GROUPS)
        assert {"train_loss", "val_loss", "val_log_loss", "val_loss_class", "test_loss_share"} <= set(groups)
        assert not any("/" in group or "digit" in group for group in groups)
        for names, count in (("^val_loss_share/", 10), ("^val_[^/]*$", 7), ("^train_", 2), ("^val_hard_share/", 3)):
            browser.open(f"{tensorboard}?tagFilter={names}#timeseries", width=1500, height=2600)
            # A card with a chart has a row for the run, with its last values.
            cards = until(browser, lambda found: all("version_0" in words for words in found), CARDS)
            assert len(cards) >= count, names
            for words in cards:
                smoothed, value = words[words.index("version_0") + 1 :][:2]
                assert all(0 <= float(number) < 10 for number in (smoothed, value)), words
            browser.screenshot(tmp_path / f"{count}.png", whole=False)
            assert (tmp_path / f"{count}.png").stat().st_size > 10_000
