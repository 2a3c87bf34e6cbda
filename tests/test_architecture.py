"""The house: arrows between modules point one way, and each foreign library has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from wsi_ats.tasks.registry import TASKS

ROOT = Path(__file__).parents[1]

# From the ground up. A module may import from the layers above its own line, and from its own layer.
LAYERS = {
    "what can go wrong; places; files that are whole or not there": ["errors", "geometry", "files"],
    "what is known of published encoders, as data": ["encoders"],
    "all choices of a run": ["settings"],
    "slides, each format in one file": ["slides"],
    "what is predicted": ["tasks"],
    "which slides, and their labels": ["tables"],
    "areas of slides that people drew": ["annotations"],
    "the first view of a slide: thumbnail, tissue, artefacts": ["overview"],
    "features of all tiles of a slide, as labs have them": ["bags"],
    "what is kept of a slide that was scored; files for other programs": ["results"],
    "scored slides in a web page": ["viewer"],
    "torch, without slides": ["nn"],
    "networks meet slides: each kind of model in one file, and models on disk": ["models"],
    "learning from labels": ["training"],
    "the names that users see": ["__init__"],
    "helpers for tests, usable by other projects": ["testing"],
    "stages on Dask; nothing in the library knows of them": ["pipelines"],
}

# Each foreign library and the modules that may import it, with the reason where there are several.
DOORS = {
    "openslide": ["wsi_ats.slides.openslide"],
    "tifffile": ["wsi_ats.slides.tiff_index", "wsi_ats.testing.synthetic"],  # the second writes files
    "imagecodecs": ["wsi_ats.slides.codecs", "wsi_ats.testing.bank"],  # the second makes slides of JPEG
    "bokeh": ["wsi_ats.viewer.plot"],
    "tornado": ["wsi_ats.viewer.server"],
    "jinja2": ["wsi_ats.results.report"],
    "simplejpeg": ["wsi_ats.slides.jpeg"],
    "fsspec": ["wsi_ats.slides.remote"],
    "h5py": ["wsi_ats.bags.hdf5", "wsi_ats.bags.writing"],  # the second writes files
    "PIL": ["wsi_ats.slides.resample", "wsi_ats.slides.colour"],  # the second turns colours by a profile
    "skimage": ["wsi_ats.overview.tissue"],
    "scipy": [
        "wsi_ats.training.distillation",
        "wsi_ats.overview.tissue",
        "wsi_ats.testing.layout",
        "wsi_ats.testing.synthetic",
        "wsi_ats.testing.textures",
    ],
    "sklearn": ["wsi_ats.tasks.curves", "wsi_ats.tables.splits"],  # of each what the name says
    # Areas that people drew, and outlines of tissue.
    "shapely": ["wsi_ats.annotations.shapes", "wsi_ats.results.exports.outlines"],
    "defusedxml": ["wsi_ats.annotations.xml"],
    "lifelines": ["wsi_ats.tasks.concordance"],
    "matplotlib": ["wsi_ats.results.page", "wsi_ats.results.plots"],  # pages of pictures, plots of numbers
    "timm": ["wsi_ats.nn.backbone"],
    # A model on disk, and the error of a backbone's weights file.
    "safetensors": ["wsi_ats.models.checkpoints", "wsi_ats.nn.backbone"],
    "psutil": ["wsi_ats.nn.memory"],
    "pyarrow": ["wsi_ats.tables.files"],
    "pydicom": ["wsi_ats.slides.dicom", "wsi_ats.testing.dicom"],  # the second writes files
    "highdicom": ["wsi_ats.results.exports.dicom"],
    "anndata": ["wsi_ats.results.exports.anndata"],
    "spatialdata": ["wsi_ats.results.exports.spatialdata"],
    "geopandas": ["wsi_ats.results.exports.spatialdata"],  # whose shapes are its tables
    "filelock": ["wsi_ats.files"],
    # Settings as they are, and with comments.
    "tomli_w": ["wsi_ats.settings.description", "wsi_ats.settings.settings"],
    "pytest": ["wsi_ats.testing.contract"],
    # Reading (its levels, stores), writing (shard by shard), and a codec that Zarr itself lacks.
    "zarr": [
        *("wsi_ats.slides.zarr", "wsi_ats.slides.zarr_levels", "wsi_ats.slides.zarr_store"),
        *("wsi_ats.slides.pyramid", "wsi_ats.slides.shards", "wsi_ats.slides.zarr_jpeg"),
    ],
    # The client and its futures: of whole slides, and of tiles.
    "dask": ["pipelines._cluster", "pipelines._readers"],  # the second counts cores
    # A cluster, its workers, tiles, slides, and the work on one slide.
    "distributed": [
        *("pipelines._cluster", "pipelines._readers", "pipelines._tasks"),
        *("pipelines._work", "pipelines._workers"),
    ],
    # The commands, the options they share, and the frame that they run in.
    "typer": [
        "pipelines._app",
        "pipelines._arguments",
        "pipelines._command",
        "pipelines._commands_with_scores",
    ],
    "rich": ["pipelines._console"],
    "prometheus_client": ["pipelines._metrics"],
}
# Languages that many speak: arrays everywhere; tensors in these.
TENSORS = [
    "wsi_ats.tasks",
    "wsi_ats.bags.tensors",
    "wsi_ats.nn",
    "wsi_ats.models",
    "wsi_ats.training",
    "wsi_ats.testing.enumeration",
]
TENSORS += [
    "pipelines._tensorboard",
    "pipelines._fitting",
    "pipelines._batches",
    "pipelines.embed",
    "pipelines.score",
    "pipelines._demo_arms",
]  # where a device is chosen


def modules() -> dict[str, Path]:
    found = {}
    for package in ("wsi_ats", "pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return found


MODULES = modules()


def is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@cache
def imports(module: str, *, types: bool = True) -> tuple[str, ...]:
    """Modules that a module imports, also inside functions; for types alone too, if ``types``."""
    return tuple(imports_in(ast.parse(MODULES[module].read_text(encoding="utf-8")), module, types))


def imports_in(tree: ast.AST, module: str, types: bool) -> Iterator[str]:
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by a relative name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES or f"{whole}.__init__" in MODULES else str(node.module)
        todo += [] if is_typing(node) and not types else list(ast.iter_child_nodes(node))


def layer(module: str) -> int:
    package, *rest = module.split(".")
    name = "pipelines" if package == "pipelines" else (rest[0] if rest else "__init__")
    (found,) = [i for i, names in enumerate(LAYERS.values()) if name in names] or [None]
    assert found is not None, f"{module} is in no layer: give it one in this table"
    return found


def ours(name: str) -> bool:
    return name.split(".")[0] in {"wsi_ats", "pipelines"}


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_to_lower_layers_and_to_the_own(module):
    for name in imports(module):
        if ours(name):
            assert layer(name) <= layer(module), f"{module} imports {name}, which is above it"


def test_there_are_no_import_cycles_even_deferred_ones():
    graph = {
        module: {
            each if each in MODULES else f"{each}.__init__"
            for each in imports(module, types=False)
            if ours(each)
        }
        for module in MODULES
    }
    left = dict(graph)
    while left:
        free = [module for module, needs in left.items() if not needs & left.keys()]
        assert free, f"these import one another: {sorted(left)}"
        for module in free:
            del left[module]


@pytest.mark.parametrize("library", DOORS)
def test_a_foreign_library_is_imported_in_one_file(library):
    importers = [m for m in MODULES if library in {name.split(".")[0] for name in imports(m)}]
    assert sorted(importers) == sorted(DOORS[library])


def test_every_foreign_library_is_in_the_table():
    known = {*DOORS, *sys.stdlib_module_names, "numpy", "torch", "wsi_ats", "pipelines"}
    for module in MODULES:
        assert {name.split(".")[0] for name in imports(module)} <= known, module


def test_torch_is_imported_only_where_it_is_needed():
    for module in MODULES:
        if "torch" in {name.split(".")[0] for name in imports(module)}:
            assert any(module == name or module.startswith(f"{name}.") for name in TENSORS), module


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("wsi_ats.nn.")])
def test_networks_import_only_torch_timm_errors_and_data_of_encoders(module):
    for name in imports(module):
        top = name.split(".")[0]
        allowed = top in sys.stdlib_module_names or top in {"torch", "timm", "safetensors", "psutil"}
        ours_too = name in {"wsi_ats.errors", "wsi_ats.encoders"} or name.startswith("wsi_ats.nn")
        assert allowed or ours_too, f"{module}: {name}"


# Names of tasks that mean something else: an extra of the package.
NO_TASKS = {
    "wsi_ats.annotations.qupath": ["classification"],
    "wsi_ats.testing.synthetic": ["classification"],
    "pipelines.doctor": ["survival", "survival"],
}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("wsi_ats.tasks.")])
def test_only_tasks_know_a_task_by_name(module):
    """All that depends on a task is in its file; settings, which are below, may list the names."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in TASKS]
    expected = list(TASKS) if module == "wsi_ats.settings.model" else NO_TASKS.get(module, [])
    assert found == expected, (
        f"{module} names a task: ask an attribute of Task, or, if the word means something else, add it to "
        "NO_TASKS"
    )


def test_the_library_imports_neither_stages_nor_test_helpers():
    for module in MODULES:
        if module.startswith("wsi_ats.") and not module.startswith("wsi_ats.testing"):
            for name in imports(module):
                assert not name.startswith(("pipelines", "wsi_ats.testing")), f"{module}: {name}"


HEAVY = {
    *("torch", "timm", "dask", "distributed", "openslide", "skimage", "scipy", "matplotlib", "sklearn"),
    *("lifelines", "pandas", "pyarrow", "zarr", "shapely"),
}


@pytest.mark.parametrize(
    ("statement", "not_loaded"),
    [
        ("import wsi_ats", HEAVY | {"numpy", "tifffile", "PIL", "safetensors"}),
        ("import pipelines.cli", HEAVY | {"numpy", "tifffile"}),
        ("import pipelines.encoders", HEAVY | {"numpy"}),
        ("from wsi_ats import SlideRef, Grid, Settings, Prediction", HEAVY),
        ("from wsi_ats import open_slide, read_tiles, read_manifest", HEAVY - {"pyarrow"}),
        ("from wsi_ats.tasks import registry, targets, trainable", HEAVY),
        ("from wsi_ats.tasks import evaluation, curves", HEAVY),
        ("import pipelines.evaluate, pipelines._evaluation", HEAVY - {"matplotlib", "pyarrow"}),
        (
            "from wsi_ats.overview.overview import read_overview",
            {"torch", "timm", "dask", "distributed", "sklearn", "matplotlib"},
        ),
        (
            "from wsi_ats.nn.backbone import create_backbone as c; c('features:8', pretrained=False)",
            {"timm", "torchvision"},
        ),
    ],
)
def test_an_import_loads_no_heavy_library_that_it_does_not_need(statement, not_loaded):
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(found.stdout.split()) & not_loaded
