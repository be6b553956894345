"""The house keeps its shape: imports point down, TensorFlow is nowhere, and `import fcn_jax` is light."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    0: "ops losses metrics uncertainty labels inputs errors fields",
    1: "models data",
    2: "weights config steps state statistics optim hosts parallel checkpoints report visualize preemption "
    "compilations command_line",
    3: "plan training assembly transplant workdirs progress evaluation predict proposals picture_files",
    4: "train evaluate configs benchmarks",
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
LEAVES = {"labels", "inputs", "errors"}  # what the rest of floor 0 may import
# Room: what it never imports, beside what the floors forbid.
FORBIDDEN = {
    "data": {"jax", "jaxlib", "flax", "optax", "orbax", "fcn_jax.models"},
    "models": {"fcn_jax.data"},
}
FORBIDDEN_WORDS = {"util", "utils", "helper", "helpers", "common", "base", "manager", "managers"}


def program_files(root: Path = ROOT) -> list[Path]:
    scripts = [path for path in (root / "train.py", root / "evaluate.py") if path.is_file()]
    return [
        path for part in ("fcn_jax", "configs", "benchmarks") for path in sorted((root / part).rglob("*.py"))
    ] + scripts


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """`fcn_jax.ops.grid` is of the room `ops`; `configs.fcn8s` of `configs`; the bare package of none ("").

    A room's command, `fcn_jax.data.__main__`, stands where the commands do.
    """
    parts = module.split(".")
    if parts[-1] == "__main__":
        return "evaluate"
    return ".".join(parts[1:2]) if parts[0] == "fcn_jax" else parts[0]


def imports(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Absolute names of everything a module imports, also inside functions; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join(above + ([node.module] if node.module else []))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def complaints(module: str, imported: list[str]) -> list[str]:
    """What is wrong with a module's imports, a sentence each."""
    found, here = [], room(module)
    if here not in FLOOR and module != "fcn_jax":
        return [f"{module} stands on no floor: add it to FLOORS"]
    for name in imported:
        if is_within(name, "tensorflow"):
            found.append(f"{module} imports {name}: no TensorFlow")
        found += [f"{module} must not import {name}" for bad in FORBIDDEN.get(here, ()) if is_within(name, bad)]
        there = room(name) if name.split(".")[0] in ("fcn_jax", *FLOORS[4].split()) else ""
        if there in FLOOR and there != here:
            if module == "fcn_jax" or FLOOR[there] > FLOOR[here]:
                found.append(f"{module} imports {name}: the arrow goes up")
            elif FLOOR[here] == 0 and there not in LEAVES:
                found.append(f"{module} imports {name}: floor 0 imports {', '.join(sorted(LEAVES))} only")
        if is_within(name, "fcn_jax.models") and here == "weights" and module != "fcn_jax.weights":
            found.append(f"{module} imports {name}: readers know no models, only weights/__init__ does")
    return found


def test_the_rules_see_what_they_forbid():
    assert complaints("fcn_jax.losses", ["numpy", "fcn_jax.labels.IGNORE", "jax.numpy"]) == []
    assert "goes up" in complaints("fcn_jax.ops.grid", ["fcn_jax.models.fcn"])[0]
    assert "goes up" in complaints("fcn_jax.training", ["configs.fcn8s"])[0]
    assert "goes up" in complaints("fcn_jax", ["fcn_jax.models"])[0]
    assert "floor 0 imports" in complaints("fcn_jax.losses", ["fcn_jax.metrics.confusion"])[0]
    assert "must not import jax" in complaints("fcn_jax.data.loader", ["jax.numpy"])[0]
    assert "must not import" in complaints("fcn_jax.models.vgg", ["fcn_jax.data.folder"])[0]
    assert "no TensorFlow" in complaints("train", ["tensorflow.io"])[0]
    assert "readers know no models" in complaints("fcn_jax.weights.caffemodel", ["fcn_jax.models.create"])[0]
    assert "no floor" in complaints("fcn_jax.trainer", [])[0]
    assert complaints("fcn_jax.data.voc", ["tensorflow_datasets"]) == []


def test_relative_and_nested_imports_are_resolved():
    source = "def f():\n    from . import loader\n    from ..labels import IGNORE\n    import jax.numpy as jnp\n"
    assert list(imports(source, "fcn_jax.data.folder")) == ["fcn_jax.data.loader", "fcn_jax.labels.IGNORE", "jax.numpy"]
    assert list(imports("from . import loader", "fcn_jax.data", is_package=True)) == ["fcn_jax.data.loader"]


def test_imports_point_down():
    files = program_files()
    assert len(files) > 5
    found = []
    for path in files:
        module = module_name(path)
        found += complaints(module, list(imports(path.read_text(), module, path.name == "__init__.py")))
    assert not found, "\n".join(found)


def test_rooms_of_one_floor_import_each_other_one_way():
    arrows: dict[str, set[str]] = {}
    for path in program_files():
        module = module_name(path)
        names = imports(path.read_text(), module, path.name == "__init__.py")
        arrows.setdefault(room(module), set()).update(room(name) for name in names if is_within(name, "fcn_jax"))

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        return any(
            there == goal or (there not in seen and reaches(there, goal, seen | {there}))
            for there in arrows.get(start, set()) - {start}
        )

    circles = [name for name in arrows if name and reaches(name, name, {name})]
    assert not circles, f"these rooms import each other in a circle: {circles}"


def test_files_are_named_for_what_they_hold():
    files = [path.relative_to(ROOT) for path in program_files()]
    files += [path.relative_to(ROOT) for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.py")]
    drawers = [str(path) for path in files if FORBIDDEN_WORDS & set("_".join(path.with_suffix("").parts).split("_"))]
    assert not drawers, f"a drawer for everything: {drawers}"


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_is_light():
    heavy = "{'jax', 'numpy', 'flax', 'optax', 'orbax', 'grain', 'cv2', 'PIL', 'ml_collections', 'tensorflow_datasets'}"
    assert run_python(f"import fcn_jax, sys; print(sorted({heavy} & set(sys.modules)))") == "[]"


@pytest.mark.parametrize("program", ["fcn_jax", "train", "evaluate"])
def test_no_process_imports_tensorflow(program, tmp_path):
    """A decoy on the path would be imported by anything that so much as tries; it tells."""
    (tmp_path / "tensorflow.py").write_text("import sys; sys.stdout.write('tensorflow was imported')\n")
    modules = [name for name in map(module_name, program_files()) if is_within(name, program)]
    assert modules
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    assert run_python(code + "print('tensorflow' in sys.modules)", PYTHONPATH=str(tmp_path)) == "False"


def test_data_opens_no_device():
    """Grain imports jax where it is installed; that is harmless as long as nothing starts a backend."""
    modules = [module_name(path) for path in program_files() if room(module_name(path)) == "data"]
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "bridge = sys.modules.get('jax._src.xla_bridge')\n"
    assert run_python(code + "print(bool(bridge and bridge.backends_are_initialized()))") == "False"
