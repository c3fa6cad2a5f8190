"""Fetch and read raw data once and leave them ready: genomes memory-mapped, tasks as ArrayRecord files, gene windows as a table."""

from pathlib import Path

from ml_collections import ConfigDict

from jaxgen.data import downloads, gene_windows
from jaxgen.data.eqtl_table import split_eqtl_table
from jaxgen.data.genome import cache_root
from jaxgen.data.records import records_folder, to_array_record
from jaxgen.data.tasks import EQTL
from jaxgen.data.tasks.suite import card_of, members_in
from jaxgen.data.tasks.suites import SUITES
from jaxgen.errors import InputError
from jaxgen.jobs.tasks import load_task, open_genome
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
            for member in members:
                _task(config, f"{d.task}/{member}", path, str(Path(config.workdir) / member))
        else:
            _task(config, d.task, path, config.workdir)
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


def _task(config: ConfigDict, name: str, path: str, workdir: str) -> None:
    """One task, from `path` or else from the hub, as records in `workdir`."""
    suite, _, member = name.partition("/")
    if suite in SUITES and records_folder(workdir).exists():
        say(f"{name}: records are there already, in {workdir}")
        return
    if not path and suite in SUITES:
        path = str(downloads.download(card_of(suite, member), config.data.cache))
    config = ConfigDict(config.to_dict())
    config.data.task, config.data.path = name, path
    task = load_task(config)
    folder = to_array_record(task, workdir)
    rows = ", ".join(f"{len(examples):,} {split}" for split, examples in task.splits.items())
    say(f"{task.name}: {rows} in {folder}; train on them with --config.data.task=records --config.data.path={workdir}")
