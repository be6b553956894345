"""How near the nets are to what Caffe computed: a table of the largest relative differences.

    python tools/parity_table.py SHARED/parity

Each folder there holds a `net.caffemodel` and a `case.npz` with inputs and blobs (NCHW).
"""

import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fcn_jax import weights

FOLDERS = {"vgg16-ilsvrc": "vgg16-ilsvrc-v1"}  # where a release's case has another name


def main() -> None:
    """Prints the table in Markdown."""
    print("| net | blobs compared | largest relative difference | in |\n|---|---|---|---|")
    for release in weights.RELEASES:
        folder = Path(sys.argv[1]) / FOLDERS.get(release, release)
        if not folder.is_dir():
            continue
        model, variables = weights.load_model(folder / "net.caffemodel", release)
        with np.load(folder / "case.npz") as case:
            wanted = {name.partition(".")[2]: case[name] for name in case.files if name.startswith(("out.", "mid."))}
            inputs = [np.moveaxis(case[name], 1, -1) for name in case.files if name.startswith("in.")]
            image = np.concatenate(inputs, axis=-1)
        _, taps = jax.jit(lambda variables, image, model=model: model.apply(variables, image, return_taps=True))(
            variables, image
        )
        differences = {
            # A classifier's blobs `[b c]` are maps of one cell here.
            name: float(np.abs(np.moveaxis(taps[name], -1, 1).reshape(blob.shape) - blob).max() / np.abs(blob).max())
            for name, blob in wanted.items()
        }
        worst = max(differences, key=lambda name: differences[name])
        print(f"| {release} | {len(wanted)} | {differences[worst]:.1e} | {worst} |", flush=True)


if __name__ == "__main__":
    main()
