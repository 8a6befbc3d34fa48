"""The search for rates with a wanted attention entropy."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import seqattn
from seqattn.cli import cli
from seqattn.dynamics import ScanAndSnapStudy, syn_medium, syn_small
from seqattn.dynamics import task as module
from seqattn.errors import DataError, ParameterError

SHORT = {"n_steps": 4, "n_records": 2, "batch_size": 8, "seq_len": 8}


def study(**settings):
    return module.build({**SHORT, "wanted_entropy": 1.9, **settings}, seed=3)


def test_the_objective_is_the_distance_at_the_last_step():
    X = module.splits("small")["train"]
    model = module.fit(study(lr_y=5.0, lr_z=5.0), X)
    ends = model.result_.final["entropy_distinct"].mean()
    assert module.objective(model, X) == pytest.approx(-abs(ends - 1.9))
    assert module.objective(model.set_params(wanted_entropy=ends), X) == pytest.approx(0.0)


def test_the_last_look_has_other_seeds():
    X = module.splits("small", ("test",))["test"]
    model = module.fit(study(lr_y=5.0, lr_z=5.0), X)
    found = module.evaluate(model, X)
    assert found["entropy"] != module.reached(model)
    assert found["gap"] == found["entropy"] - 1.9
    assert found["entropy"] == module.evaluate(model, X)["entropy"]


def test_names_of_settings_are_data():
    assert module.splits("small")["train"].digest() == syn_small().digest()
    assert module.splits("medium-3")["dev"].digest() == syn_medium(3).digest()
    with pytest.raises(DataError, match="no-such"):
        module.splits("no-such")


@pytest.mark.parametrize("wanted", [None, -1.0, float("inf")])
def test_a_search_needs_something_to_aim_at(wanted):
    model = ScanAndSnapStudy(**SHORT, wanted_entropy=wanted)
    with pytest.raises(ParameterError, match="wanted_entropy"):
        module.fit(model, syn_small())


def test_what_is_wanted_changes_no_record():
    one, two = (ScanAndSnapStudy(**SHORT, wanted_entropy=aim).fit(syn_small()) for aim in (None, 2.0))
    assert one.result_.table.equals(two.result_.table)


def test_a_diverged_run_has_no_entropy():
    model = study(lr_y=1e300, lr_z=1e300, n_steps=30)
    with pytest.warns(seqattn.errors.SeqattnWarning, match="diverged"):
        module.fit(model, syn_small())
    with pytest.raises(DataError, match="smaller rates"):
        module.objective(model, None)


def test_there_is_nothing_to_fit_for_predictions():
    result = CliRunner().invoke(cli, ["fit", "dynamics"])
    assert result.exit_code == 2
    assert "seqattn study dynamics" in result.stderr


@pytest.mark.slow
def test_a_search_comes_nearer_than_its_starting_points(tmp_path):
    sets = [part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")]
    command = ["tune", "dynamics", *sets, "--set", "wanted_entropy=2.12", "--json", "--quiet"]
    command += ["--output", str(tmp_path / "run")]
    runner = CliRunner()
    result = runner.invoke(cli, [*command, "--trials", "6"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["n_complete"] == 6
    assert set(found["best_params"]) == {"lr_y", "lr_z"}
    assert found["test"]["wanted_entropy"] == 2.12
    more = json.loads(runner.invoke(cli, [*command, "--trials", "8"]).stdout)
    assert (more["n_trials"], more["best_value"] >= found["best_value"]) == (8, True)
    opened = seqattn.load(tmp_path / "run" / "best")
    assert opened.lr_y == more["best_params"]["lr_y"]
