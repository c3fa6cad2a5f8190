"""Configs: Python files returning a ConfigDict, variants after a colon, typed overrides from the command line.

Every mistake is one line that names the nearest valid choice.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxgen.errors import InputError, nearest


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
      InputError: no such file, an unknown variant or field, a value of the wrong type.
    """
    path, _, variant = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        fallback = Path(__file__).resolve().parent.parent / path
        if not fallback.is_file():
            raise InputError(f"--config={path}: no such file{nearest(path, available_configs())}")
        file = fallback
    module_spec = importlib.util.spec_from_file_location(f"jaxgen_config_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
    except ImportError as error:
        raise InputError(f"{path}: {error}") from error
    if not hasattr(module, "get_config"):
        raise InputError(f"{path}: defines no get_config(variant)")
    config: ConfigDict = module.get_config(variant)
    for field, text in overrides:
        set_field(config, field, text)
    config.lock()
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
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        if default and isinstance(default[0], int | float):
            try:
                return tuple(type(default[0])(part) for part in parts)
            except ValueError:
                raise wrong("numbers separated by commas") from None
        return tuple(part.strip("'\"") for part in parts)
    return text
