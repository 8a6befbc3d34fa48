"""What is asked of a search besides the best value: limits, a second objective, no work done twice, good beginnings.

All of it with a small second task, which is a module, an estimator and a search space, and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy import SPACE, Line, toy  # noqa: F401 - a fixture is found by its name

import seqattn
from seqattn.errors import ParameterError, StudyError
from seqattn.train.costs import measure_cost
from seqattn.train.search import Outcome, Plan, starting_points, warm_starts
from seqattn.train.space import Space
from seqattn.train.workers import myself
from seqattn.tune import tune
from seqattn.tune.desk import Desk

TOML = """
[space]
rate = { type = "float", low = 1e-3, high = 1e-1, log = true }
width = { type = "choice", choices = [2, 4, 8] }
[trial]
epochs = 4
[refit]
epochs = 5
[start.defaults]
[limit]
parameters = 30
"""
# width -> weights of the two layers with their biases
WEIGHTS = {2: 11, 4: 21, 8: 41}


@pytest.fixture
def plan(toy: str, tmp_path: Path) -> Plan:  # noqa: F811
    space = Space(rules=SPACE, trial={"epochs": 4}, startup_trials=100)
    return Plan(toy, tmp_path / "study", trials=6, space=space, quiet=True, device="cpu")


def numbers(outcome: Outcome, key: str) -> list[Any]:
    return [trial[key] for trial in outcome.trials]


# -- a second task ---------------------------------------------------------------------------------------------


def test_a_task_needs_a_module_and_a_space(plan, tmp_path):
    (tmp_path / "toy.toml").write_text(TOML)
    outcome = tune(replace(plan, space=Space.load(tmp_path / "toy.toml")))
    assert numbers(outcome, "reason") == [None] * 6
    assert (outcome.n_trials, outcome.n_complete + outcome.n_pruned) == (6, 6)
    assert outcome.trials[0]["name"] == "defaults"
    assert (outcome.trials[0]["width"], outcome.trials[0]["rate"]) == (4, 0.01)
    assert outcome.best_value == max(trial["value"] for trial in outcome.trials if trial["width"] < 8)
    assert outcome.test.keys() == {"error"}
    assert "width = " in (plan.output / "best.toml").read_text()


# -- limits ----------------------------------------------------------------------------------------------------


def test_a_trial_above_a_limit_is_shown_and_never_the_best(plan):
    free = tune(replace(plan, output=plan.output / "free", trials=12))
    # The best of all is too large: the limit changes what is chosen.
    assert free.best_params["width"] == 8
    outcome = tune(replace(plan, trials=12, limits={"parameters": 30}))
    assert [trial["parameters"] for trial in outcome.trials] == [
        WEIGHTS[trial["width"]] for trial in outcome.trials
    ]
    assert [trial["feasible"] for trial in outcome.trials] == [trial["width"] < 8 for trial in outcome.trials]
    assert outcome.n_infeasible == numbers(outcome, "width").count(8) > 0
    assert outcome.best_value == max(trial["value"] for trial in outcome.trials if trial["width"] < 8)
    assert outcome.best_params["width"] < 8


def test_limits_that_no_trial_keeps_end_with_the_nearest(plan):
    with pytest.raises(
        StudyError, match=r"None of the 6 complete trials keeps .* came nearest: \{'parameters': 11"
    ) as caught:
        tune(replace(plan, limits={"parameters": 5}))
    found = caught.value.outcome
    assert [trial["feasible"] for trial in found.trials] == [False] * 6
    assert (found.n_infeasible, found.best_trial, found.best_value, found.test) == (6, None, None, {})


def test_the_time_of_predictions_is_measured_on_the_development_data(plan, toy):  # noqa: F811
    outcome = tune(replace(plan, trials=2, limits={"seconds_per_1000": 1e6}))
    assert all(0 < trial["seconds_per_1000"] < 1e6 for trial in outcome.trials)
    assert outcome.n_infeasible == 0


def test_a_cost_is_time_by_predictions_and_weights_are_counted(toy):  # noqa: F811
    task = seqattn.task(toy)
    rows = task.splits("rows", ("train",), seed=0)["train"]
    model = task.fit(Line(width=8), rows, rows)
    assert measure_cost(task, model, rows, "parameters") == WEIGHTS[8]
    with pytest.raises(ParameterError, match="Line has no weights to count"):
        measure_cost(task, Line(), rows, "parameters")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limits": {"parameter": 3}}, "'parameter' is not a limit.*Did you mean 'parameters'"),
        ({"limits": {"parameters": 0}}, "The limit parameters=0 is not allowed"),
        ({"limits": {"parameters": "few"}}, "The limit parameters='few' is not allowed"),
        ({"second": "seconds"}, "'seconds' is not a second objective. Allowed: seconds_per_1000, parameters"),
    ],
)
def test_an_aim_that_is_not_known_is_refused(plan, change, message):
    with pytest.raises(ParameterError, match=message):
        replace(plan, **change)


def test_a_study_goes_on_with_its_own_aims_only(plan):
    tune(replace(plan, trials=1, limits={"parameters": 30}))
    with pytest.raises(ParameterError, match="made with another limits"):
        tune(replace(plan, limits={"parameters": 40}))
    with pytest.raises(ParameterError, match="another limits and second objective"):
        tune(replace(plan, second="parameters"))


# -- a second objective ----------------------------------------------------------------------------------------


def test_the_front_holds_what_none_beats_in_both(plan):
    outcome = tune(replace(plan, trials=10, second="parameters"))
    points = [(trial["value"], trial["parameters"], trial["number"]) for trial in outcome.trials]
    unbeaten = {
        number
        for value, cost, number in points
        if not any(v >= value and c <= cost and (v, c) != (value, cost) for v, c, _ in points)
    }
    assert {trial["number"] for trial in outcome.front} == unbeaten
    assert [trial["value"] for trial in outcome.front] == sorted(
        (trial["value"] for trial in outcome.front), reverse=True
    )
    assert outcome.best_trial == outcome.front[0]["number"]
    assert outcome.best_value == max(value for value, _, _ in points)
    assert outcome.n_pruned == 0


def test_a_repeated_trial_does_not_fill_the_front(plan):
    starts = {name: {"rate": 0.05, "width": 8} for name in ("one", "two")}
    outcome = tune(replace(plan, trials=2, second="parameters", space=replace(plan.space, starts=starts)))
    assert numbers(outcome, "same_as") == [None, 0]
    assert [trial["number"] for trial in outcome.front] == [0]


def test_another_trial_is_refitted_if_it_is_asked_for(plan):
    outcome = tune(replace(plan, trials=8, second="parameters"))
    last = outcome.front[-1]
    again = tune(replace(plan, trials=8, second="parameters", choose=last["number"]))
    assert (again.best_trial, again.best_value) == (last["number"], last["value"])
    with pytest.raises(ParameterError, match=r"choose=99 is no trial of 8"):
        replace(plan, trials=8, second="parameters", choose=99)


# -- no work done twice ----------------------------------------------------------------------------------------


def small(plan: Plan) -> Plan:
    """Search four combinations only."""
    rules = {
        name: {"type": "choice", "choices": choices}
        for name, choices in (("rate", [0.01, 0.1]), ("width", [2, 4]))
    }
    return replace(plan, space=replace(plan.space, rules=rules))


def test_equal_settings_are_run_once_until_the_space_is_used_up(plan):
    outcome = tune(replace(small(plan), trials=9))
    settings = [(trial["rate"], trial["width"]) for trial in outcome.trials]
    # The four combinations come first; what follows takes over what is known.
    assert len(set(settings[:4])) == 4
    assert numbers(outcome, "same_as")[:4] == [None] * 4
    for trial, same in zip(outcome.trials[4:], numbers(outcome, "same_as")[4:], strict=True):
        assert same == settings.index((trial["rate"], trial["width"]))
        assert (trial["value"], trial["seconds"]) == (outcome.trials[same]["value"], 0.0)
    assert outcome.n_complete == 9


def test_a_repeated_trial_is_told(plan, capsys):
    tune(replace(small(plan), trials=5, quiet=False))
    assert ", which has the same settings, 0 s" in capsys.readouterr().err


def test_equal_starting_points_are_run_once(plan):
    starts = {"one": {"rate": 0.02}, "two": {"rate": 0.02}, "three": {"rate": 0.02, "shift": 1.0}}
    outcome = tune(replace(plan, trials=3, space=replace(plan.space, starts=starts)))
    # A further setting makes another trial.
    assert numbers(outcome, "same_as") == [None, 0, None]


@pytest.fixture
def desk(plan: Plan) -> Desk:
    plan.output.mkdir()
    settled = replace(plan, storage=str(plan.output / "study.journal"), study="s")
    return Desk(settled)


def test_settings_that_are_being_tried_wait_for_the_result(desk):
    start = {"rate": 0.02, "width": 2}
    desk.prepare({}, {"one": (start, {}), "two": (start, {})})
    first = desk.claim()
    assert first.number == 0
    # What waits for its result is passed over: others do not wait with it.
    assert [desk.claim().number for _ in range(4)] == [2, 3, 4, 5]
    assert desk.trials()[1].state.name == "WAITING"
    before = desk.plan.output.joinpath("study.journal").read_bytes()
    assert desk.claim() is None
    assert desk.plan.output.joinpath("study.journal").read_bytes() == before
    desk.finish(first, desk.trials()[0].state.COMPLETE, [0.25], {"epochs": 4})
    assert desk.claim() is None
    repeated = desk.trials()[1]
    assert (repeated.state.name, repeated.value, repeated.user_attrs["same_as"]) == ("COMPLETE", 0.25, 0)


# -- a cut trial -----------------------------------------------------------------------------------------------


class Cut:
    """An observer that interrupts a fit after some epochs, and counts those that were trained."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.trained = after, list[int]()

    def begin(self, settings: Any) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        if len(self.trained) == self.after:
            raise KeyboardInterrupt
        self.trained.append(record["epoch"])

    def end(self, history: Any) -> None:
        pass


def watch(monkeypatch: pytest.MonkeyPatch, observer: Cut) -> None:
    """Let an observer look at every fit of the task besides."""
    task = seqattn.task("toy")
    fit = task.fit
    monkeypatch.setattr(
        task, "fit", lambda *parts, observers, **more: fit(*parts, observers=[*observers, observer], **more)
    )


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_cut_trial_goes_on_from_its_checkpoint_with_the_same_bits(plan, monkeypatch, after):
    plan = replace(plan, trials=2, space=replace(plan.space, refit={"epochs": 1}))
    straight = tune(replace(plan, output=plan.output / "straight"))
    cut, rest = Cut(after), Cut()
    with monkeypatch.context() as patch:
        watch(patch, cut)
        with pytest.raises(KeyboardInterrupt):
            tune(plan)
    with monkeypatch.context() as patch:
        watch(patch, rest)
        resumed = tune(plan)
    for one, other in zip(straight.trials, resumed.trials, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert resumed.test == straight.test
    # Each of the four epochs of both trials, and the one of the refit, was trained once.
    assert [*cut.trained, *rest.trained] == [1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert list((plan.output / "trials").iterdir()) == []


def test_a_checkpoint_of_something_else_is_replaced(plan):
    for content in (b"no checkpoint at all", None):
        place = plan.output / "trials" / "0.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            task = seqattn.task("toy")
            parts = task.splits("rows", task.SPLITS, seed=0)
            task.fit(Line(width=2, epochs=1), parts["train"], parts["dev"], checkpoint=place)
        else:
            place.write_bytes(content)
        name = "nothing" if content else "another"
        assert tune(replace(plan, trials=1, study=name)).n_complete == 1
        assert not place.exists()


def test_the_process_that_lost_a_trial_leaves_its_checkpoint(desk, plan):
    desk.prepare({}, {})
    trial = desk.claim()
    assert desk.beat(trial.number)
    trial.set_user_attr("owner", {**myself(), "host": "elsewhere"})
    assert not desk.beat(trial.number)
    assert not desk.finish(trial, desk.trials()[0].state.COMPLETE, [1.0], {})


# -- good beginnings -------------------------------------------------------------------------------------------


def test_the_best_of_another_study_comes_first(plan, tmp_path):
    other = replace(plan.space, fixed={"shift": 0.25})
    best = tune(replace(plan, output=tmp_path / "other", space=other))
    space = replace(plan.space, starts={"defaults": {}})
    for place in (tmp_path / "other", tmp_path / "other" / "best.toml"):
        warm = tune(
            replace(plan, output=tmp_path / f"warm {place.name}", space=space, trials=2, warm_start=[place])
        )
        assert numbers(warm, "name") == ["warm start rows", "defaults"]
        first = warm.trials[0]
        assert (first["rate"], first["width"]) == (best.best_params["rate"], best.best_params["width"])
        # What is not searched comes along if it is not the default; the length of a trial does not.
        assert (first["shift"], first["epochs"]) == (0.25, 4)


def test_a_study_with_a_warm_start_goes_on_without_the_other_one(plan, tmp_path, monkeypatch):
    first, second = tmp_path / "first" / "best.toml", tmp_path / "second" / "best.toml"
    for path, width in ((first, 2), (second, 8)):
        path.parent.mkdir()
        path.write_text(
            f'task = "toy"\nmodel = "line"\ndata = "rows"\n[settings]\nwidth = {width}\nrate = 0.01\n'
        )
    monkeypatch.chdir(tmp_path)
    warm = replace(plan, trials=2, warm_start=["first", "second"])
    begun = tune(warm)
    assert numbers(begun, "name") == ["warm start rows", "warm start rows 2"]
    assert numbers(begun, "width") == [2, 8]
    # Elsewhere: another path, and the other study has gone on meanwhile, or is not there.
    first.write_text(first.read_text().replace("width = 2", "width = 4"))
    for places in ([first.parent], ["nowhere"], []):
        assert facts(tune(replace(warm, warm_start=places))) == facts(begun)


def facts(outcome: Outcome) -> list[dict[str, Any]]:
    return [{**trial, "seconds": None} for trial in outcome.trials]


def test_a_beginning_outside_of_the_space_is_refused(plan, tmp_path, toy):  # noqa: F811
    config = tmp_path / "best.toml"
    config.write_text('task = "toy"\nmodel = "line"\n[settings]\nwidth = 16\nrate = 0.01\n')
    with pytest.raises(ParameterError, match=r"'warm start' has width=16, outside of .*widen the space"):
        tune(replace(plan, warm_start=[config]))
    config.write_text('task = "hawkes"\nmodel = "sahp"\n[settings]\nd_model = 16\n')
    with pytest.raises(
        ParameterError, match=r"holds settings of 'sahp' \(hawkes\), and the search is for 'line'"
    ):
        warm_starts(seqattn.task(toy), replace(plan, warm_start=[config]))
    with pytest.raises(ParameterError, match=r"nowhere"):
        tune(replace(plan, warm_start=[tmp_path / "nowhere"]))
    assert starting_points(seqattn.task(toy), plan) == {}
