"""Plans side by side, in Markdown: python tools/plans_table.py PLAN.json …, files of `python -m fcn_jax.plan --json`.

A line for what was compiled, and one for each of the slices that are named by --derive, which follow from it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fcn_jax.errors import UserError

HEAD = (
    "| experiment | slice | images a chip | memory, GiB | temporaries, GiB | TFLOP | moved, GiB | least time | bound "
    "by | images/s at most | largest batch a chip | |"
)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--derive", default="", help="slices, as v5e:1x1,v5e:16x16")
    options = parser.parse_args()
    print(HEAD)
    print("|---" * (HEAD.count("|") - 1) + "|")
    derive = [name for name in options.derive.split(",") if name]
    try:
        for path in options.plans:
            print("\n".join(rows(read(path), derive)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read(path: Path) -> dict[str, Any]:
    """A plan. Raises UserError for what is none."""
    try:
        plan = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(plan, dict) or "roofline" not in plan.get("step", {}) or "slices" not in plan:
        raise UserError(
            f"{path} is no plan of a step on a slice, as --topology=local, --latency, --compare and --sweep are none"
        )
    return plan


def rows(plan: dict[str, Any], derive: list[str]) -> Iterator[str]:
    """The lines of one plan. Raises UserError for slices that do not follow from it."""
    if unknown := set(derive) - {each["topology"] for each in plan["slices"]}:
        raise UserError(f"--derive={','.join(sorted(unknown))}: nothing is known from a plan of {plan['topology']}")
    name = f"{plan['name']}, {plan['dtype']}, {'×'.join(map(str, plan['size']))}"
    largest = plan.get("largest")
    if not largest:
        most = "–"
    elif largest["promised"]:
        most = f"{largest['promised']} (predicted)"
    else:
        most = f"{largest['images_a_device']} ({'exact' if largest['exact'] else 'compiled'})"
    yield _row(name, plan["topology"], plan["step"], most, "compiled")
    if "largest_step" in plan:
        yield _row(name, plan["topology"], plan["largest_step"], "", "compiled")
    for other in plan["slices"]:
        if other["topology"] in derive and other["derived"]:
            line = {key: other[key] for key in ("step", "bound", "images_per_second")}
            yield _row(name, other["topology"], plan["step"] | {"roofline": line}, most, "derived")


def _row(name: str, topology: str, step: dict[str, Any], most: str, how: str) -> str:
    memory, line, done = step["memory"], step["roofline"], step["operations"]
    cells = [
        name,
        topology,
        step["images_a_device"],
        f"{memory['total'] / 2**30:.2f}",
        f"{memory['temporaries'] / 2**30:.2f}",
        f"{(done['convolutions'] + done['products']) / 1e12:.2f}",
        f"{sum(step['traffic'].values()) / 2**30:.1f}",
        f"{1e3 * line['step']:.1f} ms",
        line["bound"],
        f"{line['images_per_second']:,.0f}",
        most,
        how,
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
