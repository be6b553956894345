"""What is in a weight file, and what would load where: python -m fcn_jax.weights inspect|convert FILE …

    inspect FILE [--model NAME]              names, shapes and types; with a model, where each would go
    convert FILE OUT.safetensors             the same arrays under the same names in one safetensors file

NAME is a model's or a release's name. Nothing of a file is executed, whatever it holds.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from fcn_jax import command_line, weights
from fcn_jax.errors import ConfigError, WeightFileError
from fcn_jax.weights import safetensors_file
from fcn_jax.weights.files import opened
from fcn_jax.weights.formats import format_of
from fcn_jax.weights.layout import describe
from fcn_jax.weights.names import name_blobs

USAGE = "python -m fcn_jax.weights inspect FILE [--model NAME], or convert FILE OUT.safetensors"


def inspect(path: str, model: str | None) -> int:
    """Prints the table of a file's arrays; gives 1 where they do not fit the model."""
    with opened(path) as file:
        kind = format_of(file)
    blobs = weights.read(path)
    named = name_blobs(blobs)
    places = {named.file_names.get(name, name): name for name in named.blobs}
    width = max(map(len, blobs))
    print(f"{path}: {kind}, {len(blobs)} arrays, {sum(blob.size for blob in blobs.values()):,} values")
    for name, blob in blobs.items():
        place = f"  → {places[name]}" if places[name] != name else ""
        print(f"  {name:<{width}}  {describe(blob.shape):<16} {blob.dtype}{place}")
    spec = weights.expected_input(blobs, model or "")
    told = f"names as {named.origin.name} gives them; " if named.file_names else ""
    print(f"{told}expects {spec.order} minus {_numbers(spec.mean)}, times {_numbers(spec.scale)}")
    if model is None:
        return 0
    try:
        net = weights.load_net(path, model)
    except WeightFileError as error:
        print(f"does not load as {model}: {error}")
        return 1
    print(f"loads as {model}: {net.report}")
    return 0


def convert(path: str, target: str, overwrite: bool) -> int:
    """Writes the arrays of a file as safetensors."""
    if Path(target).exists() and not overwrite:
        raise WeightFileError(f"{target} exists: choose another name, or say --overwrite")
    if Path(target).suffix != ".safetensors":
        raise ConfigError(f"{target}: what is written is safetensors, so let its name end in .safetensors")
    blobs = weights.read(path)
    safetensors_file.write(target, blobs, {"source": Path(path).name})
    print(f"{target}: {len(blobs)} arrays, {sum(blob.size for blob in blobs.values()):,} values")
    return 0


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.6g}' for value in np.asarray(values, float))})"


def main(arguments: Sequence[str]) -> int:
    """The command."""
    values = flags.FLAGS
    match arguments:
        case ["inspect", path]:
            return inspect(path, values.model)
        case ["convert", path, target]:
            return convert(path, target, values.overwrite)
    raise ConfigError(f"usage: {USAGE}")


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "The model or release that the file should be, for example voc-fcn8s.")
    flags.DEFINE_bool("overwrite", False, "Replace the target if it is there already.")
    command_line.run(main)
