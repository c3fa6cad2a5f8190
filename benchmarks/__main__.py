"""Prints one table of jaxgen against its peers and, with --output, writes it as JSON.

python -m benchmarks [--only=tokens,fft] [--repeats=7] [--output=FILE] [--tables=FILE,FOLDER] [--one-core] [--smoke]
"""

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Note, Options, Row, load_warning, machine, render, use_one_core
from jaxgen.main import keep_freed_memory

# Name -> module with `run(options)`, a generator of Row and Note.
PARTS = {
    "tokens": "benchmarks.tokens",
    "padding": "benchmarks.padding",
    "fft": "benchmarks.fft",
    "block": "benchmarks.block",
    "scan": "benchmarks.scan",
    "attention": "benchmarks.attention",
    "lel": "benchmarks.lel",
    "embed": "benchmarks.embed",
    "variants": "benchmarks.variants",
    "concat": "benchmarks.concat",
    "finetune": "benchmarks.finetune",
    "packing": "benchmarks.packing",
    "start": "benchmarks.start",
    "gpu": "benchmarks.gpu",
}


def measure(parts: Sequence[str], options: Options) -> tuple[list[Row], list[Note]]:
    """All rows and notes of some parts; what comes is echoed to stderr at once."""
    rows, notes = [], []
    for part in parts:
        for found in importlib.import_module(PARTS[part]).run(options):
            if isinstance(found, Note):
                notes.append(found)
                print(f"{found.part}: {found.text}", file=sys.stderr, flush=True)
            else:
                rows.append(found)
                print(f"{found.part}: {found.case}  {found.ours:.4g} {found.unit}", file=sys.stderr, flush=True)
    return rows, notes


def write(path: Path, rows: Sequence[Row], notes: Sequence[Note], options: Options) -> None:
    """The same numbers for machines, with every sample."""
    records = []
    for row in rows:
        goal = None if row.goal is None else {"goal": str(row.goal), "met": row.goal.met(row)}
        records.append(dataclasses.asdict(row) | {"ratio": row.ratio, "goal": goal})
    content = {
        "machine": machine(),
        "options": dataclasses.asdict(options),
        "rows": records,
        "notes": [dataclasses.asdict(n) for n in notes],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to run, comma-separated: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns per contender; the median counts")
    parser.add_argument("--output", type=Path, help="write rows, samples and machine to this JSON file")
    parser.add_argument("--tables", default="", help="label tables (files or folders) whose padding to report, comma-separated")
    parser.add_argument("--config", default=Options.config, help="config whose start to time")
    parser.add_argument("--one-core", action="store_true", help="all but start on one core, in CPU time: for shared machines")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that everything runs, not how fast")
    flags = parser.parse_args(argv)
    parts = [part for part in flags.only.split(",") if part]
    for part in parts:
        if part not in PARTS:
            parser.error(f"--only={part}: no such part; there are {', '.join(PARTS)}")
    if flags.repeats < 1:
        parser.error(f"--repeats={flags.repeats} must be at least 1")
    tables = tuple(table for table in flags.tables.split(",") if table)
    options = Options(1 if flags.smoke else flags.repeats, flags.smoke, tables, flags.config, flags.one_core)
    warning = load_warning(options.one_core)
    if options.one_core:
        use_one_core()
    keep_freed_memory()  # as jaxgen.main does; the peers in this process have it too
    rows, notes = measure(parts, options)
    if warning:
        notes.insert(0, Note("machine", warning))
    if options.one_core:
        notes.insert(0, Note("machine", "all but start: CPU time on one core (--one-core)"))
    print(render(rows))
    for note in notes:
        print(f"note: {note.part}: {note.text}")
    if flags.output:
        write(flags.output, rows, notes, options)
        print(f"written: {flags.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
