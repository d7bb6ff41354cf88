"""The report in a real browser: light, dark, on a phone and on paper."""

import pytest
from browser import Browser, find_browser
from recorded_runs import write_run

from lightning_bce.provenance import write_provenance
from lightning_bce.report import report_html

pytestmark = pytest.mark.skipif(find_browser() is None, reason="there is no Chromium (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, labels=14)
    write_provenance(folder, ["lightning-bce", "fit", "--data.path", 60 * "long/" + "table.csv"])
    (folder / "config.yaml").write_text("a_long_line: " + "x" * 400 + "\n")
    (folder / "report.html").write_text(report_html(folder), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.mark.parametrize("width", [320, 375, 768, 1280, 2560])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_asks_for_nothing_complains_of_nothing_and_fits_the_window(browser, address, width, dark):
    browser.open(address, width=width, dark=dark)
    assert [asked for asked in browser.requests() if not asked.startswith("data:image/")] == [address]
    assert browser.complaints() == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    # Every picture was decoded, and is as wide as its card lets it be.
    sizes = browser.value("[...document.images].map(i => [i.complete, i.naturalWidth > 0, i.clientWidth])")
    assert len(sizes) == 10 and all(
        complete and decoded and wide > 0.75 * min(width, 500) for complete, decoded, wide in sizes
    )


def ratio_of(first, second):
    """Return the contrast of two colours as WCAG defines it."""

    def luminance(colour):
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


COLOURS = """(() => {
  const colour = (query, name) => getComputedStyle(document.querySelector(query))[name];
  return [
    [colour("body", "color"), colour("body", "backgroundColor")],
    [colour("td", "color"), colour(".card", "backgroundColor")],
    [colour(".reading", "color"), colour(".card", "backgroundColor")],
    [colour("a", "color"), colour("body", "backgroundColor")],
    [colour(".tiles dt", "color"), colour(".card", "backgroundColor")],
  ];
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(browser, address, dark):
    browser.open(address, dark=dark)
    pairs = browser.value(COLOURS)
    assert all(ratio_of(*pair) >= 4.5 for pair in pairs)
    light_ground = ratio_of(pairs[0][1], "rgb(255, 255, 255)") < 1.5
    assert light_ground != dark


def test_pictures_follow_the_light(browser, address):
    """The mean brightness of each picture, drawn on one and the same ground."""
    drawn = """[...document.images].map(image => {
      const canvas = document.createElement("canvas");
      canvas.width = 200; canvas.height = 150;
      const context = canvas.getContext("2d");
      context.fillStyle = "#808080";
      context.fillRect(0, 0, 200, 150);
      context.drawImage(image, 0, 0, 200, 150);
      const data = context.getImageData(0, 0, 200, 150).data;
      return data.reduce((sum, value) => sum + value, 0) / data.length;
    })"""
    browser.open(address, dark=False)
    light = browser.value(drawn)
    browser.open(address, dark=True)
    dark = browser.value(drawn)
    assert len(light) == 10 and all(abs(now - before) > 0.5 for now, before in zip(dark, light, strict=True))
    assert dark[0] > light[0] + 10  # lines and letters are bright


def test_it_prints_on_white_paper_whatever_the_screen_is(browser, address, tmp_path):
    browser.open(address, dark=True)
    browser.pdf(tmp_path / "report.pdf")
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and 3 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 14
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    paper, ink = browser.value(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert paper == "rgb(255, 255, 255)" and ratio_of(paper, ink) > 10
