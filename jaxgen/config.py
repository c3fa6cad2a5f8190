"""Configs: Python files returning a ConfigDict, variants after a colon, typed overrides from the command line.

Every mistake is one line that names the nearest valid choice.
"""

import ast
import contextlib
import fnmatch
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxgen.errors import InputError, nearest, short
from jaxgen.fields import check_ranges, expand_paths


def split_variant(variant: str, *names: str) -> list[str]:
    """`"a,b"` -> `["a", "b"]`, one for each of `names`; a missing one is "".

    Raises:
      InputError: more parts than names.
    """
    parts = [part.strip() for part in variant.split(",")] if variant else []
    if len(parts) > len(names):
        wanted = f"takes :{','.join(names).upper()}" if names else "takes no variant"
        raise InputError(f"config variant {variant!r}: this config {wanted}")
    return parts + [""] * (len(names) - len(parts))


def available_configs() -> dict[str, str]:
    """File -> first line of its docstring, for the configs that come with jaxgen."""
    folder = Path(__file__).resolve().parent.parent / "configs"
    found = {}
    for path in sorted(folder.glob("[a-z]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[f"configs/{path.name}"] = docstring.split("\n")[0]
    return found


def load_config(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """`FILE.py[:variant]` and (dotted field, text) overrides -> a locked config.

    Raises:
      InputError: no such file, one that cannot be run, an unknown variant or field, a value of the wrong type or out of range.
    """
    path, _, variant = spec.partition(":")
    file = Path(path).expanduser()
    if not file.is_file():
        fallback = Path(__file__).resolve().parent.parent / path
        if not fallback.is_file():
            raise InputError(f"--config={path}: no such file{nearest(path, available_configs())}")
        file = fallback
    config = _get_config(file, path, variant)
    for field, text in overrides:
        set_field(config, field, text)
    return settled(config)


def settled(config: ConfigDict) -> ConfigDict:
    """The config with its paths expanded and its numbers checked, locked.

    Raises:
      InputError: a number out of its range.
    """
    expand_paths(config)
    check_ranges(config)
    return config.lock()


def _get_config(file: Path, path: str, variant: str) -> ConfigDict:
    """What `get_config(variant)` of the file returns; whatever goes wrong in it is reported as mistake of `path`, with its line."""
    module_spec = importlib.util.spec_from_file_location(f"jaxgen_config_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(f"{path}: defines no get_config(variant)")
        config = module.get_config(variant)
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        raise InputError(f"{path}{f':{lines[-1]}' if lines else ''}: {short(error)}") from error
    if not isinstance(config, ConfigDict) or "job" not in config:
        raise InputError(
            f"{path}: get_config(variant) returned a {type(config).__name__}; return the ConfigDict of configs.common.get_config(), changed"
        )
    return config


def set_field(config: ConfigDict, field: str, text: str) -> None:
    """Assign one override, converted to the type of the default.

    Raises:
      InputError: an unknown field (the nearest is named), or text of another type.
    """
    *parents, name = field.split(".")
    node: Any = config
    walked = "config"
    for parent in parents:
        if parent not in node or not isinstance(node[parent], ConfigDict):
            raise InputError(f"--config.{field}: {walked} has no group {parent!r}{nearest(parent, _fields(node))}")
        node, walked = node[parent], f"{walked}.{parent}"
    if walked == "config.model.config":  # fields of the architecture: checked against its dataclass by the job
        node[name] = _literal(text)
        return
    if name not in node:
        raise InputError(f"--config.{field}: no such field in {walked}{nearest(name, _fields(node))}")
    if isinstance(node[name], ConfigDict):
        raise InputError(f"--config.{field} is a group; set one of {', '.join(f'{field}.{key}' for key in node[name])}")
    node[name] = _convert(text, node[name], field)


def matching(entries: Iterable[str], model: str, task: str, field: str = "") -> list[str]:
    """The field=value of those entries MODELS@TASKS:field=value whose patterns are for this model and task.

    Raises:
      InputError: an entry of another form; `field` says where it stands.
    """
    found = []
    for entry in entries:
        match = re.fullmatch(r"([^@:]+)@([^:]+):([\w.]+=.*)", entry)
        if not match:
            raise InputError(f"{field}: {entry!r} is not MODELS@TASKS:field=value, such as mamba*@gue/*:train.epochs=3")
        if fnmatch.fnmatchcase(model, match[1]) and fnmatch.fnmatchcase(task, match[2]):
            found.append(match[3])
    return found


def _fields(node: Any) -> Iterator[str]:
    return iter(node.keys())


def _literal(text: str) -> Any:
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert(text: str, default: Any, field: str) -> Any:
    """Text -> the type of `default`."""

    def wrong(expected: str) -> InputError:
        return InputError(f"--config.{field}={text}: expected {expected}, like {default!r}")

    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise wrong("true or false")
        return text.lower() in ("true", "1", "yes")
    if isinstance(default, int):
        if re.fullmatch(r"[+-]?\d[\d_]*", text):
            return int(text)
        try:
            number = float(text)
        except ValueError:
            raise wrong("a whole number") from None
        if not number.is_integer():
            raise wrong("a whole number")
        return int(number)
    if isinstance(default, float):
        try:
            return float(text)
        except ValueError:
            raise wrong("a number") from None
    if isinstance(default, tuple):
        parts = _entries(text)
        if default and isinstance(default[0], int | float):
            try:
                return tuple(type(default[0])(part) for part in parts)
            except ValueError:
                raise wrong("numbers separated by commas") from None
        return tuple(parts)
    return text


def _entries(text: str) -> list[str]:
    """The entries of a tuple: a Python list or tuple, with or without quotes, or text cut at its commas.

    Commas in brackets or in quotes around an entry do not cut: a regular expression, or the value of a setting, may hold them.
    """
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        with contextlib.suppress(ValueError, SyntaxError):
            literal = ast.literal_eval(text)
            if isinstance(literal, list | tuple):
                return [str(entry) for entry in literal]
    parts = _cut(text)
    if len(parts) == 1 and text[:1] + text[-1:] in ("()", "[]") and len(inner := _cut(text[1:-1])) > 1:
        parts = inner
    return [part[1:-1] if len(part) > 1 and part[0] == part[-1] and part[0] in "'\"" else part for part in parts]


def _cut(text: str) -> list[str]:
    """Text between the commas that stand in neither quotes nor brackets, without blanks and empty parts."""
    parts, depth, quote, escaped = [""], 0, "", False
    for letter in text:
        if letter == "," and not depth and not quote:
            parts.append("")
            continue
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and not parts[-1].strip():
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
