"""What holds in every test: eight virtual CPU devices, and JAX at its strictest, which users do not pay for."""

import atexit
import functools
import gc
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

# The backend reads these once, when it starts; what the caller has set in XLA_FLAGS stays. The tests compile thousands
# of programs and run each once or twice: LLVM's second level and XLA's older code for fused loops halve the time.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=2",
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
    ]
)
# What one process has compiled the others find: both workers, and the programs that tests start. CI names a folder of
# its own, which its tiers share.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fcn_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import optax
import pytest

# In this process only, not in the environment: programs that tests start run as users run them.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def _promote_as_written_for(new):
    """Optax's own updates mix dtypes (Adam's step count, accumulation) and run as for users; others stay strict."""

    def create(cls, init, update):
        mode = "standard" if update.__module__.startswith("optax.") else "strict"

        @functools.wraps(update)
        def scoped(*args, **kwargs):
            with jax.numpy_dtype_promotion(mode):
                return update(*args, **kwargs)

        return new(cls, init, scoped)

    return create


optax.GradientTransformation.__new__ = _promote_as_written_for(optax.GradientTransformation.__new__)

# Tracing makes objects by the million and hardly a cycle among them: looking for some took an eighth of the time.
gc.set_threshold(500_000, 10, 100)

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--accept", action="store_true", help="write golden files anew; review the diff as text")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "shared" in item.fixturenames:
            item.add_marker("parity")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and item.get_closest_marker("parity") and os.environ.get("FCN_JAX_REQUIRE_SHARED") == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and FCN_JAX_REQUIRE_SHARED=1 forbids it: {report.longrepr[2]}"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data: FCN_JAX_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("FCN_JAX_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "parity").is_dir():
        pytest.skip("shared data not found")
    return folder


@pytest.fixture
def libtpu() -> None:
    """The test compiles for TPUs: it is skipped where their compiler is missing, or fails where it must be there."""
    if importlib.util.find_spec("libtpu") is None:
        if os.environ.get("FCN_JAX_REQUIRE_LIBTPU") == "1":
            pytest.fail("libtpu is not installed, and FCN_JAX_REQUIRE_LIBTPU=1 asks for it")
        pytest.skip("libtpu is not installed")


@pytest.fixture(scope="module")
def fast_compilation():
    """Programs are compiled with as little optimisation as there is."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def golden(request):
    """`golden(name, value)`: value equals tests/golden/<name>.json, which `pytest --accept` writes."""

    def check(name: str, value) -> None:
        path = GOLDEN / f"{name}.json"
        if request.config.getoption("--accept"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
        assert path.is_file(), f"no {path.name}: run pytest --accept and review it"
        assert json.loads(path.read_text()) == value, f"{path.name} differs: if meant, run pytest --accept"

    return check
