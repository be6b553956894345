"""Prints lines per file and totals for the package, the configs and the tests: size is looked at, nobody golfs."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "package": ("fcn_jax", "train.py", "evaluate.py"),
    "configs": ("configs",),
    "benchmarks": ("benchmarks",),
    "tests": ("tests",),
    "tools": ("tools",),
}


def python_files(name: str) -> list[Path]:
    path = ROOT / name
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def main() -> None:
    totals = {}
    for part, names in PARTS.items():
        sizes = {path: len(path.read_text().splitlines()) for name in names for path in python_files(name)}
        for path, lines in sizes.items():
            print(f"{lines:6} {path.relative_to(ROOT)}")
        totals[part] = (sum(sizes.values()), len(sizes))
    print("\n" + "\n".join(f"{lines:6} lines in {count:3} files  {part}" for part, (lines, count) in totals.items()))
    print(f"{totals['tests'][0] / max(totals['package'][0], 1):6.2f} lines of test per line of package")


if __name__ == "__main__":
    main()
