"""Which files a command restores, and where each result goes."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from sam4ir.errors import UserError
from sam4ir.utils.ffmpeg import VIDEO_SUFFIXES, video_suffix
from sam4ir.utils.files import output_path
from sam4ir.utils.folders import list_files, refuse_folder_of_images
from sam4ir.utils.picture import PICTURE_SUFFIXES
from sam4ir.utils.picture_formats import FORMATS, WRITTEN_SUFFIXES, format_of

STREAM = "-"  # standard input or output in place of a file
STREAM_NAME = "standard input"
_FILE_SUFFIXES = PICTURE_SUFFIXES | VIDEO_SUFFIXES


@dataclass
class Work:
    """The files to restore.

    folder: of the results, None for standard output. files: (file, path of its result in the folder) of each; the file
    `-` is standard input. unreadable: folders that cannot be read, with the reason. format: of images, a key of
    FORMATS. single: --output names the file of the one result. keys: by file, its path below the folder without suffix,
    as a data set or a mask store of that folder names it; `a.jpg` beside `a.png` keeps its suffix.
    """

    folder: Path | None
    files: list[tuple[Path, Path]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    format: str = "png"
    single: bool = False
    keys: Mapping[Path, str] = field(default_factory=dict)

    def sources(self) -> set[Path]:
        """Return the files by their real paths."""
        return {file.resolve() for file, _ in self.files if str(file) != STREAM}


def is_video(file: Path) -> bool:
    """Return whether a file is restored as a video, by its suffix."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def find_work(places: list[str], output: str, image_format: str | None = None, suffix: str = "") -> Work:
    """Return the images and videos of --input with the paths of their results; `a.jpg` beside `a.png` keeps its suffix.

    places: files, folders, patterns such as `photos/*.jpg`, or `-` alone. output: a folder, for one file also a file
    with a suffix that is written, or `-`. image_format: a key of FORMATS, None for the one that `output` names, else
    PNG.
    suffix: text behind the names of results.
    Raises UserError where there is nothing to restore, and where --output is no place for results.
    """
    listed = _listed(places, output)
    if output == STREAM:
        if len(listed.files) != 1 or listed.unreadable:
            raise UserError(f"--output: - takes one image, and --input names {len(listed.files)}")
        if is_video(listed.files[0][0]):
            raise UserError(f"--output: {listed.files[0][0]} is a video, which needs a file or folder for its result")
        return Work(None, [(listed.files[0][0], Path("image"))], [], image_format or "png", keys=_keys(listed.files))
    single = len(listed.files) == 1 and len(places) == 1 and not Path(places[0]).is_dir()
    if single and _is_file_name(output, listed.files[0][0]):
        return _one_file(listed.files[0][0], Path(output), image_format, suffix)
    folder = Path(output)
    if folder.suffix.lower() in _FILE_SUFFIXES and not folder.is_dir():
        if single:
            raise UserError(f"--output: {_not_written(listed.files[0][0], folder)}")
        raise UserError(f"--output: {output} is the name of an image, and {_several(places)}; name a folder")
    if folder.is_file():
        hint = ", or a file with the suffix of an image" if single else ""
        raise UserError(f"--output: {output} is a file; name a folder{hint}")
    work = Work(folder, [], listed.unreadable, image_format or "png", keys=_keys(listed.files))
    work.files = _named(listed.files, work.keys, FORMATS[work.format].suffix, suffix)
    _refuse_inputs(work)
    return work


def _refuse_inputs(work: Work) -> None:
    """Raise UserError where a result would replace one of the images."""
    assert work.folder is not None
    sources = work.sources()
    for _, name in work.files:
        target = work.folder / name
        if target.exists() and target.resolve() in sources:
            raise UserError(f"--output: {target} is the image itself; name another folder or file, or give --suffix")


def _several(places: list[str]) -> str:
    """Return the end of a sentence on what --input names."""
    if len(places) == 1 and Path(places[0]).is_dir():
        return f"{places[0]} is a folder"
    return "--input names several files"


def _is_file_name(output: str, source: Path) -> bool:
    """Return whether --output names the file of the result."""
    path = Path(output)
    known = WRITTEN_SUFFIXES
    if is_video(source):
        known = VIDEO_SUFFIXES
    return path.suffix.lower() in known and not path.is_dir()


def _not_written(source: Path, target: Path) -> str:
    """Return why a file cannot have a result of this name."""
    suffix = target.suffix.lower()
    if is_video(source):
        return f"videos cannot be written as {suffix!r}; known: .mkv, .mov, .mp4, .webm"
    return f"images cannot be written as {suffix!r}; known: {', '.join(sorted(WRITTEN_SUFFIXES))}"


def _one_file(source: Path, target: Path, image_format: str | None, suffix: str) -> Work:
    """Return the work of one file whose result has a name."""
    if suffix:
        raise UserError(f"--suffix: {target} is the whole name of the result; leave one of them out")
    work = Work(target.parent, [(source, Path(target.name))], single=True, keys={source: source.stem})
    if is_video(source):
        if video_suffix(target) != target.suffix.lower():
            raise UserError(f"--output: {_not_written(source, target)}")
    else:
        work.format = format_of(target.suffix)
        if image_format not in (None, work.format):
            raise UserError(f"--format: {image_format} does not fit {target}; leave one of them out")
    _refuse_inputs(work)
    return work


def _keys(files: list[tuple[Path, Path]]) -> dict[Path, str]:
    """Return file -> key of (file, its own path below the folder); see Work."""
    owners = Counter(below.with_suffix("") for _, below in files)
    keys = {}
    for file, below in files:
        name = below.stem
        if owners[below.with_suffix("")] > 1:
            name = below.name
        folders = below.parent.parts
        keys[file] = "/".join((*folders, name))
    return keys


def _named(
    files: list[tuple[Path, Path]], keys: Mapping[Path, str], image_suffix: str, suffix: str
) -> list[tuple[Path, Path]]:
    """Return (file, path of its result) of (file, its own path below the folder)."""
    work = []
    for file, below in files:
        end = image_suffix
        if is_video(file):
            end = video_suffix(file)
        name = keys[file].rsplit("/", 1)[-1]
        work.append((file, below.with_name(f"{name}{suffix}{end}")))
    return work


def _listed(places: list[str], output: str) -> Work:
    """Return the files of all places, each once, with their paths below the place."""
    if STREAM in places:
        if len(places) > 1:
            raise UserError("--input: - is standard input and stands alone")
        return Work(None, [(Path(STREAM), Path("stdin"))])
    work, known = Work(None), set()
    for place in places:
        for file, below in _of_place(place, output, work.unreadable):
            identity = file.absolute()
            if identity not in known:
                known.add(identity)
                work.files.append((file, below))
    return work


def _of_place(place: str, output: str, unreadable: list[str]) -> list[tuple[Path, Path]]:
    """Return the files of one word of --input. unreadable: gets a sentence for each folder that cannot be read."""
    path = Path(place)
    if path.is_dir():
        return _of_folder(path, Path(output), unreadable)
    if path.exists() or path.is_symlink():
        return [(path, Path(path.name))]
    if not glob.has_magic(place):
        raise UserError(f"{place}: no such image or folder")
    files = []
    for match in sorted(glob.glob(place, recursive=True)):
        file = Path(match)
        if file.suffix.lower() in _FILE_SUFFIXES and not file.is_dir():
            files.append((file, Path(file.name)))
    if not files:
        raise UserError(f"{place}: no image or video has such a name")
    return files


def _of_folder(folder: Path, output: Path, unreadable: list[str]) -> list[tuple[Path, Path]]:
    """Return the files of a folder and of those below it."""
    refuse_folder_of_images(output, folder, "--output")
    return files_of_folder(folder, unreadable, _FILE_SUFFIXES, [output])


def files_of_folder(
    folder: Path, unreadable: list[str], suffixes: Set[str] = PICTURE_SUFFIXES, output: Sequence[Path] = ()
) -> list[tuple[Path, Path]]:
    """Return (file, path below the folder) of the files to restore below a folder, sorted; log what is left out.

    unreadable: gets a sentence for each folder that cannot be read. output: see list_files. Raises UserError where
    there is none.
    """
    listing = list_files(folder, suffixes, output=output)
    listing.report()
    if not listing.files and not listing.unreadable:
        raise UserError(f"{folder}: holds no images ({', '.join(sorted(PICTURE_SUFFIXES))})")
    unreadable += listing.unreadable
    files = []
    for below in sorted(map(Path, listing.files)):
        files.append((folder / below, below))
    return files


def planned(work: Work, samples: int, bad: list[str]) -> list[tuple[Path, dict[int, Path]]]:
    """Return (file, its targets) of each file; add a sentence to `bad` for one that cannot have its own."""
    owners: dict[Path, Path] = {}
    plans, sources = [], work.sources()
    for file, name in work.files:
        try:
            count = samples
            if is_video(file):
                count = 1
            targets = _targets(file, work.folder or Path(), name, count)
            for target in targets.values():
                if owners.setdefault(target, file) != file:
                    raise UserError(f"{file}: and {owners[target]} would both be restored to {target}; rename one")
                if target.exists() and target.resolve() in sources:
                    raise UserError(f"{file}: would be restored to {target}, which is one of the images; rename it")
        except UserError as error:
            bad.append(str(error))
        else:
            plans.append((file, targets))
    return plans


def _targets(file: Path, folder: Path, name: Path, samples: int) -> dict[int, Path]:
    """Return sample number -> path of the result in the folder, NAME_s0.png and so on; UserError for a bad name."""
    key, targets = name.with_suffix("").as_posix(), {}
    for number in range(samples):
        suffix = name.suffix
        if samples > 1:
            suffix = f"_s{number}{name.suffix}"
        targets[number] = output_path(folder, key, suffix, file)
    return targets
