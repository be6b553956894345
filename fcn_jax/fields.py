"""A config as a tree of fields: whether a given tree has the fields and forms of a known one, and that tree flat."""

import math
from collections.abc import Mapping
from typing import Any

from fcn_jax.errors import ConfigError, did_you_mean

# Tuples of any length, by what their entries are. Other tuples are as long as their default.
_NAME_TUPLES = ("model.streams", "init.skip", "init.stream_workdirs", "optim.frozen")
_NUMBER_TUPLES = ("input.mean", "input.scale", "optim.boundaries", "loss.class_weight_values")
_RULE_TUPLES = ("optim.lr_multipliers", "optim.decay_multipliers")


def check(known: Mapping, given: Any, prefix: str = "") -> None:
    """Raises ConfigError for a field of `given` that `known` lacks, or whose value has another form than the known."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')}={given!r} must be a group of fields: {', '.join(known)}")
    for field, value in given.items():
        if field not in known:
            raise ConfigError(f"no config field {prefix + field!r}{did_you_mean(field, known)}")
        if isinstance(known[field], Mapping):
            check(known[field], value, f"{prefix}{field}.")
        else:
            _check_form(prefix + field, known[field], value)


def _check_form(field: str, known: Any, value: Any) -> None:
    """Text stays text, a number a number, and a tuple has as many entries, of the same kind."""
    if field in _NAME_TUPLES or field in _NUMBER_TUPLES or field in _RULE_TUPLES:
        form, what = {
            **dict.fromkeys(_NAME_TUPLES, (_is_text, "names: ('conv*', 'fc*')")),
            **dict.fromkeys(_NUMBER_TUPLES, (_is_number, "numbers: (1000, 2000)")),
            **dict.fromkeys(_RULE_TUPLES, (_is_rule, "rules: (('*/bias', 2.0),)")),
        }[field]
        fits = isinstance(value, tuple | list) and all(map(form, value))
    elif isinstance(known, tuple):
        whole = all(isinstance(entry, int) for entry in known)
        what = f"{len(known)} {'whole numbers' if whole else 'numbers'}, as {known}"
        fits = isinstance(value, tuple | list) and len(value) == len(known)
        fits = fits and all(_is_number(entry) and (isinstance(entry, int) or not whole) for entry in value)
    elif isinstance(known, bool):
        fits, what = isinstance(value, bool), "True or False"
    elif isinstance(known, int):
        fits, what = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif isinstance(known, float):
        fits, what = _is_number(value), "a number"
    else:
        fits, what = _is_text(value), "text"
    if not fits:
        raise ConfigError(f"{field}={value!r} must be {what}")


def flat(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """The fields by their full names, `optim.lr`."""
    fields = {}
    for field, value in tree.items():
        if isinstance(value, Mapping):
            fields |= flat(value, f"{prefix}{field}.")
        else:
            fields[prefix + field] = tuples(value)
    return fields


def tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were, at any depth."""
    if isinstance(value, Mapping):
        return {field: tuples(item) for field, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(tuples(item) for item in value)
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rule(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and _is_text(value[0]) and _is_number(value[1])
