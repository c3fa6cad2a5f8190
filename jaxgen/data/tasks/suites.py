"""The public benchmark suites as tables: what every task is, how large its splits are, where they come from.

Sources: GenomicBenchmarks (Gresova et al. 2023, ML-Bioinfo-CEITEC/genomic_benchmarks), GUE (Zhou et al. 2023, arXiv 2306.15006,
MAGICS-LAB/DNABERT_2), Nucleotide Transformer tasks, original and revised (Dalla-Torre et al. 2023, InstaDeepAI on the hub). Row counts are
those of the published files.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One task of a suite.

    Attributes:
        suite, name: `data.task` is `suite/name`.
        classes: names in label order (alphabetical where the files name them).
        length: bases of the longest sequence that the published protocols read.
        rows: published number of rows of every split that the files bring.
        select: the metric that the benchmark reports, which also chooses the step on the dev split.
        folders: where the public layouts keep the task, below the root of the suite.
    """

    suite: str
    name: str
    classes: tuple[str, ...]
    length: int
    rows: dict[str, int]
    select: str
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """A family of tasks.

    Attributes:
        split: rule of the dev split where the files have none: "torch" (random_split) or "hf" (train_test_split), 10 % of train by seed.
        hub: dataset repository on the Hugging Face hub; {name} is the task where every task has its own.
        licence: of the data, as their hosts state it.
    """

    title: str
    split: str
    hub: str
    licence: str
    tasks: dict[str, Card]


_GENOMIC_BENCHMARKS = """
dummy_mouse_enhancers_ensembl     negative,positive                968    242  1024
demo_coding_vs_intergenomic_seqs  coding_seqs,intergenomic_seqs  75000  25000   200
demo_human_or_worm                human,worm                     75000  25000   200
human_enhancers_cohn              negative,positive              20843   6948   500
human_enhancers_ensembl           negative,positive             123872  30970   512
human_ensembl_regulatory          enhancer,ocr,promoter         231348  57713   512
human_nontata_promoters           negative,positive              27097   9034   251
human_ocr_ensembl                 negative,positive             139804  34952   512
"""

_GUE = """
emp_H3               EMP/H3              2  500  11971  1497  1497
emp_H3K14ac          EMP/H3K14ac         2  500  26438  3305  3305
emp_H3K36me3         EMP/H3K36me3        2  500  27904  3488  3488
emp_H3K4me1          EMP/H3K4me1         2  500  25341  3168  3168
emp_H3K4me2          EMP/H3K4me2         2  500  24545  3069  3069
emp_H3K4me3          EMP/H3K4me3         2  500  29439  3680  3680
emp_H3K79me3         EMP/H3K79me3        2  500  23069  2884  2884
emp_H3K9ac           EMP/H3K9ac          2  500  22224  2779  2779
emp_H4               EMP/H4              2  500  11679  1461  1461
emp_H4ac             EMP/H4ac            2  500  27275  3410  3410
tf_0                 tf/0                2  101  32378  1000  1000
tf_1                 tf/1                2  101  30672  1000  1000
tf_2                 tf/2                2  101  19000  1000  1000
tf_3                 tf/3                2  101  27294  1000  1000
tf_4                 tf/4                2  101  19000  1000  1000
mouse_0              mouse/0             2  101   6478   810   810
mouse_1              mouse/1             2  101  53952  6745  6745
mouse_2              mouse/2             2  101   2620   328   328
mouse_3              mouse/3             2  101   1904   239   239
mouse_4              mouse/4             2  101  15064  1883  1883
prom_300_all         prom/prom_300_all   2  300  47356  5920  5920
prom_300_notata      prom/prom_300_notata  2  300  42452  5307  5307
prom_300_tata        prom/prom_300_tata  2  300   4904   613   613
prom_core_all        prom/prom_core_all  2   70  47356  5920  5920
prom_core_notata     prom/prom_core_notata  2   70  42452  5307  5307
prom_core_tata       prom/prom_core_tata  2   70   4904   613   613
splice_reconstructed  splice/reconstructed  3  400  36496  4562  4562
virus_covid          virus/covid         9  999  73335  9166  9168
"""

# Test rows of the original Nucleotide Transformer tasks are not known to us: they are not checked.
_NT = """
enhancers               2  200  14968  -  mcc
enhancers_types         3  200  14968  -  mcc
H3                      2  500  13468  -  mcc
H3K4me1                 2  500  28509  -  mcc
H3K4me2                 2  500  27614  -  mcc
H3K4me3                 2  500  33119  -  mcc
H3K9ac                  2  500  25003  -  mcc
H3K14ac                 2  500  29743  -  mcc
H3K36me3                2  500  31392  -  mcc
H3K79me3                2  500  25953  -  mcc
H4                      2  500  13140  -  mcc
H4ac                    2  500  30685  -  mcc
promoter_all            2  300  53276  -  f1_binary
promoter_no_tata        2  300  47767  -  f1_binary
promoter_tata           2  300   5517  -  f1_binary
splice_sites_acceptors  2  600  19961  -  f1_binary
splice_sites_donors     2  600  19775  -  f1_binary
splice_sites_all        3  400  27000  -  accuracy
"""

_NT_REVISED = """
promoter_all            2   300  30000  1584  mcc
promoter_tata           2   300   5062   212  mcc
promoter_no_tata        2   300  30000  1372  mcc
enhancers               2   400  30000  3000  mcc
enhancers_types         3   400  30000  3000  mcc
splice_sites_all        3   600  30000  3000  mcc
splice_sites_acceptors  2   600  30000  3000  mcc
splice_sites_donors     2   600  30000  3000  mcc
H2AFZ                   2  1000  30000  3000  mcc
H3K27ac                 2  1000  30000  1616  mcc
H3K27me3                2  1000  30000  3000  mcc
H3K36me3                2  1000  30000  3000  mcc
H3K4me1                 2  1000  30000  3000  mcc
H3K4me2                 2  1000  30000  2138  mcc
H3K4me3                 2  1000  30000   776  mcc
H3K9ac                  2  1000  23274  1004  mcc
H3K9me3                 2  1000  27438   850  mcc
H4K20me1                2  1000  30000  2270  mcc
"""


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


def _numbered(count: str) -> tuple[str, ...]:
    return tuple(map(str, range(int(count))))


def _genomic_benchmarks() -> dict[str, Card]:
    return {
        name: Card(
            "genomic_benchmarks",
            name,
            tuple(classes.split(",")),
            int(length),
            {"train": int(train), "test": int(test)},
            "accuracy",
            (name,),
        )
        for name, classes, train, test, length in _rows(_GENOMIC_BENCHMARKS)
    }


def _gue() -> dict[str, Card]:
    cards = {}
    for name, folder, classes, length, train, dev, test in _rows(_GUE):
        rows = {"train": int(train), "dev": int(dev), "test": int(test)}
        folders = (name, f"human_{name}", folder, f"GUE/{folder}", f"GUE/{name}")
        cards[name] = Card("gue", name, _numbered(classes), int(length), rows, "mcc", folders)
    return cards


def _nucleotide_transformer(suite: str, table: str) -> dict[str, Card]:
    cards = {}
    for name, classes, length, train, test, select in _rows(table):
        rows = {"train": int(train)} | ({} if test == "-" else {"test": int(test)})
        cards[name] = Card(suite, name, _numbered(classes), int(length), rows, select, (name,))
    return cards


SUITES = {
    "genomic_benchmarks": Suite(
        "GenomicBenchmarks", "torch", "katarinagresova/Genomic_Benchmarks_{name}", "Apache-2.0", _genomic_benchmarks()
    ),
    "gue": Suite("GUE", "torch", "leannmlindsey/GUE", "Apache-2.0", _gue()),
    "nt": Suite(
        "Nucleotide Transformer tasks",
        "hf",
        "InstaDeepAI/nucleotide_transformer_downstream_tasks",
        "none stated on the data card",
        _nucleotide_transformer("nt", _NT),
    ),
    "nt_revised": Suite(
        "Nucleotide Transformer tasks, revised",
        "hf",
        "InstaDeepAI/nucleotide_transformer_downstream_tasks_revised",
        "none stated on the data card",
        _nucleotide_transformer("nt_revised", _NT_REVISED),
    ),
}
