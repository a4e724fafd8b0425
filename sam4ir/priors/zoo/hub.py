"""Weights of a model hub by name: hf:owner/name[@revision][/file].

huggingface_hub transfers the files; its variables HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold here too. A file lies
in $SAM4IR_HOME/hub/owner/name/<commit>, and its size and hash are compared with those that the hub states. A branch is
looked up at each use; where the hub cannot be reached, the commit that it had last is taken.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from filelock import FileLock

from sam4ir.errors import first_line
from sam4ir.priors.zoo.download import WeightsError, is_accepted
from sam4ir.utils.files import make_folder, read_text, write_text
from sam4ir.utils.weights import HUB

log = logging.getLogger(__name__)

OPTIONS_FILE = "options.yml"  # of a model: describes the network of its weights
WEIGHTS_FILE = "model.safetensors"  # of a model, where several hold weights
LARGEST_OPTIONS = 1 << 20  # bytes
EXTRA = 'models of a hub need huggingface_hub, which is not installed: pip install "sam4ir[hub]"'

_NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([^/@\s]+))?(?:/(\S.*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"\b(?:hf|api_org)_\w+|(?<=Bearer )\S+")
_SUFFIXES = (".safetensors", ".pth", ".pt")
_MAIN = "main"


class HubName(NamedTuple):
    """The parts of hf:owner/name[@revision][/file]. file: '' leaves it open."""

    owner: str
    name: str
    revision: str
    file: str

    @property
    def model(self) -> str:
        return f"{self.owner}/{self.name}"


class HubFile(NamedTuple):
    """What the hub states of a file. sha256: of a large one; blob: the git hash of a small one."""

    size: int | None
    sha256: str | None
    blob: str | None


def hub_name(source: str | Path) -> HubName:
    """Return the parts of a name. Raises WeightsError for a name of another form."""
    match = _NAME.fullmatch(str(source))
    if match is None or ".." in PurePosixPath(match[4] or "").parts:
        raise WeightsError(
            f"{source}: is no model of a hub; write hf:owner/name, hf:owner/name@revision or hf:owner/name/file"
        )
    return HubName(match[1], match[2], match[3] or _MAIN, match[4] or "")


def hub_weights(source: str | Path) -> Path:
    """Return the local file of the weights that a name means, fetched if it is missing.

    Without a file in the name it is model.safetensors, or the only weights file of the model.
    Raises WeightsError for an unknown model, revision or file, without huggingface_hub, and for a file whose size or
    hash is not what the hub states.
    """
    name = hub_name(source)
    files = _snapshot(name)
    return _fetched(name, files, name.file or _weights_file(source, files.files))


def hub_options(source: str | Path) -> Path | None:
    """Return the local option file of a model, fetched if it is missing; None where the model has none."""
    name = hub_name(source)
    files = _snapshot(name)
    if OPTIONS_FILE not in files.files:
        return None
    size = files.files[OPTIONS_FILE].size
    if size is not None and size > LARGEST_OPTIONS:
        raise WeightsError(
            f"{source}: its {OPTIONS_FILE} has {size:,} bytes; an option file has at most {LARGEST_OPTIONS:,}"
        )
    return _fetched(name, files, OPTIONS_FILE)


class _Snapshot(NamedTuple):
    """A commit of a model. files: by name. folder: where those that were fetched lie."""

    commit: str
    files: Mapping[str, HubFile]
    folder: Path


def hub_folder() -> Path:
    """Return $SAM4IR_HOME/hub, or ~/.cache/sam4ir/hub."""
    home = os.environ.get("SAM4IR_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    return Path.home() / ".cache" / "sam4ir" / "hub"


def endpoint() -> str | None:
    """Return the address of the hub, HF_ENDPOINT; None is that of huggingface_hub."""
    return os.environ.get("HF_ENDPOINT") or None


def without_tokens(text: str) -> str:
    """Return a text in which whatever looks like an access token is replaced."""
    return _TOKEN.sub("<token>", text)


@contextmanager
def hub_errors(model: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub inside the block into WeightsErrors that say what would do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise WeightsError(
            f"{HUB}{model}: its authors ask for an agreement first; accept it on the page of the model, then give your "
            "token by `hf auth login` or HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(
            f"{HUB}{model}: the hub has no such model, or it is private; look at the name, or give a token that may "
            "read it by `hf auth login` or HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise WeightsError(f"{HUB}{model}: has no such revision; give a branch, a tag or a commit of it") from None
    except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError, errors.HFValidationError) as error:
        reason = without_tokens(first_line(error))
        raise WeightsError(f"{HUB}{model}: the hub refuses ({reason})") from None


def unreachable_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions of a hub that cannot be reached; hub_errors turns answers that refuse into others first."""
    from huggingface_hub import errors

    return OSError, errors.HTTPError  # the base of all errors of its HTTP library


def _snapshot(name: HubName) -> _Snapshot:
    """Return the commit that a name means, with the files that the hub states for it."""
    folder = hub_folder() / name.owner / name.name
    if _COMMIT.fullmatch(name.revision):
        listed = _recorded(folder, name.revision)
        if listed is not None:
            return _Snapshot(name.revision, listed, folder / name.revision)
    try:
        commit, files = _asked(name)
    except _Unreachable as error:
        last = _last_commit(folder, name.revision)
        listed = None
        if last is not None:
            listed = _recorded(folder, last)
        if last is None or listed is None:
            reason = without_tokens(first_line(error))
            raise WeightsError(
                f"{HUB}{name.model}: the hub cannot be reached ({reason}), and nothing of it is in {folder}"
            ) from None
        log.warning(
            "%s%s: the hub cannot be reached; commit %s is taken, which it had last", HUB, name.model, last[:12]
        )
        return _Snapshot(last, listed, folder / last)
    make_folder(folder / commit)
    _record(folder, name.revision, commit, files)
    return _Snapshot(commit, files, folder / commit)


class _Unreachable(Exception):
    """The hub does not answer."""


def _asked(name: HubName) -> tuple[str, dict[str, HubFile]]:
    """Ask the hub for a commit and its files."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise WeightsError(EXTRA) from None
    try:
        with hub_errors(name.model):
            info: Any = HfApi(endpoint=endpoint()).model_info(
                name.model, revision=name.revision, files_metadata=True, timeout=30
            )
    except unreachable_errors() as error:
        raise _Unreachable(str(error)) from error
    commit = str(info.sha)
    if _COMMIT.fullmatch(commit) is None:
        raise WeightsError(f"{HUB}{name.model}: the hub states no commit ({commit[:40]!r}); is a proxy answering?")
    files = {}
    for sibling in info.siblings or ():
        if ".." not in PurePosixPath(sibling.rfilename).parts and not sibling.rfilename.startswith("/"):
            digest = sibling.lfs.sha256 if sibling.lfs is not None else None
            files[sibling.rfilename] = HubFile(sibling.size, digest, sibling.blob_id)
    return commit, files


def _weights_file(source: str | Path, files: Mapping[str, HubFile]) -> str:
    """Return the name of the weights file of a model. Raises WeightsError where none or several would do."""
    if WEIGHTS_FILE in files:
        return WEIGHTS_FILE
    for suffix in _SUFFIXES:
        names = [name for name in files if name.endswith(suffix)]
        if len(names) == 1:
            return names[0]
        if names:
            raise WeightsError(f"{source}: has several weights files; name one: {', '.join(sorted(names)[:10])}")
    raise WeightsError(f"{source}: has no weights file ({', '.join(_SUFFIXES)})")


def _fetched(name: HubName, files: _Snapshot, file: str) -> Path:
    """Return a file of a commit, fetched if it is missing, once its size and hash are right."""
    if file not in files.files:
        listed = ", ".join(sorted(files.files)[:10])
        raise WeightsError(f"{HUB}{name.model}: has no file {file} at {name.revision}; it has {listed}")
    stated = files.files[file]
    target = files.folder / file
    make_folder(target.parent)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            _transfer(name, files, file)
        try:
            _require_right(target, stated)
        except WeightsError:
            target.unlink(missing_ok=True)
            raise
    return target


def _transfer(name: HubName, files: _Snapshot, file: str) -> None:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise WeightsError(EXTRA) from None
    log.info("fetching %s of %s%s, commit %s", file, HUB, name.model, files.commit[:12])
    try:
        with hub_errors(name.model):
            hf_hub_download(
                name.model, file, revision=files.commit, local_dir=files.folder, endpoint=endpoint(), etag_timeout=30
            )
    except unreachable_errors() as error:
        reason = without_tokens(first_line(error))
        raise WeightsError(f"{HUB}{name.model}: {file} could not be fetched ({reason}); try again") from None


def _require_right(target: Path, stated: HubFile) -> None:
    """Raise WeightsError where a file is not the one that the hub states."""
    if stated.sha256 is not None:
        is_accepted(target, stated.sha256, stated.size)
        return
    data = target.read_bytes()
    if stated.size is not None and len(data) != stated.size:
        raise WeightsError(
            f"{target}: has {len(data):,} bytes, the hub states {stated.size:,}; it was removed, try again"
        )
    if stated.blob is not None:
        digest = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if digest != stated.blob:
            raise WeightsError(
                f"{target}: its git hash is {digest}, the hub states {stated.blob}; it was removed, try again"
            )


def _record(folder: Path, revision: str, commit: str, files: Mapping[str, HubFile]) -> None:
    """Keep what the hub stated, for a later use without a connection."""
    lines = []
    for file, stated in files.items():
        lines.append("\t".join([file, *(str(value if value is not None else "") for value in stated)]))
    write_text(folder / f"{commit}.txt", "\n".join(lines) + "\n")
    if revision != commit:
        write_text(folder / f"{_safe(revision)}.ref", commit + "\n")


def _recorded(folder: Path, commit: str) -> dict[str, HubFile] | None:
    """Return the files that the hub stated for a commit; None where it was never asked."""
    place = folder / f"{commit}.txt"
    if not place.is_file():
        return None
    files = {}
    for line in read_text(place).splitlines():
        parts = line.split("\t")
        if len(parts) == 4 and (not parts[1] or parts[1].isdecimal()):
            size = int(parts[1]) if parts[1] else None
            files[parts[0]] = HubFile(size, parts[2] or None, parts[3] or None)
    return files


def _last_commit(folder: Path, revision: str) -> str | None:
    """Return the commit that a branch or tag had last; None where it was never asked for."""
    place = folder / f"{_safe(revision)}.ref"
    if not place.is_file():
        return None
    commit = read_text(place).strip()
    if _COMMIT.fullmatch(commit) is None:
        return None
    return commit


def _safe(revision: str) -> str:
    """Return a revision as the name of a file."""
    return re.sub(r"[^\w.-]", "_", revision)
