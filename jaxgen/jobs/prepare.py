"""Read raw data once and leave it ready: a genome as a memory-mapped store, a table or simulated task as ArrayRecord files."""

from ml_collections import ConfigDict

from jaxgen.data.genome import Genome
from jaxgen.data.records import to_array_record
from jaxgen.errors import InputError
from jaxgen.jobs.tasks import load_task
from jaxgen.jobs.training import say


def run(config: ConfigDict) -> int:
    """Prepare `data.fasta` (into `data.cache`), `data.task` (into the workdir), or both."""
    d = config.data
    if not d.fasta and not d.task:
        raise InputError("nothing to prepare: give --config.data.fasta=GENOME.fa or --config.data.task=table --config.data.path=FOLDER")
    if d.fasta:
        genome = Genome.open(d.fasta, cache_dir=d.cache or None)
        say(f"{d.fasta}: {len(genome.contigs)} contigs, {sum(genome.contigs.values()):,} bases, ready in the genome store")
    if d.task:
        if not config.workdir:
            raise InputError("--workdir=DIR is missing: where should the records of the task go?")
        task = load_task(config)
        folder = to_array_record(task, config.workdir)
        rows = ", ".join(f"{len(examples):,} {split}" for split, examples in task.splits.items())
        say(f"{task.name}: {rows} in {folder}; train on them with --config.data.task=records --config.data.path={config.workdir}")
    return 0
