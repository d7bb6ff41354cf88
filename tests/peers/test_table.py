"""The tables of docs/peers.md are what the libraries that are installed give."""

import functools

import pytest
from peers.functions import FUNCTIONS
from peers.libraries import PEERS, Missing, installed, load, version
from peers.presence import NOBODYS, OTHER_FORMS, name_of, our_losses, shared_losses
from peers.probes import LETTERS, is_exact, letters_of_ours
from peers.table import PAGE, TABLES, block, generated, parsed

HOW = "Bring it up to date: PYTHONPATH=tests python -m peers.table"


@pytest.mark.parametrize("marker", TABLES)
def test_a_table_is_what_the_generator_gives(marker):
    measured = parsed(block(PAGE.read_text(), "peers"))["version"]
    # One that is missing, or there in another version than the table's, keeps its column.
    asked = [peer for peer in installed() if version(peer) == measured[peer]]
    committed, fresh = generated(marker, asked)
    assert committed == fresh, HOW


def test_every_loss_is_declared():
    silent = [loss for loss in our_losses() if loss not in shared_losses() and loss not in NOBODYS]
    assert not silent, f"say in presence.py who else has {silent}"
    assert not NOBODYS & {*OTHER_FORMS, *(f.loss for f in FUNCTIONS)}


@pytest.mark.parametrize("peer", PEERS)
def test_the_names_are_there(peer):
    try:
        library = load(peer)
    except Missing as reason:
        pytest.skip(str(reason))
    names = {found[0] for loss in our_losses() if (found := name_of(peer, loss))}
    for name in names | {f.name for f in FUNCTIONS if f.library == peer}:
        assert callable(functools.reduce(getattr, name.partition("(")[0].split("."), library)), name


@pytest.mark.parametrize("loss", sorted({f.loss for f in FUNCTIONS}))
def test_ours_supports_everything_that_its_definition_allows(loss):
    lacking = {"TwoWayLoss": "ws", "ZLPRLoss": "s", "CombinedLoss": "w", "BCELoss": "h2e", "BCEFocalLoss": "h2e"}
    assert set(LETTERS) - set(letters_of_ours(loss)) == set(lacking.get(loss, ""))


def test_a_probe_fails_what_is_not_exact():
    plain = next(f for f in FUNCTIONS if f.loss == "FocalLoss")
    assert is_exact(plain.ours, plain.ours, plain)
    assert not is_exact(lambda x, y: plain.ours(x, y) * 1.01, plain.ours, plain)


def test_a_new_loss_is_in_the_tables_without_an_edit(monkeypatch):
    monkeypatch.setattr("peers.table.our_losses", lambda: ["BCELoss", "BrandNewLoss"])
    monkeypatch.setattr("peers.table.shared_losses", lambda: ["BCELoss"])
    assert "None of them has `BrandNewLoss`." in generated("peers", [])[1]
    assert "| `BrandNewLoss` |" in generated("names", [])[1]
