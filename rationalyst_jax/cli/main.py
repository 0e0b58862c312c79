"""The entry point: finds the command, parses its arguments, and turns bad input into one line.

The command `NAME` lives in `cli/NAME.py` (a space becomes an underscore) as a function `run`. Its signature
is the options; its docstring is the help of the command and of each option. It imports what computes only
when it runs, so that help and mistakes in options are quick.
"""

import importlib
import inspect
import io
import logging
import os
import re
import sys
import threading
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage]
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)

from rationalyst_jax.files.interruption import EXIT_CODE, Interrupted, interrupted_by_sigterm
from rationalyst_jax.files.parts import OthersAtWork
from rationalyst_jax.files.whole import in_words

COMMANDS = {
    "demo": "run the whole method on the embedded world",
    "ablate": "leave out or change one part of the method after the other, on the embedded world",
    "prefilter": "keep the documents that are like the tasks' training questions",
    "dedup": "drop documents that are duplicates of earlier ones",
    "decontaminate": "drop documents that hold a question of an evaluation set",
    "mine": "annotate documents, or import annotated ones, and cut triples",
    "mine run": "annotate and filter many shards of documents, in worker processes",
    "mine status": "how far a run over shards is, and what it took",
    "filter": "keep the rationales that make the text after them more likely",
    "calibrate": "find the threshold that reaches a wanted precision",
    "inspect": "compare rationales with human ones, with others, and with saying nothing",
    "train": "fine-tune a model to write the rationales",
    "plan": "what a stage would take: training and filter compiled for TPUs, mining counted",
    "reason": "solve a task's questions with one strategy",
    "serve": "serve a model to clients of the OpenAI API",
    "data": "prepare the rows of a benchmark, or rationales, for TensorFlow Datasets",
    "card": "rationales as a data set that others can load, with a card; the card of a trained model",
    "locate": "find the wrong steps of given solutions, and measure how well",
    "evaluate": "grade traces, with intervals and paired comparisons",
    "report": "one page that shows a run, or traces, in a browser",
    "show": "one question of some traces, step by step, in the terminal",
    "benchmark": "every task with every checkpoint and approach, and the paper's table beside ours",
    "merge": "add LoRA adapters to the model they belong to",
    "convert": "Hugging Face, Orbax and GGUF into one another, training checkpoints too",
    "choose": "answer multiple-choice questions by the likelihood of their choices",
    "score": "log-likelihoods of continuations given contexts",
    "stats": "what sharing prefixes in token trees saves",
    "world documents": "write unlabeled documents of the embedded world",
    "world questions": "write questions of the embedded world",
    "world errors": "write solutions of the embedded world with a known wrong step",
    "world pretrain": "train the embedded world's base model from scratch",
}
# What they compile is kept on disk, and counted. (`plan` compiles for machines that are not here.)
COMPUTING = {
    *("demo", "ablate", "prefilter", "mine", "mine run", "filter", "inspect", "train", "reason", "serve"),
    *("locate", "benchmark", "choose", "score", "world pretrain"),
}
CONFIGS = Path(__file__).parents[1] / "configs"
# What makes files of what an address names. Nothing here reads or writes over a network.
MOUNTS = {
    "gs": "mount the bucket with Cloud Storage FUSE (gcsfuse)",
    "s3": "mount the bucket with Mountpoint for Amazon S3 (mount-s3)",
    "hf": "download the files with `hf download`",
    "file": "leave out file://",
    "http": "download the file",
    "https": "download the file",
}
INPUT_ERROR = 1
USAGE_ERROR = 2
INTERRUPTED = 130  # by Ctrl-C, as shells count it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 1 for bad input, 2 for bad usage, 75 for work that was told to stop and
    can be continued, 130 after Ctrl-C. Other exceptions are bugs and rise.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows few characters gets "?" for others
            stream.reconfigure(errors="replace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        return _version()
    name = next((n for n in (" ".join(arguments[:2]), " ".join(arguments[:1])) if n in COMMANDS), None)
    if name is None:
        return _overview(arguments)
    # What these libraries would say on stderr about a machine without torch, or about a damaged checkpoint.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # A server has a way of its own to end. Only the main thread may listen.
    listens = name != "serve" and threading.current_thread() is threading.main_thread()
    try:
        with interrupted_by_sigterm() if listens else nullcontext():
            return _run(name, arguments[len(name.split()) :])
    except Interrupted as stop:
        return _fail(name, stop, EXIT_CODE)
    except KeyboardInterrupt:
        print(f"rationalyst {name}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(name: str, arguments: list[str]) -> int:
    """Imports, parses and runs a command; returns as `main`."""
    command = importlib.import_module(f"rationalyst_jax.cli.{name.replace(' ', '_')}")
    try:
        options = _parse(name, command, arguments)
    except (ArgumentError, ValueError) as error:
        return _fail(name, error, USAGE_ERROR)
    except SystemExit as stop:  # --help or --print_config did all there was to do
        return int(stop.code or 0)
    try:
        if name in COMPUTING:
            _compute(command, options)
        else:
            command.run(**options)
    except ArgumentError as error:
        return _fail(name, error, USAGE_ERROR)
    except (ValueError, OSError) as error:
        return _fail(name, error, INPUT_ERROR)
    except OthersAtWork as rest:
        print(f"rationalyst {name}: {rest}")
    return 0


def _compute(command: ModuleType, options: dict[str, Any]) -> None:
    """Runs a command that compiles programs, and says how many."""
    from rationalyst_jax.lm.devices.distributed import is_main
    from rationalyst_jax.lm.devices.programs import programs_kept

    with programs_kept() as programs:
        command.run(**options)
    if str(programs) and is_main():
        print(programs)


class ConfigFile(ActionConfigFile):
    """A YAML file of options, or a shipped one by its name; mistakes are reported under that."""

    def __call__(self, parser, cfg, values, option_string=None):
        _check_paths("--config", values)
        try:
            super().__call__(parser, cfg, config_path(values), option_string)
        except (ArgumentError, TypeError, ValueError) as error:
            raise ArgumentError(None, f"{values}: {_message(error)}") from error


class Help(DefaultHelpFormatter):
    """Names types as a person would, and leaves out choices that the option shows anyway."""

    def _get_type_str(self, action):
        name = super()._get_type_str(action)
        return None if name is None or name.startswith("Literal[") else _without_classes(name)


def config_path(name: str) -> str:
    """The path of the shipped config of that name; anything else, ./NAME too, is a path."""
    shipped = CONFIGS / f"{name}.yaml"
    return str(shipped) if os.sep not in name and shipped.is_file() else name


def parser_of(name: str, command: ModuleType) -> ArgumentParser:
    """What knows the options of a command."""
    parser = ArgumentParser(
        prog=f"rationalyst {name}",
        description=(inspect.getdoc(command.run) or "").partition("\n\nArgs:")[0],
        formatter_class=Help,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", action=ConfigFile, help="YAML file of the options below, or the name of a shipped one."
    )
    if hasattr(command, "add_arguments"):
        command.add_arguments(parser)
    else:
        parser.add_function_arguments(command.run, as_group=False)
    return parser


def _parse(name: str, command: ModuleType, arguments: list[str]) -> dict[str, Any]:
    """The keyword arguments of the command's `run`. Raises ArgumentError, ValueError, or SystemExit(0)."""
    parser = parser_of(name, command)
    given = _configs(arguments)
    if hasattr(command, "DEFAULT_CONFIG") and not given and not {"-h", "--help"} & {*arguments}:
        arguments = ["--config", command.DEFAULT_CONFIG, *arguments]
        given = [0, 1]
    rest = [argument for i, argument in enumerate(arguments) if i not in given]
    # Files first, wherever they stand: an option on the command line always wins.
    files = [arguments[i] for i in given]
    try:
        parsed = parser.parse_args(files + rest)
        _check_paths("--", parsed)
        options = parser.instantiate(parsed)
    except ArgumentError as error:
        unknown = re.search(r"Option '(\S+)' is not accepted", str(error))
        for file in (name.removeprefix("--config=") for name in files):
            if unknown and _holds(file, unknown[1]):
                raise ArgumentError(None, f"{file}: unknown key {unknown[1]}") from None
        raise
    return {key: value for key, value in options.items() if key != "config"}


def _check_paths(option: str, value: Any) -> None:
    """Raises ArgumentError where a path, also one after NAME=, is an address instead.

    `value` is that of an option, whatever it holds. Text alone may name an endpoint: it may be http://.
    """
    if isinstance(value, dict | Namespace):
        for name, part in value.items():
            _check_paths(f"{option}{'' if option == '--' else '.'}{name}", part)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_paths(option, part)
    elif isinstance(value, str | Path):
        slashes = "/+" if isinstance(value, Path) else "//"  # pathlib makes one slash of two
        found = re.match(rf"(\w+=)?([A-Za-z][\w+.-]+):{slashes}(.*)", str(value))
        if found is None or (isinstance(value, str) and not found[1] and found[2] in ("http", "https")):
            return
        address, advice = f"{found[2]}://{found[3]}", MOUNTS.get(found[2], "mount what it names")
        raise ArgumentError(None, f"{option}: {address} is not a path: {advice} and give its path")


def _holds(file: str, key: str) -> bool:
    """Whether a YAML file has a dotted key."""
    path = config_path(file)
    if not os.path.isfile(path):
        return False
    with open(path, encoding="utf-8") as stream:
        value = yaml.safe_load(stream)
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def _configs(arguments: list[str]) -> list[int]:
    """The places of --config and its value."""
    places = []
    for i, argument in enumerate(arguments):
        if argument == "--config":
            places += [i, i + 1] if i + 1 < len(arguments) else [i]
        elif argument.startswith("--config="):
            places.append(i)
    return places


def _version() -> int:
    """Prints the version that the installed package has; only pyproject.toml says which."""
    try:
        print(f"rationalyst_jax {version('rationalyst_jax')}")
    except PackageNotFoundError:
        print("rationalyst: no version is known, the package is not installed", file=sys.stderr)
        return INPUT_ERROR
    return 0


def _overview(arguments: list[str]) -> int:
    """Lists the commands; a usage error where something else was asked for."""
    asked = " ".join(a for a in arguments if a not in ("-h", "--help"))
    listed = {name: what for name, what in COMMANDS.items() if not asked or name.split()[0] == asked}
    if not listed or arguments == []:
        words = 2 if arguments[:1] == ["world"] else 1
        wrong = f"no command {' '.join(arguments[:words])!r}" if arguments else "a command is missing"
        print(f"rationalyst: {wrong}: {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE_ERROR
    print("usage: rationalyst COMMAND [options]; rationalyst COMMAND --help says more")
    print("       rationalyst --version\n")
    for name, what in listed.items():
        print(f"  {name:<16} {what}")
    return 0


def _fail(name: str, error: BaseException, code: int) -> int:
    print(f"rationalyst {name}: {_message(error)}", file=sys.stderr)
    return code


def _message(error: BaseException) -> str:
    """An error in one line."""
    # jsonargparse lists every form a value could have had on a line of its own, with its Python class.
    noise = (
        "Does not validate|Subtypes:|Errors:|Given value type:|Subclass types|- a |- Expected a .*NoneType"
    )
    lines = (line.strip() for line in in_words(error).splitlines())
    text = " ".join(line.removeprefix("- ") for line in lines if not re.match(noise, line))
    return re.sub(r'Parser key "([^"]*)":', r"--\1:", _without_classes(text)).strip() or type(error).__name__


def _without_classes(text: str) -> str:
    """A text of jsonargparse's, with the plain names of the classes in it, and choices as a list."""
    text = re.sub(r"a typing\.Literal\[([^\]]*)\]", r"one of \1", text)
    text = re.sub(r"Problem with given class_path '[^']*': ?", "", text)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)


if __name__ == "__main__":
    sys.exit(main())
