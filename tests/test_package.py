import importlib
import importlib.metadata
import re

import pytest

import seqattn
from seqattn.errors import ArtifactError, ParameterError


def test_the_version_is_one_number_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", seqattn.__version__)


def test_an_installed_copy_has_the_version_of_the_code():
    try:
        installed = importlib.metadata.version("seqattn")
    except importlib.metadata.PackageNotFoundError:
        installed = seqattn.__version__
    assert installed == seqattn.__version__


@pytest.mark.parametrize("name", seqattn.__all__)
def test_every_exported_name_can_be_used(name):
    assert getattr(seqattn, name) is not None


@pytest.mark.parametrize("name", [name for name in seqattn.__all__ if name[0].isupper()])
def test_every_exported_class_says_where_it_lives(name):
    found = getattr(seqattn, name)
    assert found.__name__ == name
    assert getattr(importlib.import_module(found.__module__), name) is found


def test_dir_lists_the_exported_names():
    assert set(seqattn.__all__) <= set(dir(seqattn))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Sahp'"):
        _ = seqattn.Sahp


@pytest.mark.parametrize("name", seqattn.TASKS)
def test_every_task_can_be_run_by_the_command_line(name):
    assert seqattn.task(name).__name__ == f"seqattn.{name}.task"


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(ParameterError, match=r"no task 'hawks'\. Tasks: .*Did you mean 'hawkes'\?"):
        seqattn.task("hawks")


def test_load_says_that_there_is_no_file(tmp_path):
    with pytest.raises(ArtifactError, match=re.escape(repr(str(tmp_path / "absent.safetensors")))):
        seqattn.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("kind", ["Unheard", "load_dataset", "Sequences", "__version__"])
def test_load_refuses_what_is_not_a_saved_estimator(tmp_path, kind):
    from seqattn.train.artifact import save_artifact

    save_artifact(tmp_path / "model.safetensors", kind, {}, {})
    with pytest.raises(ArtifactError, match=f"holds '{kind}'.*{re.escape(seqattn.__version__)}"):
        seqattn.load(tmp_path)
