"""Read raw data once and leave it ready: a genome as a memory-mapped store, a task as ArrayRecord files, gene windows as a table."""

from ml_collections import ConfigDict

from jaxgen.data import gene_windows
from jaxgen.data.genome import Genome
from jaxgen.data.records import to_array_record
from jaxgen.errors import InputError
from jaxgen.jobs.tasks import load_task
from jaxgen.jobs.training import say


def run(config: ConfigDict) -> int:
    """Prepare `data.fasta` (into `data.cache`), `data.task` and the genes of `data.gtf` (into the workdir)."""
    d = config.data
    if d.gtf and not d.fasta:
        raise InputError("data.gtf needs the genome that it annotates: --config.data.fasta=GENOME.fa")
    if not d.fasta and not d.task:
        raise InputError("nothing to prepare: give --config.data.fasta=GENOME.fa or --config.data.task=table --config.data.path=FOLDER")
    if d.fasta:
        genome = Genome.open(d.fasta, cache_dir=d.cache or None)
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
        task = load_task(config)
        folder = to_array_record(task, config.workdir)
        rows = ", ".join(f"{len(examples):,} {split}" for split, examples in task.splits.items())
        say(f"{task.name}: {rows} in {folder}; train on them with --config.data.task=records --config.data.path={config.workdir}")
    return 0
