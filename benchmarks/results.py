"""Reproduce the accuracy tables of docs/results.md on real data: `python -m benchmarks.results --data=../shared/data --out=runs/results`.

Every line is a run of the public command; finished runs are skipped, so the script can be stopped and started again. The table goes to
`OUT/results.md` and `OUT/results.json`.
"""

import argparse
import csv
import gzip
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

SEEDS = (1, 2, 3)
RECIPE = ("--config.data.rc_aug=true", "--config.data.conjoin_eval=true", "--config.train.schedule.min_lr_fraction=0.01")
HYENA = (
    *RECIPE,
    "--config.train.batch_size=32",
    "--config.train.eval_batch_size=256",
    "--config.train.learning_rate=2e-3",
    "--config.train.schedule.warmup_fraction=0.1",
)
CNN = (
    *RECIPE,
    "--config.train.batch_size=64",
    "--config.train.eval_batch_size=256",
    "--config.train.learning_rate=4e-3",
    "--config.train.weight_decay=1.0",
    "--config.train.schedule.warmup_fraction=0.05",
)
STATE_SPACE = tuple(flag.replace("learning_rate=2e-3", "learning_rate=4e-3") for flag in HYENA)
# (task, model) -> what differs from configs/finetune.py.
RUNS = {
    ("gue/tf_0", "cnn"): (
        *CNN,
        "--config.train.batch_size=256",
        "--config.train.learning_rate=8e-3",
        "--config.train.weight_decay=0.5",
        "--config.train.epochs=30",
        "--config.train.select=loss",
        "--config.data.max_shift=25",
    ),
    ("gue/prom_core_notata", "cnn"): (*CNN, "--config.train.epochs=6", "--config.data.max_shift=2"),
    ("genomic_benchmarks/human_nontata_promoters", "cnn"): (*CNN, "--config.train.epochs=15", "--config.data.max_shift=10"),
    ("gue/prom_core_notata", "hyenadna_smoke"): (*HYENA, "--config.train.epochs=1", "--config.train.eval_every=331"),
    ("gue/tf_0", "hyenadna_smoke"): (*HYENA, "--config.train.epochs=3", "--config.data.max_shift=3", "--config.train.eval_every=506"),
    ("genomic_benchmarks/human_nontata_promoters", "hyenadna_smoke"): (*HYENA, "--config.train.epochs=32", "--config.data.max_shift=10"),
}
for _model in ("mamba_smoke", "caduceus_ph_smoke", "caduceus_ps_smoke"):
    RUNS |= {
        ("gue/tf_0", _model): (*STATE_SPACE, "--config.train.epochs=2", "--config.data.max_shift=3", "--config.train.eval_every=506"),
        ("gue/prom_core_notata", _model): (*STATE_SPACE, "--config.train.epochs=1", "--config.train.eval_every=331"),
        ("genomic_benchmarks/human_nontata_promoters", _model): (*STATE_SPACE, "--config.train.epochs=8"),
    }
BASELINE_NAMES = {"genomic_benchmarks/human_nontata_promoters": "human_nontata_promoters(80/20 RandomState(0))"}


def task_folder(data: Path, out: Path, task: str) -> Path:
    """The task's folder of tables. GenomicBenchmarks has its official test file only: split 80/20 by numpy's RandomState(0)."""
    if task.startswith("gue/"):
        return data / task
    folder = out / "tables" / task
    if not (folder / "test.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(data / task / "test.tsv.gz", "rt") as file:
            rows = list(csv.reader(file, delimiter="\t"))[1:]
        order = np.random.RandomState(0).permutation(len(rows))
        cut = int(0.8 * len(rows))
        for name, indices in (("train", order[:cut]), ("test", order[cut:])):
            with open(folder / f"{name}.csv", "w", newline="") as file:
                csv.writer(file).writerows([("sequence", "label"), *(rows[i] for i in indices)])
    return folder


def command(data: Path, out: Path, task: str, model: str, seed: int) -> tuple[list[str], Path]:
    """The command of one run, and its workdir."""
    workdir = out / task / f"{model}_{seed}"
    flags = (f"--config=configs/finetune.py:{model},table", f"--config.data.path={task_folder(data, out, task)}", f"--config.seed={seed}")
    return [sys.executable, "-m", "jaxgen.main", *flags, *RUNS[task, model], f"--workdir={workdir}"], workdir


def summary(data: Path, out: Path) -> list[dict[str, object]]:
    """One row per (task, model) with all finished seeds."""
    published = json.loads((data / "kmer_baselines.json").read_text())
    rows = []
    for task, model in RUNS:
        results = [json.loads(file.read_text()) for seed in SEEDS if (file := out / task / f"{model}_{seed}" / "result.json").exists()]
        if not results:
            continue
        values = {name: np.array([r["metrics"]["test"][name] for r in results]) for name in ("mcc", "accuracy")}
        baseline = published[BASELINE_NAMES.get(task, task.removeprefix("gue/"))]
        rows.append(
            {
                "task": task,
                "model": model,
                "seeds": len(results),
                **{f"{name}_{stat}": float(getattr(v, stat)()) for name, v in values.items() for stat in ("mean", "std")},
                "kmer_mcc": baseline["mcc"],
                "kmer_accuracy": baseline["accuracy"],
                "nan_steps": sum(r["nan_steps"] for r in results),
                "seconds": float(np.mean([r["wall_seconds"] for r in results])),
            }
        )
    return rows


def markdown(rows: list[dict[str, object]]) -> str:
    lines = [
        "| task | model | seeds | test MCC | k-mer MCC | test accuracy | k-mer accuracy | NaN steps | s per run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['task']} | {r['model']} | {r['seeds']} | {r['mcc_mean']:.3f} ± {r['mcc_std']:.3f} | {r['kmer_mcc']:.3f} "
            f"| {r['accuracy_mean']:.3f} ± {r['accuracy_std']:.3f} | {r['kmer_accuracy']:.3f} | {r['nan_steps']} | {r['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--only", default="", help="run only the pairs 'task model' in which this regular expression is found")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="run only these seeds; the table takes all that are there")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pairs = [(task, model) for task, model in RUNS if re.search(arguments.only, f"{task} {model}")]
    for seed, (task, model) in itertools.product(map(int, arguments.seeds.split(",")), pairs):
        run, workdir = command(arguments.data, arguments.out, task, model, seed)
        if not (workdir / "result.json").exists():
            print(" ".join(run), flush=True)
            subprocess.run(run, check=True)
    rows = summary(arguments.data, arguments.out)
    (arguments.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    (arguments.out / "results.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
