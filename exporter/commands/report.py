"""``report``: draws the report of a finished run anew."""

from pathlib import Path

from exporter.errors import InputError, OutputError
from exporter.formats.base import measure
from exporter.inputs import checked_path
from exporter.output import (
    MANIFEST,
    PAGE_FILE,
    PICTURES_FILE,
    REPORT_FILES,
    entries_of,
    finish_publication,
    staged_output,
)
from exporter.progress import Progress
from exporter.report.manifest import read_manifest, what_lacks, with_files, write_manifest
from exporter.report.page.drawing import draw_report
from exporter.report.page.pictures import Pictures


def write_report(folder: str | Path, *, progress: Progress | None = None) -> Path:
    """Draws ``report.html``, ``report.md`` and the figures of a finished run anew.

    All of it is drawn from ``manifest.json`` and ``report.npz``; without the latter, the page has
    no spectra, weights and samples.

    Args:
        folder: Folder of the run.
        progress: Is told of a run that was killed while it was published.

    Returns:
        The path of the page.

    Raises:
        InputError: If the folder holds no run, or a ``report.npz`` that the run did not write.
        OutputError: If it cannot be written, or a file of a report's name is not of the run.
    """
    folder = Path(checked_path(str(folder)))
    finish_publication(folder, progress)
    manifest = read_manifest(folder / MANIFEST)
    ours = entries_of(folder / MANIFEST)
    foreign = [name for name in REPORT_FILES if (folder / name).exists() and name not in ours]
    if foreign:
        raise OutputError(
            f"The report of {str(folder)!r} needs the names {', '.join(foreign)}, which are of "
            "files that the run did not write. Move them elsewhere."
        )
    pictures, file = Pictures(), folder / PICTURES_FILE
    if file.exists():
        hashes = [e.get("sha256") for e in manifest["files"] if e.get("path") == PICTURES_FILE]
        if measure(file)[1] not in hashes:
            raise InputError(
                f"{str(file)!r} is not the file that the run wrote: its SHA-256 is not in "
                f"{MANIFEST}. Put the file of the run there, or remove it for a report without "
                "pictures."
            )
        pictures = Pictures.load(file)
    drawn = [name for name in REPORT_FILES if name != PICTURES_FILE]
    entries = [*drawn, MANIFEST]
    with staged_output(folder, entries, force=True, whole=False, progress=progress) as staging:
        try:
            draw_report(manifest, pictures, staging)
        except Exception as error:
            if isinstance(error, OSError):
                raise
            raise InputError(
                f"{str(folder / MANIFEST)!r} must follow the schema of manifests, with the "
                f"{PICTURES_FILE} of the same run. Received: {what_lacks(error)} "
                "Run exporter again."
            ) from error
        write_manifest(with_files(manifest, staging), staging)
    return folder / PAGE_FILE
