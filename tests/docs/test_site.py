"""The site builds without a warning, is whole, and asks for nothing from anywhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser, find_browser

import lightning_bce

ROOT = Path(__file__).parents[2]
needs_browser = pytest.mark.skipif(find_browser() is None, reason="there is no Chromium on the PATH")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    missing = [
        name for name in ("material", "mkdocs", "mkdocstrings", "latex2mathml") if not importlib.util.find_spec(name)
    ]
    if missing:
        pytest.skip(f"the site needs {', '.join(missing)}: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert build.returncode == 0, build.stdout
    return folder


class Loaded(HTMLParser):
    """What a page makes a browser fetch; a link is only followed by a reader."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (tag == "link" and name == "href"):
                self.found.append(value or "")


def test_no_page_loads_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.found and not [address for address in loaded.found if "//" in address], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_public_name_has_its_place(site):
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    anchors = {name.rpartition(".")[2] for name in re.findall(r'id="(lightning_bce[\w.]+)"', text)}
    public = [name for name in vars(lightning_bce) if not name.startswith("_") and name[0].isalpha()]
    rooms = {name for name in public if hasattr(getattr(lightning_bce, name), "__path__")}
    modules = {name for name in public if type(getattr(lightning_bce, name)).__name__ == "module"}
    assert set(public) - rooms - modules <= anchors, sorted(set(public) - rooms - modules - anchors)


def test_docstrings_leave_no_markup_of_sphinx_behind(site):
    for page in (site / "reference").glob("*.html"):
        text = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
        assert not re.findall(r":(?:class|func|meth|math|attr|mod|data):|\.\. \w+::|\\frac|\\mathrm", text), page
    assert "<math" in (site / "reference" / "losses.html").read_text(encoding="utf-8")


def test_every_link_of_the_readme_has_its_file_and_heading():
    links = re.findall(
        r"(?:\]\(|src=\")(?!http)([^)#\"]+)(?:#([\w-]+))?", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    assert len(links) > 30
    for path, heading in links:
        assert (ROOT / path).exists(), path
        if heading:
            found = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.M)
            assert heading in [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in found], heading


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_fits_a_phone_and_asks_for_nothing(site, dark):
    with Browser() as browser:
        for name in ("index.html", "howto/choose-a-loss.html", "reference/losses.html", "peers.html"):
            browser.open((site / name).as_uri(), width=375, dark=dark)
            assert browser.value("document.documentElement.scrollWidth") <= 375, name
            outside = [address for address in browser.requests() if not address.startswith(("file:", "data:"))]
            assert not outside and not browser.complaints(), name
            assert browser.value("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")


@needs_browser
def test_the_search_finds_a_loss_in_a_folder_without_a_server(site):
    with Browser() as browser:
        browser.open((site / "index.html").as_uri())
        found = """new Promise((resolve) => {
          document.querySelector("[data-md-toggle=search]").click();
          const field = document.querySelector(".md-search__input");
          field.value = "focal_loss";
          const ask = () => {
            for (const kind of ["focus", "input", "keyup"]) field.dispatchEvent(new Event(kind));
            const links = [...document.querySelectorAll(".md-search-result__link")].map((link) => link.href);
            links.length ? resolve(links.join(" ")) : setTimeout(ask, 100);
          };
          ask();
        })"""
        assert "reference/losses.html" in browser.value(found)
