"""Check jaxgen against golden cases made by the original implementations: one line per array, exit code 1 on any FAIL."""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxgen.errors import InputError, short
from jaxgen.goldens.core import Case, TextCase, check, text_cases


def run(config: ConfigDict) -> int:
    """Verify the folders of `config.paths`."""
    return verify(config.paths)


def verify(paths: Sequence[str]) -> int:
    """Verify folders: each a case, or a folder of cases at any depth; cases of tokenizers may be JSON files.

    Raises:
      InputError: no folder given, or one without any case.
    """
    if not paths:
        raise InputError("nothing to verify: give folders of golden cases (--config.paths=DIR1,DIR2)")
    cases = [case for path in paths for case in _cases_under(Path(path))]
    failed = compared = 0
    with jax.default_matmul_precision("highest"):
        for case in cases:
            try:
                lines = check(case)
            except InputError as error:
                lines, failed = [], failed + 1
                print(f"{case.name:44s} FAIL  {' '.join(str(error).split())}")
            except Exception as error:  # of one case, so that the others are still compared
                lines, failed = [], failed + 1
                print(f"{case.name:44s} FAIL  {short(error)}")
            for line in lines:
                print(line)
            compared += len(lines)
            failed += sum(not line.ok for line in lines)
    print(f"{compared} arrays of {len(cases)} cases compared, {failed} failed")
    return 1 if failed else 0


def _cases_under(path: Path) -> list[Case]:
    if path.is_file():
        return [TextCase(path)]
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    if (path / "meta.json").exists():
        return [Case(path)]
    cases = [Case(meta.parent) for meta in sorted(path.rglob("meta.json"))] + list(text_cases(path))
    if not cases:
        raise InputError(f"{path}: holds no golden case (a folder with meta.json and io.npz)")
    return cases


def main(argv: Sequence[str]) -> int:
    """`python -m jaxgen.checkpoints.verify DIR...`."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m jaxgen.checkpoints.verify DIR...\n" + (__doc__ or ""))
        return 0
    try:
        return verify(argv)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
