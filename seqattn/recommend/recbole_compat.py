"""RecBole 1.2.1 with the numpy, pandas, scipy and torch of today, and its fork hopwise through the same door.

RecBole uses names and habits that those libraries have given up. Nothing is changed in the libraries: each module of
RecBole that needs an old name gets a look-alike of the library in place of it, and a few functions of RecBole get a
whole body. It happens when an engine is asked for, and to RecBole's own modules only.

``recbole.quick_start`` is never imported: it wants ray, of which no release works with numpy 2.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from seqattn.errors import MissingDependencyError, ParameterError, suggest

__all__ = ["ENGINES", "REPAIRS", "Engine", "LookAlike", "engine_of"]

# Engines, and how each is had. ray 2.6.3, the latest that RecBole allows, has no release for Python 3.12.
ENGINES = {
    "recbole": "pip install 'seqattn[recbole]'. It needs Python 3.11; later ones have hopwise, a fork",
    "hopwise": "pip install hopwise, best in an environment of its own",
}
_PARTS = ("config", "data", "data.dataset", "data.interaction", "evaluator", "trainer")
_FAMILIES = ("general_recommender", "sequential_recommender")
_SETTINGS = (str, bool, int, float, list, tuple, dict, type(None))


class LookAlike(ModuleType):
    """A module with the content of another, and some names more or otherwise.

    Parameters
    ----------
    original
        The module.
    changes
        What is more or otherwise.
    """

    def __init__(self, original: ModuleType, **changes: Any) -> None:
        super().__init__(original.__name__, original.__doc__)
        # Copied, since a search for each use of a name would cost time in loops; what comes later is searched for.
        self.__dict__.update({**vars(original), **changes, "_original": original})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)

    def __repr__(self) -> str:
        return f"<look-alike of {self.__name__}>"


@dataclass(frozen=True)
class Engine:
    """RecBole, or a fork of it, made to run; see :func:`engine_of`.

    Attributes
    ----------
    name
        Name of its package.
    """

    name: str

    def module(self, path: str) -> Any:
        """Return one of its modules.

        Parameters
        ----------
        path
            Its name below the package.
        """
        return importlib.import_module(f"{self.name}.{path}")

    def loaded(self) -> list[ModuleType]:
        """Return those of its modules that have been imported."""
        inside = f"{self.name}."
        return [found for name, found in sorted(sys.modules.items()) if name.startswith(inside)]

    def model(self, name: str) -> Any:
        """Return the class of one of its general or sequential models.

        Parameters
        ----------
        name
            Its name, such as "SASRec".

        Raises
        ------
        ParameterError
            There is none of that name; the nearest one is suggested.
        """
        with _quiet_import():
            packages = [self.module(f"model.{family}") for family in _FAMILIES]
        _repair(self)
        known = {
            key: value
            for package in packages
            for key, value in vars(package).items()
            if isinstance(value, type) and value.__module__.startswith(f"{package.__name__}.")
        }
        if name not in known:
            raise ParameterError(
                f"{self.name} has no general or sequential model {name!r}.{suggest(name, known)} "
                f"Models: {', '.join(sorted(known, key=str.lower))}."
            )
        return known[name]

    def config(self, model: Any, dataset: str, settings: Mapping[str, Any]) -> Any:
        """Return its configuration; neither the command line nor any text has a say in it.

        RecBole by itself takes ``--name=value`` from the command line of whatever program runs, hands every text among
        the settings to ``eval``, and sets ``CUDA_VISIBLE_DEVICES``. Here it reads the settings as they are.

        Parameters
        ----------
        model
            Class of the model, or its name.
        dataset
            Name of the data set: of the folder in ``data_path`` and of the files in it.
        settings
            Its settings by name.

        Raises
        ------
        ParameterError
            A setting is neither a text, number, Boolean, list, mapping nor None.
        """
        _check_kinds(settings)
        module = self.module("config.configurator")
        changes = {
            "sys": LookAlike(sys, argv=[""]),
            "os": LookAlike(os, environ=dict(os.environ)),
            "yaml": _own_loader(module.yaml),
            "eval": _as_it_is,
        }
        with _changed(module, changes):
            config = module.Config(model=model, dataset=dataset, config_dict=dict(settings))
        config.yaml_loader = module.yaml.SafeLoader  # one that can be pickled with the rest
        return config

    def trainer(self, config: Any, model: Any) -> Any:
        """Return the trainer of a model, which writes no log into the working directory.

        Parameters
        ----------
        config
            Its configuration.
        model
            The model.
        """
        get_trainer = self.module("utils").get_trainer
        kind = get_trainer(config["MODEL_TYPE"], config["model"])
        with _changed(self.module("trainer.trainer"), {"get_tensorboard": lambda logger: _Silent()}):
            return kind(config, model)


def engine_of(name: str = "recbole") -> Engine:
    """Return an engine that runs with the libraries of today.

    Parameters
    ----------
    name
        ``"recbole"`` or ``"hopwise"``.

    Raises
    ------
    ParameterError
        There is no such engine.
    MissingDependencyError
        Its package is not installed, or one that it needs; says what to install.
    """
    if name not in ENGINES:
        raise ParameterError(
            f"engine={name!r} is not known. Use {' or '.join(map(repr, ENGINES))}.{suggest(name, ENGINES)}"
        )
    if importlib.util.find_spec(name) is None:
        raise MissingDependencyError(f"engine={name!r} needs the package {name}: {ENGINES[name]}.")
    engine = Engine(name)
    try:
        with _quiet_import():
            for part in _PARTS:
                engine.module(part)
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is there but cannot be imported ({error}). Install it anew: {ENGINES[name]}."
        ) from error
    _repair(engine)
    return engine


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Import without warnings, and with torch's anomaly detection as it was: the module of SINE turns it on for all."""
    check = torch.is_anomaly_check_nan_enabled()
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled(), check):
        warnings.simplefilter("ignore")
        yield


def _repair(engine: Engine) -> None:
    """Make good what is broken in the modules that are there by now; most of it hopwise has done itself."""
    for name, repair in REPAIRS.items():
        if engine.name == "recbole" or name in _ALSO_HOPWISE:
            repair(engine)


def _check_kinds(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if not isinstance(value, _SETTINGS):
            raise ParameterError(
                f"The setting {name}={value!r} is of type {type(value).__name__}. Give a text, number, Boolean, list, "
                "mapping or None."
            )


def _as_it_is(text: str) -> str:
    """Stand in for ``eval``: a text stays a text."""
    return text


def _own_loader(yaml: ModuleType) -> LookAlike:
    """Return yaml with a loader to which rules may be added without the program's own loader having them."""
    return LookAlike(yaml, FullLoader=type("Loader", (yaml.SafeLoader,), {}))


@contextlib.contextmanager
def _changed(module: ModuleType, changes: Mapping[str, Any]) -> Iterator[None]:
    """Let names of a module mean something else for a while."""
    before = {name: vars(module)[name] for name in changes if name in vars(module)}
    vars(module).update(changes)
    try:
        yield
    finally:
        for name in changes:
            del vars(module)[name]
        vars(module).update(before)


class _Silent:
    """A writer for TensorBoard that writes nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


# -- repairs ---------------------------------------------------------------------------------------------------


def _replace(modules: Iterable[ModuleType], name: str, original: ModuleType, twin: LookAlike) -> None:
    """Put a look-alike where modules have a library under a name."""
    for module in modules:
        if vars(module).get(name) is original:
            setattr(module, name, twin)


def _old_aliases(engine: Engine) -> None:
    """Do not write names into numpy that it has given up; some of them stand for what is gone."""
    engine.module("config.configurator").Config.compatibility_settings = lambda self: None


def _old_numpy(engine: Engine) -> None:
    """Give the modules the names of types that numpy 2 does not have."""
    _replace(engine.loaded(), "np", np, _NUMPY)


_NUMPY = LookAlike(
    np,
    bool=np.bool_,
    int=np.int64,
    long=np.int64,
    float=np.float64,
    complex=np.complex128,
    object=np.object_,
    str=np.str_,
    unicode=np.str_,
)


def _own_checkpoints(engine: Engine) -> None:
    """Let the trainer read what it wrote itself: torch 2.6 refuses the configuration that is part of it.

    Files from elsewhere are read as torch does by itself, which runs nothing that they hold.
    """
    readers = [found for found in engine.loaded() if found.__name__.rpartition(".")[2] in _READERS]
    _replace(readers, "torch", torch, _TORCH)


# Modules that read checkpoints.
_READERS = ("trainer", "neumf", "s3rec", "convncf", "nais", "ract")


def _save(state: Any, file: Any, *arguments: Any, **options: Any) -> None:
    torch.save(state, file, *arguments, **options)
    if isinstance(file, str | Path):
        _WRITTEN[str(Path(file).resolve())] = Path(file).stat().st_mtime_ns


def _load(file: Any, *arguments: Any, **options: Any) -> Any:
    if isinstance(file, str | Path) and Path(file).is_file():
        is_own = _WRITTEN.get(str(Path(file).resolve())) == Path(file).stat().st_mtime_ns
        options.setdefault("weights_only", not is_own)
    return torch.load(file, *arguments, **options)


# Files that a trainer of this process has written -> when.
_WRITTEN: dict[str, int] = {}
_TORCH = LookAlike(torch, save=_save, load=_load)


def _missing_values(engine: Engine) -> None:
    """Fill gaps in the table itself: pandas 3 fills a copy where RecBole asks for it column by column."""
    module = engine.module("data.dataset.dataset")
    kinds = engine.module("utils.enum_type").FeatureType

    def fill_nan(self: Any) -> None:
        for name in self.feat_name_list:
            table = getattr(self, name)
            for field in list(table):
                table[field] = _filled(table[field], self.field2type[field], kinds)

    module.Dataset._fill_nan = fill_nan


def _filled(column: Any, kind: Any, kinds: Any) -> Any:
    """Return a column without gaps: tokens get the padding, numbers their mean, lists become empty."""
    if kind == kinds.TOKEN:
        return column.fillna(value=0)
    if kind == kinds.FLOAT:
        return column.fillna(value=column.mean())
    empty = np.array([], dtype=np.int64 if kind == kinds.TOKEN_SEQ else np.float64)
    return column.apply(lambda value: empty if isinstance(value, float) else value)


def _columns_of_old(engine: Engine) -> None:
    """Let ``agg(len)`` tell the length of each list of a column; in pandas 3 it tells that of the column.

    Tables of data sets are of a kind of their own, whose lists are not missing either where a file has none.
    """
    module = engine.module("data.dataset.dataset")
    if not isinstance(module.pd, LookAlike):
        module.pd = _old_pandas(module.pd)


def _old_pandas(pandas: ModuleType) -> LookAlike:
    class Column(pandas.Series):  # type: ignore[name-defined]
        _constructor = property(lambda self: Column)
        _constructor_expanddim = property(lambda self: Table)

        def agg(self, func: Any = None, *arguments: Any, **options: Any) -> Any:
            return self.apply(len) if func is len else super().agg(func, *arguments, **options)

    class Table(pandas.DataFrame):  # type: ignore[name-defined]
        _constructor = property(lambda self: Table)
        _constructor_sliced = property(lambda self: Column)

    def read_csv(*arguments: Any, **options: Any) -> Any:
        found = Table(pandas.read_csv(*arguments, **options))
        lists = [name for name in found.columns if str(name).endswith("_seq")]
        return found.assign(**{name: found[name].fillna("") for name in lists})

    return LookAlike(pandas, DataFrame=Table, Series=Column, read_csv=read_csv)


def _old_sparse(engine: Engine) -> None:
    """Give matrices of keys the method that fills them from a dict, which scipy has given up."""
    from scipy import sparse

    class Keys(sparse.dok_matrix):
        def _update(self, values: Mapping[Any, Any]) -> None:
            for place, value in values.items():
                self[place] = value

    _replace(engine.loaded(), "sp", sparse, LookAlike(sparse, dok_matrix=Keys))


def _counts_of_data(engine: Engine) -> None:
    """Hand over what was collected for metrics also where it is a plain number or a count, on no device."""
    module = engine.module("evaluator.collector")

    def get_data_struct(self: Any) -> Any:
        held = self.data_struct
        found = module.DataStruct()
        for name, value in held._data_dict.items():
            found.set(name, value.cpu() if isinstance(value, torch.Tensor) else module.copy.deepcopy(value))
        for name in ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label"):
            if name in held:
                del held[name]
        return found

    module.Collector.get_data_struct = get_data_struct


def _popularity(engine: Engine) -> None:
    """Count each row: the engine's model counts an item once per batch, however often it is in it.

    With 2,048 rows per batch, all popular items of a small log then have the same count.
    """
    module = sys.modules.get(f"{engine.name}.model.general_recommender.pop")
    if module is None:
        return

    def calculate_loss(self: Any, interaction: Any) -> torch.Tensor:
        items = interaction[self.ITEM_ID]
        self.item_cnt.view(-1).index_add_(0, items, torch.ones_like(items))
        self.max_cnt = self.item_cnt.max(dim=0)[0]
        return torch.zeros(1, device=self.device, requires_grad=True)

    module.Pop.calculate_loss = calculate_loss


REPAIRS: dict[str, Callable[[Engine], None]] = {
    "aliases": _old_aliases,
    "numpy": _old_numpy,
    "checkpoints": _own_checkpoints,
    "missing": _missing_values,
    "lists": _columns_of_old,
    "sparse": _old_sparse,
    "counts": _counts_of_data,
    "popularity": _popularity,
}
_ALSO_HOPWISE = ("popularity",)
