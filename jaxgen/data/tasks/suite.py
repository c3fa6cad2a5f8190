"""Tasks of the public suites, `gue/tf_0` and the like, read from a local folder in any of the public layouts."""

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow.parquet
from pyarrow import ArrowException

from jaxgen.data.sequences import Sequences
from jaxgen.data.splits import hf_split_indices, random_split_indices
from jaxgen.data.tables import DELIMITERS, check_sequences, class_indices, read_columns, read_text, table_suffix
from jaxgen.data.tasks.base import CLASSIFICATION_METRICS, Examples, Target, Task
from jaxgen.data.tasks.suites import SUITES, Card
from jaxgen.errors import InputError, nearest

_SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "valid", "val", "validation"), "test": ("test",)}
_SEQUENCE_COLUMNS, _LABEL_COLUMNS = ("sequence", "seq"), ("label",)
_FASTA = (".fa", ".fna", ".fasta")
# A folder of such a name is that of a suite, a task or a group of tasks (EMP, tf); one around all of them, as GUE is, has another.
_CARDS = [card for suite in SUITES.values() for card in suite.tasks.values()]
_INNER = {*SUITES, *(name.partition("/")[0] for card in _CARDS for name in card.folders)} - {"GUE"}
_DEV_SPLITS = {"torch": random_split_indices, "hf": hf_split_indices}


def card_of(suite: str, member: str) -> Card:
    """The card of `suite/member`.

    Raises:
      InputError: no such task; the nearest ones are named.
    """
    tasks = SUITES[suite].tasks
    name = member.removeprefix("human_") if suite == "gue" else member
    if name not in tasks:
        raise InputError(f"unknown task {suite}/{member}{nearest(name, tasks)}")
    return tasks[name]


def load(member: str, path: str, seed: int = 1, suite: str = "gue") -> Task:
    """Reads one task of a suite.

    Args:
        member: its name, such as `tf_0`.
        path: the folder of the suite, one around it, or that of this task. A split is a table or Parquet file (`train.csv`,
            `train-00000-of-00001.parquet`, columns sequence or seq, and label), a FASTA whose record names end in the label, or a folder
            `train/CLASS/*.txt` with one sequence per file. Labels are 0 ... C-1; named classes are numbered alphabetically.
        seed: chooses the tenth of train that serves as dev where the files bring none, by the rule of the suite's published protocol.

    Raises:
        InputError: unknown task, missing split, unexpected class or one without a row in train, empty split, bad sequence, with file
            and line.
    """
    card = card_of(suite, member)
    folder = _folder(Path(path), card)
    notes: list[str] = []
    splits = {split: _read(found, card, notes) for split in _SPLIT_NAMES if (found := _find(folder, split))}
    _check_complete(folder, splits, card)
    if missing := sorted(set(range(len(card.classes))) - set(splits["train"].targets.tolist())):
        what = f"train has no row of class {card.classes[missing[0]]!r} of {suite}/{card.name} ({', '.join(card.classes)})"
        raise InputError(f"{folder}: {what}; download it again")
    for split, published in card.rows.items():
        if split in splits and len(splits[split]) != published:
            notes.append(f"{suite}/{card.name}: {len(splits[split]):,} {split} rows, {published:,} in the published files")
    if "dev" not in splits:
        held_out, rest = _DEV_SPLITS[SUITES[suite].split](len(splits["train"]), seed)
        train = splits["train"]
        splits |= {"train": train.take(np.sort(rest)), "dev": train.take(np.sort(held_out))}
        notes.append(f"{suite}/{card.name}: dev is a tenth of train, by seed {seed}")
    return Task(
        name=f"{suite}/{card.name}",
        splits={split: splits[split] for split in ("train", "dev", "test")},
        target=target_of(card),
        description=f"{card.name} of {SUITES[suite].title}",
        length=card.length,
        notes=tuple(notes),
    )


def check(member: str, path: str, suite: str = "gue") -> None:
    """Raises what `load` would, as far as that shows without reading the files."""
    card = card_of(suite, member)
    folder = _folder(Path(path), card)
    _check_complete(folder, [split for split in _SPLIT_NAMES if _find(folder, split)], card)


def target_of(card: Card) -> Target:
    """Classification over the card's classes; the benchmark's metric selects, and is reported beside the usual ones."""
    metrics = dict.fromkeys((*CLASSIFICATION_METRICS, *(("f1_binary",) if len(card.classes) == 2 else ()), card.select))
    return Target("classification", len(card.classes), card.classes, tuple(metrics), card.select)


def _folder(path: Path, card: Card) -> Path:
    """The folder of the task under `path` or the suite's folder in it, or `path` itself."""
    path = _root(path, card.suite)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; data.path is the folder of {SUITES[card.suite].title}, or of {card.name} alone")
    if found := _below(path, card):
        return found
    if _has_split(path):
        for other in SUITES[card.suite].tasks.values():
            if other is not card and path.resolve().as_posix().endswith(tuple(f"/{folder}" for folder in other.folders)):
                raise InputError(f"{path} is the folder of {other.suite}/{other.name}, not of {card.name}")
        return path
    content = [child for child in path.iterdir() if not child.name.startswith(".")]
    if len(content) == 1 and content[0].name not in _INNER and _has_split(content[0]):
        return content[0]  # as archives of one task are made
    raise InputError(f"{path}: no files of {card.suite}/{card.name}; looked for {', '.join(card.folders)} with a train and a test split")


def _root(path: Path, suite: str) -> Path:
    """The folder of a suite in `path`, or `path` itself."""
    return path / suite if (path / suite).is_dir() else path


def _below(path: Path, card: Card) -> Path | None:
    """The folder of the task in `path`, or else in a folder in it that may be one around the tasks, such as that of a repository.

    Raises:
      InputError: more than one of these has it.
    """
    if (found := _in(path, card)) or _has_split(path):
        return found
    around = sorted(child for child in path.glob("*") if child.is_dir() and child.name not in _INNER)
    several = [folder for child in around if (folder := _in(_root(child, card.suite), card))]
    if len(several) > 1:
        raise InputError(f"{path}: more than one folder of {card.suite}/{card.name} ({', '.join(map(str, several))}); give one of them")
    return several[0] if several else None


def _in(path: Path, card: Card) -> Path | None:
    folders = (path / folder / inner for inner in ("", "data") for folder in card.folders)
    return next(filter(_has_split, folders), None)


def _has_split(folder: Path) -> bool:
    return any(_find(folder, split) for split in _SPLIT_NAMES)


def members_in(path: str, suite: str) -> list[str]:
    """The tasks of a suite whose folders lie below `path`.

    Raises:
      InputError: none.
    """
    root = _root(Path(path), suite)
    found = [member for member, card in SUITES[suite].tasks.items() if _below(root, card)]
    if not found:
        raise InputError(f"{path}: no folder of any task of {SUITES[suite].title}; for one task name it, {suite}/TASK")
    return found


def _check_complete(folder: Path, splits: Collection[str], card: Card) -> None:
    for split in ("train", "test"):
        if split not in splits:
            expected = f"{split}.csv, .tsv, .parquet, .fna (optionally .gz) or {split}/CLASS/*.txt"
            raise InputError(f"{folder}: no {split} split of {card.suite}/{card.name}; expected {expected}")


def _find(folder: Path, split: str) -> Path | None:
    """The file or the folder of classes that holds a split.

    Raises:
      InputError: more than one.
    """
    if not folder.is_dir():
        return None
    pattern = re.compile(rf"({'|'.join(_SPLIT_NAMES[split])})(-\d+-of-0*1)?((\.[a-z]+)(\.gz)?)?")
    found = []
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match and ((path.is_dir() and not match[3]) or (path.is_file() and match[4] in (*DELIMITERS, *_FASTA, ".parquet"))):
            found.append(path)
    if len(found) > 1:
        raise InputError(f"{folder}: more than one {split} split ({', '.join(path.name for path in found)}); keep one")
    return found[0] if found else None


def _read(path: Path, card: Card, notes: list[str]) -> Examples:
    if path.is_dir():
        texts, labels = _read_folders(path, card)
        lines = list(range(1, len(texts) + 1))
    elif path.suffix == ".parquet":
        texts, labels, lines = _read_parquet(path)
    elif table_suffix(path):
        texts, labels, lines = _read_delimited(path)
    else:
        texts, labels, lines = _read_fasta(path)
    if not texts:
        raise InputError(f"{path}: empty split")
    sequences, *_, found = check_sequences(path, texts, lines, "sequence", labels)
    notes += found
    return Examples(Sequences.from_list(sequences), class_indices(path, labels, lines, card.classes, f"{card.suite}/{card.name}"))


def _read_delimited(path: Path) -> tuple[list[str], list[str], list[int]]:
    columns, lines = read_columns(path, *_LABEL_COLUMNS, optional=_SEQUENCE_COLUMNS)
    sequence = next((name for name in _SEQUENCE_COLUMNS if name in columns), None)
    if sequence is None:
        raise InputError(f"{path}:1: no column 'sequence'")
    return columns[sequence], columns["label"], lines


def _read_parquet(path: Path) -> tuple[list[str], list[str], list[int]]:
    try:
        table = pyarrow.parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); download it again") from None
    names = table.column_names
    sequence = next((name for name in _SEQUENCE_COLUMNS if name in names), None)
    if sequence is None or "label" not in names:
        raise InputError(f"{path}: expected the columns sequence and label, found {', '.join(names)}")
    texts = [str(text).strip() for text in table[sequence].to_pylist()]
    return texts, [str(label) for label in table["label"].to_pylist()], list(range(1, len(texts) + 1))


def _read_fasta(path: Path) -> tuple[list[str], list[str], list[int]]:
    """Records whose names end in `|LABEL`, or in a digit by itself, as the Nucleotide Transformer tasks were published."""
    texts, labels, lines = [], [], []
    parts: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.startswith(">"):
            name = line[1:].strip()
            label = re.search(r"(?:\||label[_ =:]*)(\w+)$|(?:^|[\s_,;=])(\d)$", name)
            if not label:
                raise InputError(f"{path}:{number}: record name {name[:40]!r} does not end in a label")
            if labels:
                texts.append("".join(parts))
            labels.append(label[1] or label[2])
            lines.append(number)
            parts = []
        elif line.strip():
            if not labels:
                raise InputError(f"{path}:{number}: sequence before the first '>' line")
            parts.append(line.strip())
    if labels:
        texts.append("".join(parts))
    return texts, labels, lines


def _read_folders(path: Path, card: Card) -> tuple[list[str], list[str]]:
    """One folder per class, one sequence per file."""
    folders = {child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")}
    if folders != set(card.classes):
        raise InputError(f"{path}: found the classes {', '.join(sorted(folders)) or 'none'}, expected {', '.join(card.classes)}")
    texts, labels = [], []
    for name in card.classes:
        files = [file for file in (path / name).glob("*.txt") if not file.name.startswith(".")]
        if not files:
            raise InputError(f"{path / name}: no .txt files; was the archive unpacked completely?")
        for file in sorted(files, key=lambda file: (len(file.name), file.name)):
            texts.append(read_text(file).strip())
            check_sequences(file, texts[-1:], [1], "sequence", [])  # here, because it names the file
        labels += [name] * len(files)
    return texts, labels
