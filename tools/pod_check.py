"""Compiles the training step of every net for a TPU slice, and says in a line each whether it fits and what limits it.

    python tools/pod_check.py [--topology v5e:4x4] [--results runs/pod_check.jsonl] [NET …]

It can be stopped at any time: what was compiled, by these sources and this compiler, is read from the results and not
compiled again. Exit code 1 tells that a net did not fit or did not compile.
"""

import argparse
import concurrent.futures
import hashlib
import importlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from fcn_jax import models
from fcn_jax.errors import UserError, one_line
from fcn_jax.plan import planning, slices
from fcn_jax.plan.program import REMEMBERED, compiler
from fcn_jax.plan.tables import comparison_lines

ROOT = Path(__file__).parents[1]
# Experiment by the beginning of a net's name, the longest that fits; its model.name becomes the net's.
EXPERIMENTS = {
    "fcn": ("fcn8s", "voc2012"),
    "fcn_alexnet": ("fcn_alexnet", "voc2012"),
    "fcn_googlenet": ("fcn_googlenet", "voc2012"),
    "fcn_resnet": ("fcn_resnet", "voc2012"),
    "segnet": ("segnet", "camvid"),
    "segnet_basic": ("segnet_basic", "camvid"),
    "bayesian_segnet": ("bayesian_segnet", "camvid"),
    "bayesian_segnet_basic": ("segnet_basic", "camvid"),
    "deconvnet": ("deconvnet", "camvid"),
    "deeplab": ("deeplab_largefov", "voc2012"),
}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "pod_check.jsonl")
    parser.add_argument("nets", nargs="*", metavar="NET", help="some nets only; all by default")
    options = parser.parse_args()
    try:
        part = slices.parse(options.topology)
        slices.devices(part)
        if unknown := set(options.nets) - set(models.SEGMENTATION):
            raise UserError(f"no nets: {', '.join(sorted(unknown))}; there are {', '.join(models.SEGMENTATION)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    nets = options.nets or models.SEGMENTATION
    known = dict(read(options.results))
    failed = []
    for place, net in enumerate(nets):
        key = f"{net} {part} {version()}"
        if key not in known:
            known[key] = apart(check, net, part)
            # What may be a fault of the moment is asked for again.
            if "passing" not in known[key]:
                options.results.parent.mkdir(parents=True, exist_ok=True)
                with options.results.open("a") as file:
                    # Behind a line break: a line before that was cut short takes none with it.
                    file.write("\n" + json.dumps({"key": key, "result": known[key]}) + "\n")
        head, line = comparison_lines([known[key]], [net.ljust(max(map(len, nets)))])
        print(line if place else f"{head}\n{line}", flush=True)
        failed += [net] if "memory" not in known[key] else []
    print(f"{len(nets) - len(failed)} of {len(nets)} fit {part}" + (f"; not {', '.join(failed)}" if failed else ""))
    return bool(failed)


def apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What that gives in a process of its own: where the compiler finds itself at fault, it ends the process."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except concurrent.futures.process.BrokenProcessPool:
            return {"fault": "does not compile: the compiler ended the process, and said why above", "passing": True}


def check(net: str, part: slices.Slice) -> dict[str, Any]:
    """The figures of a net's step, or why there are none."""
    file, variant = EXPERIMENTS[max((name for name in EXPERIMENTS if net.startswith(name)), key=len)]
    config = importlib.import_module(f"configs.{file}").get_config(variant)
    config.model.name = net
    try:
        return planning.answer(planning.ask(config, part, remember=REMEMBERED), largest=False)["step"]
    except UserError as error:
        return {"fault": str(error)}
    except jax.errors.JaxRuntimeError as error:
        return {"fault": f"does not compile: {one_line(error, 300)}", "passing": True}


def version() -> str:
    """What the result depends on: our sources, and the compiler."""
    sources = sorted([*(ROOT / "fcn_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    return f"{digest} {compiler()}"


def read(results: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was compiled before; a last line that was cut short is left out."""
    for line in results.read_text().splitlines() if results.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        yield entry["key"], entry["result"]


if __name__ == "__main__":
    sys.exit(main())
