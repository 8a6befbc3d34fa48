"""Settings become estimators: the word for nothing, and the presets that come with the package."""

from __future__ import annotations

import pytest

import seqattn
from seqattn.data.catalog import resource
from seqattn.errors import ParameterError
from seqattn.train.building import build_estimator
from seqattn.train.config import Run

PRESETS = [
    (task, path.stem.removeprefix(f"{task}-"))
    for task in seqattn.TASKS
    for path in sorted(resource("tuning").glob(f"{task}-*.toml"))
]


class Kind:
    def __init__(self, *, form: str = "key", reach: float | None = 1.0, size: int = 2) -> None:
        self.form, self.reach, self.size = form, reach, size


def test_nothing_is_the_word_none_where_only_words_are_allowed():
    given = Run.of_options(None, "hawkes", ["form=none", "reach=none"], ()).settings
    assert given == {"form": None, "reach": None}
    made = build_estimator(Kind, "kind", given, {})
    assert (made.form, made.reach) == ("none", None)
    with pytest.raises(ParameterError, match="size=None is of the wrong kind. Allowed: int"):
        build_estimator(Kind, "kind", {"size": None}, {})


@pytest.mark.parametrize(("task", "name"), PRESETS)
def test_every_preset_can_be_built_and_differs_from_the_defaults(task, name):
    module = seqattn.task(task)
    settings = Run.of_options(name, task, (), ()).settings
    assert module.settings(module.build(settings)) != module.settings(module.build({}))


def test_the_paper_s_form_of_the_classifier_has_none_of_our_additions():
    settings = Run.of_options("paper", "classify", (), ()).settings
    model = seqattn.task("classify").build(settings)
    assert (model.shapes, model.readout_shapes, model.derivatives, model.n_members) == ("motif", 0, False, 1)
