from __future__ import annotations

import json

import pytest

from seqattn.train.history import History


def history(*losses):
    found = History()
    flags = [found.add({"epoch": n, "valid_loss": loss}) for n, loss in enumerate(losses, 1)]
    return found, flags


@pytest.mark.parametrize(
    ("losses", "best", "flags"),
    [
        ((3.0, 2.0, 2.0, 1.5, 4.0), 4, [True, True, False, True, False]),
        ((-1.0, -2.0), 2, [True, True]),
        ((1.0, 1.0), 1, [True, False]),
        ((None, None), None, [False, False]),
    ],
)
def test_the_best_epoch_is_the_first_with_the_smallest_loss(losses, best, flags):
    found, given = history(*losses)
    assert (found.best_epoch, given) == (best, flags)


def test_a_history_survives_json():
    found, _ = history(3.0, 2.0)
    found.stopped_early = True
    assert History.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_json_form_is_a_copy():
    found, _ = history(3.0)
    found.to_json()["records"][0]["epoch"] = 99
    copy = History.from_json(found.to_json())
    copy.records[0]["epoch"] = 98
    assert found.records[0]["epoch"] == 1
