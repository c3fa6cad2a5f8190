"""Files of the benchmark suites: from the Hugging Face hub, or out of an archive, whole and verified or not at all."""

import hashlib
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from jaxgen.data.genome import cache_root
from jaxgen.data.tasks.suites import SUITES, Card
from jaxgen.errors import InputError, short

_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".fna", ".fna.gz", ".fa", ".fasta")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
EQTL_REPOSITORY, EQTL_FILE = "InstaDeepAI/genomics-long-range-benchmark", "variant_effect_causal_eqtl/All_Tissues.csv"


def is_archive(path: str | Path) -> bool:
    """Whether `unpack` takes the file, by its name."""
    return str(path).endswith(_ARCHIVES)


def suites_root(cache: str = "") -> Path:
    """Where `download` leaves the suites, each in a folder of its name. `cache`: empty = $JAXGEN_CACHE or ~/.cache/jaxgen."""
    return cache_root(cache) / "suites"


def download(card: Card, cache: str = "") -> Path:
    """The files of a task from its suite's repository on the hub; an interrupted download goes on, what is there already stays.

    Returns:
        the folder to give as `data.path`: that of the suite.

    Raises:
        InputError: no network, no such repository, none of its files belongs to the task, or a file of another size or SHA-256 than the
            hub states.
    """
    hub, suite = SUITES[card.suite].hub, suites_root(cache) / card.suite
    folder = suite / card.name if "{name}" in hub else suite
    for name in _fetch(hub.format(name=card.name), folder, lambda names: _files_of(card, names), f"{card.suite}/{card.name}"):
        if is_archive(name):
            unpack(folder / name, folder / Path(name).name.split(".")[0])
    return suite


def download_eqtl(cache: str = "") -> Path:
    """The table of eQTLs of the long-range benchmark (InstaDeepAI, CC-BY-NC-4.0), as `download` does it."""
    folder = suites_root(cache) / "long_range"
    (name,) = _fetch(EQTL_REPOSITORY, folder, lambda names: [name for name in names if name == EQTL_FILE], "eqtl")
    return folder / name


def _fetch(repository: str, folder: Path, choose: Callable[[list[str]], list[str]], what: str) -> list[str]:
    """Names of the files that `choose` takes of those in a dataset repository; they are below `folder`, and whole."""
    import huggingface_hub  # slow to import, and needed here only

    try:
        info = huggingface_hub.HfApi().dataset_info(repository, files_metadata=True)
        files = {file.rfilename: file for file in info.siblings or []}
        chosen = choose(sorted(files))
        if chosen:
            huggingface_hub.snapshot_download(repository, repo_type="dataset", revision=info.sha, allow_patterns=chosen, local_dir=folder)
    except Exception as error:  # network, HTTP and hub errors have no common base
        raise InputError(
            f"{what}: not to be had from {repository} on the hub ({short(error)}); "
            "run the same command again to go on, or give --config.data.path=FOLDER"
        ) from error
    if not chosen:
        shown = ", ".join(sorted(files)[:5])
        name = what.rpartition("/")[2]
        raise InputError(f"{repository} on the hub has no files of {name} (it has {shown} ...); give --config.data.path=FOLDER")
    for name in chosen:
        lfs = files[name].lfs
        _verify(folder / name, files[name].size, lfs.sha256 if lfs else "")
    return chosen


def _files_of(card: Card, names: list[str]) -> list[str]:
    """Tables in a folder of the task; else the suite's archive; else, in a repository of this task alone, all tables."""
    tables = [name for name in names if name.endswith(_TABLES)]
    if "{name}" in SUITES[card.suite].hub:
        return tables
    own = [name for name in tables if any(f"/{folder}/" in f"/{name}" for folder in card.folders)]
    return own or [name for name in names if is_archive(name)][:1]


def _verify(path: Path, size: int | None, sha256: str) -> None:
    """Removes a file that is not what it should be, so that the next attempt fetches it anew."""
    found = path.stat().st_size
    problem = f"{found:,} bytes instead of {size:,}" if size is not None and found != size else ""
    if not problem and sha256 and (digest := file_sha256(path)) != sha256:
        problem = f"SHA-256 {digest[:12]}... instead of {sha256[:12]}..."
    if problem:
        path.unlink()
        raise InputError(f"{path}: damaged download, {problem}; it was removed, run the same command again")


def file_sha256(path: str | Path) -> str:
    """In hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: str | Path, folder: Path, sha256: str = "") -> Path:
    """`folder` with the contents of a .zip or .tar archive, unpacked once.

    Args:
        sha256: what the archive must have, in hexadecimal; empty = not checked.

    Raises:
        InputError: no such file, another checksum, an archive cut short or damaged, or one that writes outside its folder.
    """
    archive = Path(archive)
    if not archive.is_file():
        raise InputError(f"{archive}: no such file")
    digest = file_sha256(archive)
    if sha256 and digest != sha256.lower():
        raise InputError(f"{archive}: SHA-256 is {digest}, not {sha256.lower()}; download it again")
    mark = folder / ".unpacked-sha256"
    if mark.exists() and mark.read_text() == digest:
        return folder
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        _extract(archive, unfinished)
        (unfinished / mark.name).write_text(digest)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk; those of gzip and bzip2 have no number
            raise
        raise InputError(f"{archive}: not a whole archive ({short(error)}); download it again") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _extract(archive: Path, folder: Path) -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            if any(Path(name).is_absolute() or ".." in Path(name).parts for name in file.namelist()):
                raise ValueError("a name in it leads outside")
            file.extractall(folder)  # checks the CRC of every file
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
            while file.fileobj and file.fileobj.read(1 << 20):  # to the checksum at the end, which tarfile does not read
                pass
