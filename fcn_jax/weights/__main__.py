"""What is in a weight file, and what would load where: python -m fcn_jax.weights inspect|convert FILE …

    inspect FILE [--model NAME [--skip …]]   names, shapes and types; with a model, where each would go
    convert FILE OUT.safetensors             the same arrays under the same names in one safetensors file

NAME is a model's or a release's name. Nothing of a file is executed, whatever it holds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from fcn_jax import command_line, state, weights
from fcn_jax.errors import ConfigError, WeightFileError
from fcn_jax.weights import safetensors_file
from fcn_jax.weights.files import opened
from fcn_jax.weights.formats import format_of
from fcn_jax.weights.layout import describe
from fcn_jax.weights.names import blob_name, name_blobs

USAGE = "python -m fcn_jax.weights inspect FILE [--model NAME], or convert FILE OUT.safetensors"


def inspect(path: str, model: str | None, skip: Sequence[str] = ()) -> int:
    """Prints the table of a file's arrays, and into which parameter of the model each goes; gives 1 where they do not.

    Without `skip` the model is the net that the file tells; with it, one of the default size, whose layers of these
    names start anew, as `init.skip` has it.
    """
    with opened(path) as file:
        kind = format_of(file)
    blobs = weights.read(path)
    named = name_blobs(blobs)
    places = {named.file_names.get(name, name): name for name in named.blobs}
    verdict, targets = None, {}
    if model is not None:
        try:
            verdict, targets = _loaded(path, blobs, model, skip)
        except WeightFileError as error:
            verdict = f"does not load as {model}: {error}"
    width = max(map(len, blobs))
    print(f"{path}: {kind}, {len(blobs)} arrays, {sum(blob.size for blob in blobs.values()):,} values")
    for name, blob in blobs.items():
        place = places.get(name, name)  # counters of the training alone have none
        place = targets.get(place, place)
        print(f"  {name:<{width}}  {describe(blob.shape):<16} {blob.dtype}{f'  → {place}' if place != name else ''}")
    spec = weights.expected_input(blobs, model or "")
    told = f"names as {named.origin.name} gives them; " if named.file_names else ""
    print(f"{told}expects {spec.order} minus {_numbers(spec.mean)}, times {_numbers(spec.scale)}")
    if verdict is not None:
        print(verdict)
    return 1 if model is not None and not targets else 0


def _loaded(
    path: str, blobs: Mapping[str, np.ndarray], model: str, skip: Sequence[str]
) -> tuple[str, Mapping[str, str]]:
    """What a transfer reports, and the parameter, with its shape, that each blob becomes."""
    if skip:
        module, classes = weights.default_net(model)
        variables, report = weights.transfer(blobs, state.abstract_variables(module), module, skip, path, model)
        verdict = f"starts {model} with {classes} classes: {report}"
    else:
        net = weights.load_net(path, model)
        variables, report, verdict = net.variables, net.report, f"loads as {model}: {net.report}"
    targets = {
        blob_name(layer, leaf): f"{layer}/{leaf} {describe(value.shape)}"
        for tree in variables.values()
        for layer, leaves in tree.items()
        for leaf, value in leaves.items()
        if f"{layer}.{leaf}" not in report.kept
    }
    return verdict, targets | dict.fromkeys(report.confirmed, "what the net computes") | dict.fromkeys(
        report.unread, "not read"
    )


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
            return inspect(path, values.model, values.skip)
        case ["convert", path, target]:
            return convert(path, target, values.overwrite)
    raise ConfigError(f"usage: {USAGE}")


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "The model or release that the file should be, for example voc-fcn8s.")
    flags.DEFINE_list("skip", [], "With --model: layers that start anew or stay unread, as init.skip: fc8,score_*.")
    flags.DEFINE_bool("overwrite", False, "Replace the target if it is there already.")
    command_line.run(main)
