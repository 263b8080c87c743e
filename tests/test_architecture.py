"""The layering rule, held against the code's own imports."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

import pyro_ebm

PACKAGE = "pyro_ebm"
ROOT = Path(pyro_ebm.__file__).parent

LAYERS = {
    "_core": 0,
    "energies": 1,
    "graphs": 2,
    "mcmc": 2,
    "diagnostics": 2,
    "models": 3,
    "partition": 3,
    "objectives": 3,
    "distributions": 3,
    "infer": 4,
}

# Where each dependency may be imported; a trailing * is a prefix of the file's name.
DOORS = {
    "pyro": ("distributions/", "infer/", "graphs/"),
    "networkx": ("graphs/", "diagnostics/plots*"),
    "opt_einsum": ("graphs/", "diagnostics/plots*"),
    "torchdiffeq": ("distributions/",),
    "arviz": ("diagnostics/",),
    "xarray": ("diagnostics/",),
    "h5netcdf": ("diagnostics/",),
    "zarr": ("diagnostics/",),
    "matplotlib": ("diagnostics/",),
}
INSIDE_FUNCTIONS = {"arviz", "xarray", "h5netcdf", "zarr", "matplotlib"}


@dataclass(frozen=True)
class Import:
    """One imported module: where, and whether it is deferred to a call or for the type checker alone."""

    module: str
    line: int
    in_function: bool
    for_types: bool


def violations(source: str, path: str) -> list[str]:
    """What a file breaks, given its source and its path below the package, `energies/energy.py`."""
    tree = ast.parse(source)
    where = PurePosixPath(path)
    found = [f"{path}: a file has one subject and is named for it"] if where.name == "utils.py" else []
    package = where.parts[0] if len(where.parts) > 1 else ""
    if package not in LAYERS and path != "__init__.py":
        found.append(f"{path}: lies in no layer")
    for node in ast.walk(tree):
        line = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Assert):
            found.append(f"{line}: assert")
        if isinstance(node, ast.ExceptHandler) and all(map(_does_nothing, node.body)):
            found.append(f"{line}: an error is swallowed")
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"{line}: a relative import")
    for each in _imports(tree, in_function=False, for_types=False):
        found += [f"{path}:{each.line}: {problem}" for problem in _import_problems(each, package, path)]
    return found


def _does_nothing(statement: ast.stmt) -> bool:
    literal = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Pass) or literal


def _imports(node: ast.AST, *, in_function: bool, for_types: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, in_function, for_types)
    elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
        for name in (
            [f"{node.module}.{alias.name}" for alias in node.names] if node.module == PACKAGE else [node.module]
        ):
            yield Import(name, node.lineno, in_function, for_types)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        module = node.args[0] if node.args else None
        name = module.value if isinstance(module, ast.Constant) else "<computed>"
        yield Import(str(name), node.lineno, in_function, for_types)
    typing_only: list[ast.stmt] = []
    if isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
        typing_only = node.body
    inner = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, in_function=inner, for_types=for_types or child in typing_only)


def _import_problems(each: Import, package: str, path: str) -> Iterator[str]:
    top, *rest = each.module.split(".")
    if top == "<computed>":
        yield "imports a module whose name is computed"
    if top == PACKAGE and package:
        target = rest[0] if rest else ""
        if target not in LAYERS:
            yield f"imports {each.module}, which pulls in every layer: name the module where it is defined"
        elif target != package and package in LAYERS and LAYERS[target] >= LAYERS[package]:
            yield f"{package} ({LAYERS[package]}) imports {target} ({LAYERS[target]}): imports point strictly down"
    doors = DOORS.get(top)
    if doors is None:
        return
    if not any(path.startswith(door.rstrip("*")) for door in doors):
        yield f"{top} comes in only by {', '.join(doors)}"
    if top in INSIDE_FUNCTIONS and not each.in_function and not each.for_types:
        yield f"{top} is imported only inside functions"


FILES = sorted(str(file.relative_to(ROOT).as_posix()) for file in ROOT.rglob("*.py"))


def test_the_package_is_found() -> None:
    assert "__init__.py" in FILES
    assert "energies/energy.py" in FILES
    folders = {file.split("/")[0] for file in FILES if "/" in file}
    assert folders <= LAYERS.keys()


@pytest.mark.parametrize("path", FILES)
def test_file_keeps_the_rules(path: str) -> None:
    assert violations((ROOT / path).read_text(encoding="utf-8"), path) == []


# The test of the test

GUARDED = "if TYPE_CHECKING:\n    import {}"
DEFERRED = "def f():\n    import {}"
METHOD = "class A:\n    def f(self):\n        import {}"

BROKEN = {
    "up one layer": ("energies/a.py", "from pyro_ebm.mcmc.nuts import NUTS", "strictly down"),
    "up from the ground": ("_core/a.py", "import pyro_ebm.energies.energy", "strictly down"),
    "up inside a function": ("mcmc/a.py", DEFERRED.format("pyro_ebm.infer"), "strictly down"),
    "up in a method": ("mcmc/a.py", METHOD.format("pyro_ebm.infer"), "strictly down"),
    "up for types": ("mcmc/a.py", GUARDED.format("pyro_ebm.infer.mcmc"), "strictly down"),
    "up by a string": ("mcmc/a.py", "import_module('pyro_ebm.infer')", "strictly down"),
    "up from a subfolder": ("mcmc/deep/a.py", "import pyro_ebm.infer", "strictly down"),
    "up by the package's name": ("mcmc/a.py", "from pyro_ebm import infer", "strictly down"),
    "sideways": ("graphs/a.py", "from pyro_ebm.mcmc import run", "strictly down"),
    "sideways on layer three": ("models/a.py", "from pyro_ebm.distributions import d", "strictly down"),
    "through the front door": ("infer/a.py", "from pyro_ebm import Energy", "every layer"),
    "the whole package": ("infer/a.py", "import pyro_ebm", "every layer"),
    "a computed name": ("infer/a.py", "importlib.import_module(name)", "computed"),
    "relative": ("mcmc/a.py", "from .nuts import NUTS", "relative"),
    "relative to a parent": ("mcmc/a.py", "from .. import energies", "relative"),
    "pyro in a kernel": ("mcmc/a.py", "import pyro.distributions as dist", "pyro comes in only by"),
    "from pyro in an energy": ("energies/a.py", "from pyro.ops import stats", "pyro comes in only by"),
    "pyro deferred": ("energies/a.py", DEFERRED.format("pyro"), "pyro comes in only by"),
    "pyro in diagnostics": ("diagnostics/plots.py", "import pyro", "pyro comes in only by"),
    "pyro at the top": ("__init__.py", "import pyro", "pyro comes in only by"),
    "networkx in a model": ("models/a.py", "import networkx as nx", "networkx comes in only by"),
    "networkx in diagnostics": ("diagnostics/arviz.py", "import networkx", "networkx comes in only by"),
    "opt_einsum in partition": ("partition/a.py", "from opt_einsum import contract", "opt_einsum comes in only by"),
    "arviz in infer": ("infer/a.py", DEFERRED.format("arviz"), "arviz comes in only by"),
    "arviz for types in infer": ("infer/a.py", GUARDED.format("arviz"), "arviz comes in only by"),
    "arviz on import": ("diagnostics/a.py", "import arviz", "inside functions"),
    "xarray on import": ("diagnostics/a.py", "from xarray import Dataset", "inside functions"),
    "matplotlib in a class body": (
        "diagnostics/plots.py",
        "class A:\n    import matplotlib.pyplot",
        "inside functions",
    ),
    "matplotlib in try": ("diagnostics/a.py", "try:\n    import matplotlib\nfinally:\n    f()", "inside functions"),
    "matplotlib when not checking": (
        "diagnostics/a.py",
        "if TYPE_CHECKING:\n    f()\nelse:\n    import matplotlib",
        "inside functions",
    ),
    "assert": ("mcmc/a.py", "def f(x):\n    assert x > 0", "assert"),
    "swallowed": ("mcmc/a.py", "try:\n    f()\nexcept ValueError:\n    pass", "swallowed"),
    "swallowed by dots": ("mcmc/a.py", "try:\n    f()\nexcept:\n    ...", "swallowed"),
    "utils": ("mcmc/utils.py", "", "one subject"),
    "no layer": ("helpers/a.py", "", "no layer"),
    "loose file": ("helpers.py", "", "no layer"),
}

SOUND = {
    "down": ("mcmc/a.py", "from pyro_ebm._core.ravel import Raveler\nfrom pyro_ebm.energies.energy import Energy"),
    "within": ("mcmc/a.py", "from pyro_ebm.mcmc.metric import Metric"),
    "top": ("__init__.py", "from pyro_ebm.energies import *\nfrom pyro_ebm.infer import MCMC"),
    "down by the package's name": ("infer/a.py", "from pyro_ebm import energies, mcmc"),
    "pyro by its doors": ("infer/a.py", "import pyro\nfrom pyro.poutine import trace"),
    "pyro in graphs": ("graphs/a.py", "import pyro.ops.contract, networkx, opt_einsum"),
    "networkx for drawing": ("diagnostics/plots.py", "import networkx as nx"),
    "networkx for more drawing": ("diagnostics/plots/graph.py", "from networkx import draw"),
    "arviz deferred": ("diagnostics/a.py", DEFERRED.format("arviz")),
    "arviz deferred in a method": ("diagnostics/a.py", METHOD.format("arviz")),
    "xarray for types": ("diagnostics/a.py", GUARDED.format("xarray")),
    "matplotlib for types": ("diagnostics/a.py", "if typing.TYPE_CHECKING:\n    from matplotlib.axes import Axes"),
    "free": ("mcmc/a.py", "import math\nimport torch\nfrom tqdm.auto import tqdm"),
    "handled": ("mcmc/a.py", "try:\n    f()\nexcept ValueError as error:\n    raise KeyError from error"),
    "a word in a docstring": ("mcmc/a.py", '"""import pyro; assert; except: pass"""'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found(name: str) -> None:
    path, source, expected = BROKEN[name]
    found = violations(source, path)
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize("name", SOUND)
def test_sound_code_passes(name: str) -> None:
    path, source = SOUND[name]
    assert violations(source, path) == []
