"""Fetch and read raw data once and leave them ready: genomes memory-mapped, tasks as ArrayRecord files, gene windows as a table."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxgen.data import downloads, gene_windows
from jaxgen.data.eqtl_table import split_eqtl_table
from jaxgen.data.genome import cache_root
from jaxgen.data.records import read_metadata, records_folder, to_array_record
from jaxgen.data.tasks import EQTL
from jaxgen.data.tasks.suite import card_of, members_in
from jaxgen.data.tasks.suites import SUITES
from jaxgen.errors import InputError
from jaxgen.jobs.tasks import load_task, open_genome, split_seed
from jaxgen.jobs.training import say


def run(config: ConfigDict) -> int:
    """Prepare `data.fasta` (into `data.cache`), `data.task` and the genes of `data.gtf` (into the workdir).

    A suite's files that `data.path` does not give come from the hub; an archive is unpacked; `data.task` may be a whole suite, or eqtl.
    """
    d = config.data
    if d.gtf and not d.fasta:
        raise InputError("data.gtf needs the genome that it annotates: --config.data.fasta=GENOME.fa")
    if not d.fasta and not d.task:
        raise InputError("nothing to prepare: give --config.data.fasta=GENOME.fa or --config.data.task=table --config.data.path=FOLDER")
    if d.fasta:
        genome = open_genome(config)
        say(f"{d.fasta}: {len(genome.contigs)} contigs, {sum(genome.contigs.values()):,} bases, ready in the genome store")
        if d.gtf:
            if not config.workdir:
                raise InputError("--workdir=DIR is missing: where should the sequences of the genes go?")
            path, notes = gene_windows.write_table(config.workdir, genome, d.gtf, d.gene_list, d.window)
            for note in notes:
                say(f"note: {note}")
            say(f"{path}: windows of {d.window:,} bases around the starts of genes")
    if d.task:
        if not config.workdir:
            raise InputError("--workdir=DIR is missing: where should the records of the task go?")
        if d.task == EQTL:
            source = d.path or downloads.download_eqtl(d.cache)
            for note in split_eqtl_table(source, config.workdir):
                say(note)
            say(f"probe them with --config.data.path={config.workdir}, hg38 as data.fasta, and the bases per window as probe.length")
            return 0
        path = _unpacked(config)
        if d.task in SUITES:
            members = members_in(path, d.task) if path else list(SUITES[d.task].tasks)
            if missing := [member for member in SUITES[d.task].tasks if member not in members]:
                say(f"note: {path} has no {', '.join(missing)}")
            folders = {f"{d.task}/{member}": str(Path(config.workdir) / member) for member in members}
        else:
            folders = {d.task: config.workdir}
        for name, workdir in [item for item in folders.items() if not _is_there(config, *item)]:
            _task(config, name, path, workdir)
        if d.task.partition("/")[0] in SUITES and not d.path:
            root = downloads.suites_root(d.cache)
            say(f"the files are below {root}; fine-tune and benchmark on them with --config.data.path={root}")
    return 0


def _unpacked(config: ConfigDict) -> str:
    """`data.path`, or the folder that its archive was unpacked into."""
    d = config.data
    if downloads.is_archive(d.path):
        stem = Path(d.path).name.split(".")[0]
        return str(downloads.unpack(d.path, cache_root(d.cache) / "archives" / stem, d.sha256))
    if d.sha256:
        raise InputError(f"data.sha256 is that of an archive, but data.path={d.path!r} is none (.zip, .tar, .tar.gz)")
    return d.path


def _is_there(config: ConfigDict, name: str, workdir: str) -> bool:
    """Whether `workdir` holds the records of a suite's task already.

    Raises:
        InputError: it holds those of another task, path or seed.
    """
    suite, _, member = name.partition("/")
    if suite not in SUITES or not records_folder(workdir).exists():
        return False
    theirs = read_metadata(workdir)
    for field, value in {"name": f"{suite}/{card_of(suite, member).name}", **_origin(config)}.items():
        if theirs.get(field, value) != value:  # records of earlier versions have the name only
            what = f"holds records with {field}={theirs[field]!r}, not {value!r}"
            raise InputError(f"{workdir} {what}; choose another --workdir or delete it")
    say(f"{name}: records are there already, in {workdir}")
    return True


def _origin(config: ConfigDict) -> dict[str, Any]:
    """What the records of one task may differ by, from run to run."""
    path = config.data.path
    return {"path": str(Path(path).resolve()) if path else "", "split_seed": split_seed(config)}


def _task(config: ConfigDict, name: str, path: str, workdir: str) -> None:
    """One task, from `path` or else from the hub, as records in `workdir`."""
    suite, _, member = name.partition("/")
    origin = _origin(config)
    if not path and suite in SUITES:
        path = str(downloads.download(card_of(suite, member), config.data.cache))
    config = ConfigDict(config.to_dict())
    config.data.task, config.data.path = name, path
    task = load_task(config)
    folder = to_array_record(task, workdir, **origin)
    rows = ", ".join(f"{len(examples):,} {split}" for split, examples in task.splits.items())
    say(f"{task.name}: {rows} in {folder}; train on them with --config.data.task=records --config.data.path={workdir}")
