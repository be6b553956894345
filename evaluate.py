"""Scores a run, a released net or a folder of predictions: python evaluate.py --workdir runs/fcn8s --split val."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fcn_jax import command_line, data, evaluation, predict
from fcn_jax import config as experiment
from fcn_jax.errors import ConfigError
from fcn_jax.labels import by_head

predict.define_flags()
CONFIG = config_flags.DEFINE_config_file("config", None, "Whose `data` to score on; by default that of the run.")
SPLIT = flags.DEFINE_string("split", "", "The split to score; data.val_split by default.")
PREDICTIONS = flags.DEFINE_string("predictions", None, "Score this folder of label PNGs, not a net.")
CALIBRATION = flags.DEFINE_bool("calibration", False, "Say how far probabilities can be believed, too.")
OUTPUT = flags.DEFINE_string("output", None, "Where the results go; <workdir>/evaluation by default.")
SAVE_PREDICTIONS = flags.DEFINE_bool("save_predictions", False, "Write the predictions as palette PNGs too.")


def main(arguments: Sequence[str]) -> None:
    """The command."""
    command_line.refuse_arguments(arguments)
    values = flags.FLAGS
    config = command_line.experiment(CONFIG)
    if config is None:
        if values.workdir is None:
            raise ConfigError("name the data by --config FILE.py:VARIANT, or a run by --workdir")
        config = experiment.load(Path(values.workdir).expanduser() / "config.json")
    experiment.validate(config)
    split = SPLIT.value or config.data.val_split
    source = data.open_split(config.data, split)
    output = Path(OUTPUT.value or Path(values.workdir or ".") / "evaluation").expanduser()
    if PREDICTIONS.value is not None and SAVE_PREDICTIONS.value:
        raise ConfigError("--predictions and --save_predictions contradict each other: they are saved already")
    if PREDICTIONS.value is not None and (values.weights is not None or values.model is not None):
        raise ConfigError("--predictions and --weights contradict each other: score one or the other")
    if PREDICTIONS.value is not None and (CALIBRATION.value or values.samples):
        raise ConfigError("--predictions are labels alone: --calibration and --samples need the net")
    infos = by_head(source.info)
    if PREDICTIONS.value is not None:
        predictor, origin = None, f"predictions in {PREDICTIONS.value}"
    else:
        predictor = predict.from_flags(values.workdir, values.checkpoint, values.weights, values.model, values.samples)
        origin = predictor.origin
    evaluation.check_outputs(output, split, infos, origin, SAVE_PREDICTIONS.value, values.overwrite)
    if predictor is None:
        print(f"{origin} on {config.data.name} {split}", flush=True)
        results = evaluation.evaluate_files(source, Path(PREDICTIONS.value or "").expanduser())
    else:
        known, wanted = (
            {head: info.num_classes for head, info in by_head(owner.info).items()} for owner in (predictor, source)
        )
        if known != wanted:
            raise ConfigError(
                f"{origin} knows {_counts(known)} classes, {config.data.name} has {_counts(wanted)}: "
                "name the data that it was trained for by --config"
            )
        print(f"{origin} on {config.data.name} {split}: {len(source)} images", flush=True)
        folder = evaluation.prediction_folder(output, split) if SAVE_PREDICTIONS.value else None
        probabilities = predictor.probabilities if CALIBRATION.value else None
        results = evaluation.evaluate_predictor(source, predictor, folder, probabilities)
    for head, result in results.items():
        name = evaluation.result_name(split, head)
        print(result.table())
        result.write(output, name, origin)
        print(f"results in {output}/{name}.json and .txt")


def _counts(classes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {head}".strip() for head, count in classes.items())


if __name__ == "__main__":
    command_line.run(main)
