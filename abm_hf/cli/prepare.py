"""`abm-hf prepare`: any form the field's data comes in to a data set that `datasets.load_dataset` reads."""

import argparse
import sys
import time
from pathlib import Path

from ..data.prepare import SOURCES
from ..extras import lacks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `abm-hf prepare`."""
    listing = "; ".join(f"{name}: {what}" for name, (_, _, what) in SOURCES.items())
    parser.add_argument(
        "source", choices=list(SOURCES), metavar="SOURCE", help=f"one of: {listing}".replace("%", "%%")
    )
    parser.add_argument("--input", required=True, type=Path, metavar="PATH", help="folder or file to read")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="folder to write; to resume, the same"
    )
    parser.add_argument("--num-proc", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument(
        "--convention",
        choices=["abm", "comer", "written", "published"],
        help="of the labels (default: published where they come as tokens, else abm)",
    )
    parser.add_argument(
        "--vocabulary", metavar="NAME", help="crohme, any, or a file of tokens (default: crohme for CROHME, else any)"
    )
    parser.add_argument(
        "--variations", type=int, metavar="N", help="crohme-recombined: new expressions for each old one (default: 3)"
    )
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these splits")
    parser.add_argument(
        "--shard-size", type=int, default=1024, metavar="N", help="expressions in a file (default: 1024)"
    )
    parser.add_argument("--allow-skips", action="store_true", help="succeed though more than 1 %% are skipped")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of another input in --output")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload the result to this data set repository")
    parser.add_argument("--public", action="store_true", help="create that repository public; it is private without")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no report on standard output")


def run(namespace: argparse.Namespace) -> int:
    """Runs `abm-hf prepare`; gives its exit code."""
    started = time.monotonic()
    if problem := lacks("train", "abm-hf prepare", "pyarrow", "datasets", "matplotlib"):
        sys.stderr.write(f"error: {problem}\n")
        return 1
    from ..data.prepare import prepare_dataset
    from ..data.source import PrepareError

    try:
        report = prepare_dataset(
            namespace.source,
            namespace.input,
            namespace.output,
            convention=namespace.convention,
            vocabulary=namespace.vocabulary,
            variations=namespace.variations,
            splits=namespace.splits,
            num_proc=namespace.num_proc,
            shard_size=namespace.shard_size,
            allow_skips=namespace.allow_skips,
            overwrite=namespace.overwrite,
            progress=not namespace.quiet,
        )
        if not namespace.quiet:
            seconds = time.monotonic() - started
            sys.stdout.write(f"{report.to_text()}\n{seconds:.1f} s, {_peak_memory()} MB at most in one process\n")
        if namespace.push_to_hub:
            from ..data.publish import push_prepared

            address = push_prepared(namespace.output, namespace.push_to_hub, private=not namespace.public)
            sys.stdout.write(f"{address}\n")
    except (PrepareError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {error}: data sets need more packages, pip install 'abm-hf[train]'\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped: the same command continues with what is missing\n")
        return 130
    return 0


def _peak_memory() -> int:
    """Largest resident memory of this process and its children, in MB; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) * unit // 10**6
