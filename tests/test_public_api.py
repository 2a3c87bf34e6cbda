"""Public names exist, are documented, and their examples run."""

from __future__ import annotations

import doctest
import enum
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import wsi_ats

ROOT = Path(__file__).parents[1]
MODULES = ["wsi_ats", *(m.name for m in pkgutil.walk_packages(wsi_ats.__path__, "wsi_ats."))]

# Members of slides, networks and methods are documented once, at the protocol.
PROTOCOL = {"tile_shape", "read_regions", "stored_bytes", "close", "train", "forward", "begin", "score"}


def public(module_name: str):
    """Public classes, functions and methods that a module defines, each with its name."""
    module = importlib.import_module(module_name)
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module_name:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for method_name, method in vars(value).items():
                method = getattr(method, "fget", None) or getattr(method, "__func__", method)
                own = getattr(method, "__module__", None) == module_name  # not one that a base class adds
                if inspect.isfunction(method) and own and not method_name.startswith("_"):
                    yield f"{name}.{method_name}", method


def declared_by_a_base(module_name: str, name: str) -> bool:
    """Whether a method is one that an abstract class declares, where its parameters are documented."""
    owner, _, method = name.partition(".")
    bases = vars(importlib.import_module(module_name))[owner].__mro__[1:] if method else ()
    return any(method in getattr(base, "__abstractmethods__", ()) for base in bases)


def parameters(thing) -> list[str]:
    if inspect.isclass(thing) and (
        issubclass(thing, enum.Enum | BaseException) or getattr(thing, "_is_protocol", False)
    ):
        return []
    try:
        names = list(inspect.signature(thing).parameters)
    except ValueError:
        return []
    return [name for name in names if name not in {"self", "cls"}]


def documented(thing) -> list[str]:
    """Names in the Parameters section of a docstring."""
    doc = inspect.getdoc(thing) or ""
    section = re.search(r"^Parameters\n-{10}\n(.*?)(?=^\w[^\n]*\n---|\Z)", doc, re.DOTALL | re.MULTILINE)
    if not section:
        return []
    heads = re.findall(r"^(\*{0,2}\w[\w, *]*?)(?: :.*)?$", section[1], re.MULTILINE)
    return [name.strip(" *") for head in heads for name in head.split(",")]


def test_every_public_name_can_be_imported_and_is_what_its_module_calls_it():
    for name in wsi_ats.__all__:
        value = getattr(wsi_ats, name)
        home = importlib.import_module(f"wsi_ats.{wsi_ats._HOME_OF[name]}")
        assert value is getattr(home, name)
        assert value.__name__ == name
    assert set(wsi_ats.__all__) <= set(dir(wsi_ats))


def test_names_for_type_checkers_and_at_run_time_are_the_same():
    source = inspect.getsource(wsi_ats)
    block = source[source.index("if TYPE_CHECKING:") : source.index("__all__ = ")]
    typed = {}
    for home, names in re.findall(r"from wsi_ats\.([\w.]+) import (.+)", block):
        typed |= {name.strip(): home for name in names.split(",")}
    assert typed == wsi_ats._HOME_OF
    assert sorted(typed) == sorted(wsi_ats.__all__)


def test_documentation_imports_public_names_only():
    modules = {"wsi_ats", "wsi_ats.nn.expectation", "wsi_ats.nn.sampling", "wsi_ats.slides.memory"}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    used = {
        module
        for page in pages
        for module in re.findall(r"^(?:>>> )?from (wsi_ats[\w.]*) import", page.read_text("utf-8"), re.M)
    }
    assert "wsi_ats" in used
    assert {module for module in used if not module.startswith("wsi_ats.testing.")} <= modules


def test_no_public_name_is_hidden_by_a_module_of_that_name():
    assert not {f"wsi_ats.{name}" for name in wsi_ats.__all__} & set(MODULES)


@pytest.mark.slow
def test_names_resolve_in_any_order_in_a_fresh_process():
    """And all of them together need neither Dask nor matplotlib nor an installed OpenSlide."""
    code = (
        "import sys; from wsi_ats import *; import wsi_ats.overview.tiles\n"
        "print(all(name in globals() for name in wsi_ats.__all__))\n"
        "print(*sorted(sys.modules.keys() & {'dask', 'distributed', 'matplotlib', 'openslide', 'pipelines'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "True\n\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = wsi_ats.nothing
    with pytest.raises(ImportError):
        importlib.import_module("wsi_ats.nothing")


@pytest.mark.parametrize("name", wsi_ats.__all__)
def test_every_exported_name_documents_each_of_its_parameters(name):
    thing = getattr(wsi_ats, name)
    assert sorted(documented(thing)) == sorted(parameters(thing))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_object_has_a_docstring_that_starts_with_a_sentence(module):
    assert importlib.import_module(module).__doc__
    for name, thing in public(module):
        first = (thing.__doc__ or "").strip().split("\n\n")[0]
        assert re.match(r"[\w`:*].*[.:]$", first, re.DOTALL), f"{module}.{name}: {first!r}"


@pytest.mark.parametrize("module", [name for name in MODULES if ".testing" not in name])
def test_functions_of_more_than_two_parameters_document_each(module):
    """The first sentence often covers one or two; an existing section must be complete."""
    for name, thing in public(module):
        if (
            declared_by_a_base(module, name)
            or name.split(".")[-1] in PROTOCOL
            or (inspect.isclass(thing) and issubclass(thing, Exception))
        ):
            continue
        wanted, found = parameters(thing), documented(thing)
        if found:
            assert sorted(found) == sorted(wanted), f"{module}.{name}"
        elif len(wanted) > 2:
            doc = inspect.getdoc(thing) or ""
            # Fields with a docstring below them; those of a parent have theirs there.
            family = (
                [each for each in inspect.getmro(thing) if each.__module__ == module]
                if inspect.isclass(thing)
                else []
            )
            fields = sum(inspect.getsource(each).count('    """') - 1 for each in family)
            told = all(re.search(rf"\b{each}\b", doc) for each in wanted) or ":func:`" in doc
            assert told or fields >= len(wanted), f"{module}.{name} has {wanted}"


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_have_types(module):
    for name, thing in public(module):
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            assert signature.return_annotation is not inspect.Signature.empty, f"{module}.{name}"
            for parameter in signature.parameters.values():
                if parameter.name not in {"self", "cls"}:
                    assert parameter.annotation is not inspect.Parameter.empty, f"{module}.{name}"
            assert typing.Any is not signature.return_annotation


@pytest.mark.parametrize("module", MODULES)
def test_examples_are_true(module):
    failed, _ = doctest.testmod(importlib.import_module(module), extraglobs=exported(module))
    assert failed == 0


def exported(module: str) -> dict:
    """Names that the examples of the package's docstring see; those of a module see that module."""
    return {name: getattr(wsi_ats, name) for name in wsi_ats.__all__} if module == "wsi_ats" else {}


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [len(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name))]
    assert sum(examples) > 30
