"""Grids: what comes with the package is sound, and a file with an error is refused with the place."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import seqattn
from seqattn.data import catalog
from seqattn.errors import ParameterError
from seqattn.reproduce.grid import Grid, nouns
from seqattn.train.config import Run

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
title = "T"
task = "hawkes"
reference = "A"
protocol = "full"
protocol_text = "All."
evaluation = { convention = "full" }
[[metrics]]
name = "loglik_per_event"
title = "log-likelihood"
unit = "nats"
[[models]]
name = "A"
model = "poisson"
[[datasets]]
name = "taxi"
"""


@pytest.mark.parametrize(("noun", "name"), [*((noun, "reproduce") for noun in nouns()), ("uea", "ablation")])
def test_every_name_in_a_grid_of_the_package_exists(noun, name):
    grid = Grid.of(noun, name)
    module = seqattn.task(grid.task)
    known = {entry.name for entry in catalog.entries(noun)}
    assert {dataset.name for dataset in grid.datasets} <= known
    own = {model.model for model in grid.models if not model.on_request}
    assert own <= set(module.MODELS)
    assert {name for table in grid.published for name in table.figures} <= known
    assert {table.metric for table in grid.published} <= {metric.name for metric in grid.metrics}
    named = {name for table in grid.published for figures in table.figures.values() for name in figures}
    assert {model.published for model in grid.models} - {""} <= named
    for model in grid.models:
        preset = Run.of_options(model.preset, grid.task, (), ()).settings if model.preset else {}
        if model.model.partition(":")[0] != "hopwise" or importlib.util.find_spec("hopwise"):
            module.build({**preset, **model.settings}, model.model)


def test_each_row_of_the_ablation_differs_from_the_others_and_there_are_ten_sets():
    grid = Grid.of("uea", "ablation")
    module = seqattn.task(grid.task)
    forms = [repr(module.settings(module.build(model.settings, model.model))) for model in grid.models]
    assert len(set(forms)) == len(forms) >= 10
    assert len(grid.datasets) >= 10


def test_published_figures_stand_under_our_protocol_and_name_their_source():
    for table in Grid.of("tpp").published:
        assert table.source
        assert table.protocol == Grid.of("tpp").protocol


def test_figures_whose_epoch_was_chosen_on_test_data_say_so_and_stand_beside_ours_of_that_kind():
    grid = Grid.of("uea")
    (best,) = [metric for metric in grid.metrics if metric.best_of]
    assert best.protocol == "default split, epoch chosen on test (published)"
    for table in grid.published:
        starred = {name.endswith("*") for figures in table.figures.values() for name in figures}
        assert starred == {table.protocol == best.protocol}
        assert (best.name in table.also) == (table.protocol == best.protocol)


@pytest.mark.parametrize(
    ("model", "mean", "n"),
    [
        ("SVP-T*", 0.733, 30),
        ("ShapeFormer*", 0.786, 30),
        ("ConvTran", 0.738, 30),
        ("HIVE-COTE 2", 0.748, 26),
        ("ROCKET", 0.724, 26),
    ],
)
def test_the_means_of_the_published_columns_are_those_that_were_published(model, mean, n):
    grid = Grid.of("uea")
    found = [grid.figure(each.name, model, "accuracy") for each in grid.datasets]
    values = [each[0] for each in found if each]
    assert (len(values), round(sum(values) / len(values), 3)) == (n, mean)


def test_the_best_published_figure_is_not_below_any_other():
    for table in Grid.of("tpp").published:
        for figures in table.figures.values():
            assert figures.get("best", max(figures.values())) == max(figures.values())


def test_the_published_figures_are_those_of_the_readme():
    table = (
        (ROOT / "README.md")
        .read_text()
        .split("| data | published SAHP | best published", 1)[1]
        .split("\n\n", 1)[0]
    )
    rows = re.findall(r"^\| `(\w+)` \| (-?[\d.]+) \| (-?[\d.]+) \|", table, re.M)
    grid = Grid.of("tpp")
    assert len(rows) >= 3
    for dataset, sahp, best in rows:
        assert grid.figure(dataset, "SAHP", "loglik_per_event")[0] == float(sahp)
        assert grid.figure(dataset, "best", "loglik_per_event")[0] == float(best)


def test_names_are_chosen_in_the_order_of_the_grid_and_by_alias():
    grid = Grid.of("tpp").select(["mimic-ii", "taxi"], ["PoissonProcess", "SAHP"])
    assert [dataset.name for dataset in grid.datasets] == ["taxi", "mimic-ii/fold1"]
    assert [model.name for model in grid.models] == ["SAHP", "PoissonProcess"]
    assert "multivariate Hawkes" in grid.others("taxi")
    assert "SAHP" not in grid.others("taxi")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid.of("tppp"), "There is no table 'tppp'. Tables: rec, tpp, uea. Did you mean 'tpp'?"),
        (lambda: Grid.of("uea", "ablaton"), "no grid 'ablaton'. Grids of uea: .*Did you mean 'ablation'?"),
        (lambda: Grid.of("tpp").select(["taxii"]), "'taxii' is not a data set of the table. .*'taxi'?"),
        (lambda: Grid.of("tpp").select(models=["SAPH"]), "'SAPH' is not a model of the table. .*'SAHP'?"),
    ],
    ids=["table", "grid", "data set", "model"],
)
def test_an_unknown_name_suggests_the_nearest(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('unit = "nats"', "", "lacks the key 'unit' of Metric"),
        ('title = "T"', 'titel = "T"', "'titel' is not a key of .*Did you mean 'title'"),
        ('reference = "A"', 'reference = "B"', "'B' is not a model of"),
        ('[[datasets]]\nname = "taxi"', "", "names no metrics, no models or no data sets"),
    ],
)
def test_a_grid_with_an_error_is_refused(tmp_path, before, after, message):
    path = tmp_path / "grid.toml"
    path.write_text(SMALL)
    assert Grid.load(path).models[0].settings == {}
    path.write_text(SMALL.replace(before, after))
    with pytest.raises(ParameterError, match=message):
        Grid.load(path)
