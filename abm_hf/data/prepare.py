"""`abm-hf prepare`: from any form the field's data comes in to a data set that `datasets.load_dataset` reads.

    OUTPUT/data/train-00000-of-00009.parquet ...   at most `shard_size` expressions each
    OUTPUT/README.md                               the card; its metadata names the splits
    OUTPUT/report.json, sizes.png, skipped.jsonl   what was done
    OUTPUT/.prepare/                               which shards are finished, for resuming

The shards are planned before the work starts, from the list of entries alone. Each is written by one process, from its
own entries alone, and appears when it is complete: so the bytes do not depend on the number of processes, a run that
was stopped continues with the shards that are missing, and memory is that of some hundred expressions a process.
"""

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .plan import Shard
    from .report import Report
    from .source import Source

SOURCES = {
    "crohme-inkml": (".crohme", "CrohmeInkML", "CROHME's InkML tree: train/<origin>/, test2013/, test2014/, ..."),
    "crohme-recombined": (".recombined", "CrohmeRecombined", "the same tree: its training ink put together anew"),
    "crohme-offline": (
        ".crohme",
        "CrohmeOffline",
        "CROHME's bitmaps and captions, the zip or folder of BTTR and CoMER",
    ),
    "wap": (".wap", "Wap", "folder with offline-<split>.pkl and <split>_caption.txt"),
    "hme100k": (".hme100k", "Hme100k", "folder with <split>_labels.txt and <split>_images/"),
    "mathwriting": (".mathwriting", "MathWriting", "folder with train/, valid/, test/, ... of InkML"),
    "imagefolder": (".imagefolder", "ImageFolder", "images with metadata.csv or metadata.jsonl (file_name, latex)"),
}


# --- as a function ---


def make_source(
    name: str,
    path: str | os.PathLike[str],
    *,
    convention: str | None = None,
    vocabulary: str | None = None,
    variations: int | None = None,
) -> "Source":
    """A source by its name on the command line.

    Args:
        name: `crohme-inkml`, `crohme-recombined`, `crohme-offline`, `wap`, `hme100k`, `mathwriting` or `imagefolder`.
        path: What it is read from.
        convention: Of the labels; by default `published` where labels come as tokens, else `abm`.
        vocabulary: `crohme`, `any` or a file with one token a line; by default `crohme` for CROHME, else `any`.
        variations: Of `crohme-recombined`: expressions made for each one that there is, 3 by default.

    Raises:
        PrepareError: The name or an option is unknown, or the path does not exist.
    """
    from .source import LabelRule, PrepareError

    if name not in SOURCES:
        raise PrepareError(f"unknown source {name!r}: choose one of {', '.join(SOURCES)}")
    module, attribute, _ = SOURCES[name]
    kind = getattr(importlib.import_module(module, __package__), attribute)
    path = Path(path)
    if not path.exists():
        raise PrepareError(f"{path} does not exist")
    tokens = _read_vocabulary(vocabulary or kind.default_vocabulary)
    options = {} if variations is None else {"variations": variations}
    if options and not hasattr(kind, "variations"):
        raise PrepareError(f"{name} has no variations: they are made by crohme-recombined")
    return kind(path, LabelRule(convention or kind.default_convention, tokens), **options)


def _read_vocabulary(name: str) -> frozenset[str] | None:
    from ..latex.normalization import CROHME_TOKENS
    from .source import PrepareError

    if name in ("crohme", "any"):
        return CROHME_TOKENS if name == "crohme" else None
    try:
        tokens = frozenset(Path(name).read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise PrepareError(f"the vocabulary is `crohme`, `any` or a file of tokens; {name!r}: {error}") from error
    if not tokens:
        raise PrepareError(f"the vocabulary file {name!r} is empty")
    return tokens


def prepare_dataset(
    name: str,
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    convention: str | None = None,
    vocabulary: str | None = None,
    variations: int | None = None,
    splits: Sequence[str] | None = None,
    num_proc: int = 1,
    shard_size: int = 1024,
    allow_skips: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> "Report":
    """Writes a prepared data set, or what is missing of it.

    Args:
        name, path, convention, vocabulary, variations: See [`make_source`].
        output: Folder to write to; new, empty, or holding the same data set, finished or not.
        splits: Only these; all by default.
        num_proc: Processes; the result does not depend on it.
        shard_size: Expressions in a file.
        allow_skips: Whether more than 1 % of the expressions may be left out.
        overwrite: Whether another data set may be replaced.
        progress: Whether a bar is shown on standard error.

    Returns:
        [`Report`]: Also written to the folder.

    Raises:
        PrepareError: The input, the output or an option cannot be used, a worker died, or too much was left out; in
            the last case the data set is complete all the same.
    """
    from .plan import claim, fingerprint, finished, plan_shards
    from .source import PrepareError

    if num_proc < 1 or shard_size < 1:
        raise PrepareError(f"need num_proc >= 1 and shard_size >= 1, got {num_proc} and {shard_size}")
    source = make_source(name, path, convention=convention, vocabulary=vocabulary, variations=variations)
    output = Path(output)
    shards = plan_shards(source, shard_size, splits)
    claim(output, fingerprint(source, shards), overwrite)
    missing = [shard for shard in shards if finished(output, shard) is None]
    _work(source, output, missing, num_proc, _bar(shards, missing, progress))
    report = _finish(source, output, shards)
    if report.too_many_skipped and not allow_skips:
        total = report.total
        raise PrepareError(
            f"{len(total.skipped)} of {total.read} expressions were skipped, more than 1 %: see "
            f"{output / 'skipped.jsonl'}, and pass allow_skips (--allow-skips) if that is to be accepted"
        )
    return report


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a finished data set that this module wrote."""
    try:
        return bool(json.loads((Path(path) / "report.json").read_text(encoding="utf-8"))["format"] == "abm_hf")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_prepared(path: str | os.PathLike[str]) -> Any:
    """A prepared folder as a `datasets.DatasetDict`."""
    import datasets

    return datasets.load_dataset(str(path))


def prepare_cached(name: str, path: str | os.PathLike[str], **options: Any) -> Path:
    """Prepares below the cache directory of `datasets`, or finds what an earlier call prepared there."""
    import datasets

    what = json.dumps([name, str(Path(path).resolve()), sorted(options.items())], default=str)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "abm_hf" / hashlib.sha256(what.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    prepare_dataset(name, path, folder, **{**options, "overwrite": True})
    return folder


# --- working ---


def _bar(shards: "Sequence[Shard]", missing: "Sequence[Shard]", progress: bool) -> Any:
    from tqdm import tqdm

    total = sum(len(shard.entries) for shard in shards)
    done = total - sum(len(shard.entries) for shard in missing)
    return tqdm(total=total, initial=done, unit=" expressions", disable=not progress, file=sys.stderr, mininterval=0.5)


def _work(source: "Source", output: Path, shards: "Sequence[Shard]", num_proc: int, bar: Any) -> None:
    (output / "data").mkdir(exist_ok=True)
    with closing(bar):
        if num_proc == 1 or len(shards) <= 1:
            for shard in shards:
                _write(source, output, shard, bar.update)
            return
        for finished in _in_processes(source, output, shards, min(num_proc, len(shards))):
            bar.update(finished)


def _in_processes(source: "Source", output: Path, shards: "Sequence[Shard]", num_proc: int) -> Iterator[int]:
    """Writes shards in several processes; gives the number of entries of each as it is finished."""
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    from .source import PrepareError

    # Spawned, not forked: the caller may run threads (Arrow, OpenCV, torch) whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    waiting = iter(shards)
    running: set[Future[int]] = set()
    try:
        with ProcessPoolExecutor(num_proc, mp_context=context, initializer=_start_worker) as pool:
            try:
                while True:
                    # A few at a time, so that the entries of a large data set are not all in the queue.
                    while len(running) < 2 * num_proc and (shard := next(waiting, None)) is not None:
                        running.add(pool.submit(_write, source, output, shard))
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    except BrokenProcessPool as error:
        raise PrepareError(
            "a worker process died, perhaps for want of memory: run the same command again with a smaller --num-proc; "
            "it continues with the shards that are missing"
        ) from error


def _start_worker() -> None:
    import cv2
    import pyarrow

    # One thread each: the number of processes is the parallelism.
    cv2.setNumThreads(0)
    pyarrow.set_cpu_count(1)


def _write(source: "Source", output: Path, shard: "Shard", advance: Callable[[], object] = lambda: None) -> int:
    """Writes one shard, then the note that it is finished."""
    from ..files import replace_text
    from .plan import paths
    from .shards import write_shard

    data, state = paths(output, shard)
    with source.open() as read:
        statistics = write_shard(data, shard.entries, read, advance)
    with data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    note = {"bytes": data.stat().st_size, "sha256": digest, "statistics": statistics.to_json()}
    replace_text(state, json.dumps(note))
    return len(shard.entries)


def _finish(source: "Source", output: Path, shards: "Sequence[Shard]") -> "Report":
    """Writes report and card from the shards' notes."""
    from ..files import replace_text
    from ..latex.normalization import CROHME_TOKENS
    from .card import write_card
    from .plan import finished
    from .report import Report
    from .shards import ShardStatistics
    from .source import PrepareError

    splits: dict[str, ShardStatistics] = {}
    contents = hashlib.sha256()
    for shard in shards:
        note = finished(output, shard)
        if note is None:
            raise PrepareError(f"{shard.name} was written and is gone again: is another process working in {output}?")
        contents.update(f"{shard.name} {note['sha256']}\n".encode())
        splits.setdefault(shard.split, ShardStatistics()).add(ShardStatistics.from_json(note["statistics"]))
    tokens = source.labels.vocabulary
    own = hashlib.sha256(" ".join(sorted(tokens or ())).encode()).hexdigest()[:12]
    vocabulary = "any" if tokens is None else "crohme" if tokens == CROHME_TOKENS else own
    report = Report(source.name, source.labels.convention, vocabulary, contents.hexdigest(), splits)
    replace_text(output / "README.md", write_card(source, report))
    report.write(output)
    return report
