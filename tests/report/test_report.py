"""The report of a run holds its numbers, pictures and origin in one file, and nothing of it can do harm."""

import base64
import csv
import itertools
import re
import sys
from html.parser import HTMLParser

import pytest
from recorded_runs import trained, write_run

from lightning_bce.cli import main
from lightning_bce.provenance import read_provenance, write_provenance
from lightning_bce.record import write_evaluation
from lightning_bce.report import report_html

SECRET = "hunter2"
NAME = "<script>alert(1)</script> $x$ \x1b[31m"


class Page(HTMLParser):
    """What stands on a page, as far as tests ask."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.open, self.words = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def written(folder):
    write_run(folder, labels=5)
    write_provenance(folder, ["lightning-bce", "fit", "--data.path", "my table.csv", "--logger.api_key", SECRET])
    (folder / "config.yaml").write_text(f"model:\n  loss: FocalLoss\nwandb_token: {SECRET}\n")
    with open(folder / "hard_examples_val.csv", "w", newline="") as file:
        csv.writer(file).writerows([["loss", "id", "target"], ["3.14159265", NAME, "1"], ["2", "row 7", "0"]])
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run to change."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return written(tmp_path / "version_0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run to read, and its report."""
    folder = written(tmp_path_factory.mktemp("runs") / "version_0")
    return folder, report_html(folder)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["report", *map(str, arguments)])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_the_page_has_every_picture_with_a_text_in_its_place(whole):
    page = Page(whole[1])
    pictures = page.all("img")
    assert len(pictures) == 10
    for picture in pictures:
        assert len(picture["alt"]) > 40 and picture["width"] and picture["height"]
        kind, _, content = picture["src"].partition(";base64,")
        svg = base64.b64decode(content).decode()
        assert kind == "data:image/svg+xml" and "<svg" in svg
        assert "prefers-color-scheme:dark" in svg and "#1f2328" not in svg.split("</style>")[1]


def test_tables_hold_the_numbers_of_the_record(whole):
    evaluation, history = trained(5, 3)
    logged, labels, examples, epochs = Page(whole[1]).tables
    assert [row[0] for row in logged] == ["metric", "loss", "Accuracy"]
    assert float(logged[1][1]) == pytest.approx(evaluation.metrics["val_loss"], rel=1e-3)
    assert labels[0][:4] == ["label", "negatives", "positives", "loss, nats"]
    shares = (evaluation.loss.sum(1) / evaluation.loss.sum()).tolist()
    order = sorted(range(5), key=lambda i: -shares[i])
    assert [row[0] for row in labels[1:]] == [evaluation.labels[i] for i in order]
    assert [row[-1] for row in labels[1:]] == [f"{100 * shares[i]:.1f} %" for i in order]
    positives = evaluation.confusion.sum(-1)[:, 1].tolist()
    assert [int(row[2]) for row in labels[1:]] == [positives[i] for i in order]
    assert examples[1] == ["3.142", "<script>alert(1)</script> $x$ \\x1b[31m", "1"]
    assert epochs[0][:4] == ["epoch", "step", "train_loss", "val_loss"]
    assert [float(row[3]) for row in epochs[1:]] == pytest.approx(
        [line.metrics["val_loss"] for line in history if line.stage == "val"], rel=1e-3
    )


def test_the_page_says_how_to_get_the_run_again_without_what_opens_doors(whole):
    run, text = whole
    words = Page(text).words
    assert "lightning-bce fit --data.path 'my table.csv' --logger.api_key '***'" in words
    assert f"lightning-bce fit --config {run}/config.yaml" in words and "wandb_token: ***" in words
    assert read_provenance(run).versions["torch"] in words
    assert SECRET not in text


def test_a_run_from_python_says_what_is_not_known(run):
    (run / "record" / "run.json").unlink()
    (run / "config.yaml").unlink()
    (run / "hard_examples_val.csv").unlink()
    page = Page(report_html(run))
    assert "its command and its versions are not known" in page.words and "holds no config.yaml" in page.words
    assert len(page.tables) == 3


def test_nothing_is_loaded_and_nothing_runs_whatever_stands_in_a_name(tmp_path):
    _, history = trained(5, 3)
    changed = [
        type(line)(**{**vars(line), "labels": [NAME, "b", "c", "d", "e"], "loss_name": NAME}) for line in history
    ]
    for line in changed:
        write_evaluation(tmp_path, line)
    text = report_html(tmp_path)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert "\x1b" not in text and "<script>" in page.words
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    for picture in page.all("img"):
        svg = base64.b64decode(picture["src"].partition(";base64,")[2]).decode()
        assert "<script" not in svg and not re.findall(r'href="(?!#|data:)', svg)


def test_a_page_can_be_read_by_those_who_do_not_see_it(whole):
    page = Page(whole[1])
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert {attributes.get("scope") for attributes in page.all("th")} == {"col", "row"}
    assert len(page.all("caption")) == len(page.tables)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert {link["href"][1:] for link in page.all("a")} <= set(names)


def test_very_many_labels_and_columns_are_cut_with_a_note(tmp_path):
    write_run(tmp_path, labels=500)
    with open(tmp_path / "hard_examples_val.csv", "w", newline="") as file:
        csv.writer(file).writerows([[f"c{i}" for i in range(40)], *([["1"] * 40] * 60)])
    page = Page(report_html(tmp_path))
    _, labels, examples, _ = page.tables
    assert len(labels) == 201 and "The 300 labels with the smallest shares are left out" in page.words
    assert len(examples) == 51 and len(examples[0]) == 12 and "28 columns" in page.words


def test_the_command_writes_one_file_and_keeps_one_that_is_there(run, capsys, tmp_path):
    main(["report", str(run)])
    assert "report.html" in capsys.readouterr().out
    assert "add --overwrite" in refused(capsys, run)
    main(["report", str(run), "--overwrite", "--stage", "val"])
    page = (run / "report.html").read_text()
    main(["report", str(run), "--output", str(tmp_path / "a" / "r.html")])
    assert (tmp_path / "a" / "r.html").read_text() == page and page.startswith("<!doctype html>")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["r.html"]


def test_what_cannot_be_reported_says_what_to_do(run, capsys, tmp_path, monkeypatch):
    assert "add the callback RunRecorder" in refused(capsys, tmp_path / "nothing")
    assert "no evaluation of stage 'test'" in refused(capsys, run, "--stage", "test")
    assert "is a folder" in refused(capsys, run, "--output", run)
    (run / "record" / "run.json").write_text("{}")
    assert "run.json' is damaged" in refused(capsys, run)
    assert not (run / "report.html").exists()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "pip install 'lightning_bce[report]'" in refused(capsys, run)
