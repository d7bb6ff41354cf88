"""Write the tables of docs/peers.md: PYTHONPATH=tests python -m peers.table [library ...]

What a library supports is measured by running it. The column of one that is not named, or cannot be asked here, stays
as it is; so the libraries may be measured in different environments.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from peers.faults import FAULTS
from peers.functions import FUNCTIONS
from peers.libraries import PEERS, installed, load, version
from peers.presence import name_of, our_losses, shared_losses
from peers.probes import LETTERS, letters_of, letters_of_ours

ROOT = Path(__file__).parents[2]
Rows = dict[str, dict[str, str]]


def block(text: str, marker: str) -> str:
    """Return what stands between two markers."""
    found = re.search(rf"<!-- {marker} -->\n(.*?)<!-- end -->", text, re.S)
    assert found is not None, f"no <!-- {marker} -->"
    return found[1]


def with_block(text: str, marker: str, content: str) -> str:
    """Return the text with other content between two markers."""
    return text.replace(f"<!-- {marker} -->\n{block(text, marker)}", f"<!-- {marker} -->\n{content}")


def parsed(markdown: str) -> Rows:
    """Return the cells of a table by row and column, as far as there is one."""
    lines = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in re.findall(r"^\|.*$", markdown, re.M)]
    if not lines:
        return {}
    head, _, *rows = lines
    # A last cell that is empty is lost with its bar.
    return {row[0]: dict(zip(head[1:], row[1:] + [""] * len(head), strict=False)) for row in rows}


def markdown_of(head: list[str], rows: list[list[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# -- the tables -------------------------------------------------------------------------------------------------------


def support(committed: str, asked: list[str]) -> str:
    """Return the first table: the losses that some library has, and what each supports."""
    old = parsed(committed)
    compared = {function.loss for function in FUNCTIONS}
    rows = [["version", *_versions(old, asked), ""]]
    for loss in shared_losses():
        cells = [_cell(peer, loss, old, peer in asked) for peer in PEERS]
        rows.append([f"`{loss}`", *cells, letters_of_ours(loss) if loss in compared else "yes"])
    alone = ", ".join(f"`{loss}`" for loss in our_losses() if loss not in shared_losses())
    return markdown_of(["loss", *PEERS, "ours"], rows) + f"\nNone of them has {alone}.\n"


def _versions(old: Rows, asked: list[str]) -> list[str]:
    return [version(peer) if peer in asked else old["version"][peer] for peer in PEERS]


def _cell(peer: str, loss: str, old: Rows, asked: bool) -> str:
    name, form = name_of(peer, loss) or ("", "")
    if form or not name:
        return form
    return letters_of(peer, loss) if asked else old.get(f"`{loss}`", {}).get(peer, "yes")


def names(committed: str, asked: list[str]) -> str:
    """Return the table of what each library calls a loss."""
    rows = [["version", *_versions(parsed(committed), asked)]]
    for loss in our_losses():
        found = [name_of(peer, loss) for peer in PEERS]
        cells = ["" if f is None else f"`{f[0]}`" + (f" ({f[1]})" if f[1] else "") for f in found]
        rows.append([f"`{loss}`", *cells])
    return markdown_of(["ours", *PEERS], rows)


def faults(committed: str, asked: list[str]) -> str:
    """Return the table of inputs at which a library is wrong."""
    head = ["library", "call", "input", "asked", "right", "theirs", "ours", "because"]
    kept = {tuple(line.split(" | ")[:4]): line for line in committed.splitlines()}
    lines = []
    for fault in FAULTS:
        start = [fault.library, f"`{fault.call}`", fault.given, fault.what]
        if fault.library in asked:
            answers = (fault.right, fault.theirs(load(fault.library)), fault.ours())
            lines.append("| " + " | ".join([*start, *map(_shown, answers), fault.because]) + " |")
        else:
            lines.append(
                kept.get(("| " + start[0], *start[1:]), "| " + " | ".join([*start, *["not asked yet"] * 3, ""]))
            )
    return markdown_of(head, []) + "\n".join(lines) + "\n"


def _shown(answer: float | str) -> str:
    return answer if isinstance(answer, str) else f"{answer:.4g}"


def legend(committed: str, asked: list[str]) -> str:
    """Return what the letters say."""
    return "".join(f"- **{letter}**: {what}.\n" for letter, what in LETTERS.items())


PAGE = ROOT / "docs" / "peers.md"
TABLES = {"peers": support, "letters": legend, "names": names, "faults": faults}


def generated(marker: str, asked: list[str]) -> tuple[str, str]:
    """Return what stands between the markers and what should."""
    committed = block(PAGE.read_text(), marker)
    return committed, TABLES[marker](committed, asked)


def main(asked: list[str]) -> None:
    """Bring all tables up to date with the libraries that are named, or with all that are installed."""
    asked = asked or installed()
    for marker in TABLES:
        PAGE.write_text(with_block(PAGE.read_text(), marker, generated(marker, asked)[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
