"""Where a library is wrong it still is, at the version at hand, and ours gives what its formula has."""

import pytest
from peers.fault import agree
from peers.faults import FAULTS
from peers.libraries import Missing, load, version


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_ours_is_right_where_another_library_is_not(fault):
    ours = fault.ours()
    assert agree(ours, fault.right, 1e-5), f"{fault}: {ours} and not {fault.right}"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_of_another_library_is_still_there(fault):
    try:
        library = load(fault.library)
    except Missing as reason:
        pytest.skip(str(reason))
    theirs = fault.theirs(library)
    assert not agree(theirs, fault.right, 0.05), (
        f"{fault.library} {version(fault.library)} gives {theirs}, which is right: this fault is mended. Take it off "
        "the list, and bring the table up to date: PYTHONPATH=tests python -m peers.table"
    )


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [(1.0, 1.0000001, True), (1.0, 1.1, False), (float("nan"), 0.0, False), (0.0, 2e-9, False), ("a", "a", True)],
)
def test_two_answers_agree(left, right, same):
    assert agree(left, right, 1e-5) is same
