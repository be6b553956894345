"""How a command starts and fails: absl flags, and one plain line instead of a traceback for what a user can mend."""

import errno
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from fcn_jax import compilations, hosts
from fcn_jax.errors import CRASHED, ConfigError, HostLost, UserError, did_you_mean, of_storage, one_line, tell
from fcn_jax.preemption import EXIT_CODE, Preempted

# How what JAX's runtime says begins where the program is at fault, on however many hosts.
_OF_PROGRAMS = ("INVALID_ARGUMENT", "UNIMPLEMENTED")
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a field must be, by what Python says of text that it cannot read as that.
_FORMS = {
    "invalid literal for int()": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "True or False",
}


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs `main(arguments)`.

    Exit codes: 2, a mistake in the flags; 1, a UserError, told in a line, or too little memory; 75, Preempted, or, as
    it seems, one of several hosts lost; 70, anything else, with its traceback, or a fault of storage that may pass.
    """

    def guarded(arguments: Sequence[str]) -> int | None:
        try:
            return main(arguments[1:])
        except Preempted as left:
            tell(str(left))
            return EXIT_CODE
        except UserError as error:
            tell(f"error: {error}")
            return hosts.end_alone(EXIT_CODE if isinstance(error, HostLost) else _code_of_fault(error) or 1)
        except Exception as error:
            # A folder that cannot be written; a full disk, of which not every error says the file.
            if isinstance(error, OSError) and (error.filename is not None or error.errno in _FULL):
                tell(f"error: {error.filename or 'a file'}: {error.strerror}")
                return hosts.end_alone(_code_of_fault(error) or 1)
            code = _code_of_fault(error)
            if code is None:
                raise
            traceback.print_exc()
            return hosts.end_alone(code)

    # JAX tells at this level which accelerators it did not find.
    logging.set_verbosity(logging.WARNING)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # Compiling a step takes from seconds to minutes, for each image size anew; the next start finds it done.
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/fcn_jax/compiled").expanduser()))
    with compilations.told():
        try:
            app.run(guarded, flags_parser=_parse)
        except Exception:
            traceback.print_exc()
            sys.exit(hosts.end_alone(CRASHED))


def _code_of_fault(error: BaseException) -> int | None:
    """The exit code for what storage or JAX's runtime met, or None where it is none of three.

    70, a fault of storage that may pass; 1, too little memory; 75, collectives that failed, as it seems for a host that
    is gone: to be started again with it.
    """
    if of_storage(error):
        return CRASHED
    fault = _of_runtime(error)
    if "RESOURCE_EXHAUSTED" in fault:
        return 1
    lost = bool(fault) and not fault.startswith(_OF_PROGRAMS) and _of_several()
    return EXIT_CODE if lost else None


def _of_several() -> bool:
    """Whether this is one host of several, also where they could not come together."""
    try:
        return jax.process_count() > 1
    except RuntimeError:
        return jax.distributed.is_initialized()


def _of_runtime(error: BaseException) -> str:
    """What JAX's runtime said, of which this error is or comes; empty if nothing."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, jax.errors.JaxRuntimeError):
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "" if seen is None else str(seen)


def experiment(flag: Any) -> Any:
    """The config that a command's config flag names, or None where it is not given.

    Raises ConfigError for a file that cannot be read.
    """
    config = flag.value
    if config is None:
        return None
    try:
        # ml_collections puts off what it met in reading the file to the first use of what it gave.
        if not hasattr(config, "to_dict"):
            raise ConfigError(f"--config: get_config gives {type(config).__name__} and not an experiment, a ConfigDict")
    except OSError as error:
        raise ConfigError(_unreadable(error)) from None
    return config


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Raises ConfigError for words on the command line that belong to no flag."""
    if arguments:
        raise ConfigError(f"cannot make anything of {' '.join(arguments)!r}: fields are set as --config.optim.lr=1e-3")


def _parse(arguments: Sequence[str]) -> list[str]:
    try:
        for word in arguments[1:]:
            if re.match(r"(--?[\w.]+=)?\w+://", word):
                # As a path it would be a folder `gs:` of this machine, and lost with it.
                raise ConfigError(
                    f"{word}: no path of a file system; mount the bucket, or download the file, and name that"
                )
        return flags.FLAGS(arguments)
    except UserError as error:
        message = str(error)
    except flags.Error as error:
        message = _without_traceback(str(error))
    except OSError as error:
        message = _unreadable(error)
    except Exception as error:
        places = [(place.filename, place.lineno) for place in traceback.extract_tb(error.__traceback__)]
        by_library = _is_installed(places[-1][0])
        if isinstance(error, SyntaxError):
            message = f"--config: {error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
        elif by_library and isinstance(error, AttributeError | KeyError | TypeError | IndexError):
            # A field that the config does not have, as ml_collections reports it.
            message = _unknown_field(str(error))
        elif by_library and isinstance(error, ValueError):
            # A path that is none, as ml_collections reads them: config.optim-lr, config.data/root.
            message = f"{one_line(error, 200)}: fields are set as --config.optim.lr=1e-3"
        else:
            message = f"--config: {_place(places)}: {type(error).__name__}: {error}"
    tell(f"error: {one_line(message)}")
    sys.exit(2)


def _without_traceback(message: str) -> str:
    """ml_collections puts the whole traceback of a config file into its message: its last place and line will do."""
    if "Traceback" not in message:
        given = re.match(r"flag --config\.(\S+=.*?): ", message, re.DOTALL)
        for fault, what in _FORMS.items():
            if given and fault in message:
                return f"{given[1]} must be {what}"
        return message
    places = re.findall(r'File "([^"]+)", line (\d+)', message)
    fault = message.strip().splitlines()[-1]
    return f"{_place(places)}: {fault}" if places else fault


def _is_installed(file: str) -> bool:
    return "site-packages" in Path(file).parts or file.startswith(sysconfig.get_path("stdlib"))


def _place(places: Sequence[tuple[str, Any]]) -> str:
    """The last of the places `(file, line)` in what the user wrote, not in a library that it calls."""
    file, line = next((place for place in reversed(places) if not _is_installed(place[0])), places[-1])
    return f"{file}, line {line}"


def _unreadable(error: OSError) -> str:
    """What ml_collections says in many lines, of an error that it met when it read the file."""
    reason = str(error).split("[Errno")[-1].partition("] ")[2] or str(error).rpartition("failure to load: ")[2]
    if missing := re.search(r"No such file or directory: '(.+)'", reason):
        path = Path(missing[1])
        hint = did_you_mean(path.name, [file.name for file in path.parent.glob("*.py")])
        return f"--config cannot be read: there is no file {path}{hint}"
    return f"--config cannot be read: {one_line(reason)}"


def _unknown_field(message: str) -> str:
    suggestion = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', message)
    if suggestion:
        return f"no config field {suggestion[2]!r}; did you mean {suggestion[1]!r}?"
    if "get_config" in message:
        return "--config: the file has no function get_config"
    if re.search(r"'(int|float|bool|str)' object|^tuple indices", message):
        return "a number, a text or a tuple has no fields of its own: fields are set as --config.optim.lr=1e-3"
    named = re.search(r"Attempting to lookup: (\S+)", message) or re.search(r"^'*\"?'?(\w+)", message)
    return f"no config field {named[1]!r}" if named else f"--config: {message}"
