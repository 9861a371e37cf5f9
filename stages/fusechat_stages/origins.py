"""Where models and data come from: hf://, s3:// and file:// folders as one list of readable files.

Used by resolve (to pin) and fetch (to copy). Knows no stage and no artifact.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from fusechat.address import digest
from fusechat.errors import BadData, Unavailable
from fusechat.store import FileEntry, Store

CHUNK = 8 << 20
COMMIT = re.compile(r"^[0-9a-f]{40}$")
MODEL_FILES = re.compile(
    r"^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|"
    r"chat_template|preprocessor_config)\.(json|txt|model|jinja)$"
    r"|\.safetensors$|\.safetensors\.index\.json$|^merges\.txt$|^[^/]*\.(tiktoken|spm)$|^LICENSE[^/]*$"
)
PICKLES = re.compile(r"\.(bin|pt|pth|ckpt|pkl)$")
DATA_FILES = re.compile(r"\.(json|jsonl|parquet|arrow)$")


@dataclass(frozen=True)
class Origin:
    """One file: its path below the URI, its size in bytes, and how to read it in chunks."""

    path: str
    size: int
    chunks: Callable[[], Iterator[bytes]]

    def copy(self, target: Path) -> str:
        """Write the file to `target`; returns its sha256."""
        target.parent.mkdir(parents=True, exist_ok=True)
        seen = hashlib.sha256()
        with target.open("wb") as file:
            for chunk in self.chunks():
                seen.update(chunk)
                file.write(chunk)
        return seen.hexdigest()

    def sha256(self) -> str:
        """sha256 of the content, in hex."""
        seen = hashlib.sha256()
        for chunk in self.chunks():
            seen.update(chunk)
        return seen.hexdigest()


def list_model(uri: str, revision: str | None, *, code: bool = False) -> list[Origin]:
    """The files of a model that we take: safetensors, configuration, tokenizer; `*.py` only when allowed."""
    found = _list(uri, revision)
    taken = [o for o in found if MODEL_FILES.search(o.path) or (code and o.path.endswith(".py"))]
    if not any(o.path == "config.json" for o in taken):
        raise BadData(
            f"{uri}: no config.json among {_some(found)}; expected the folder of a transformers model"
        )
    if not any(o.path.endswith(".safetensors") for o in taken):
        pickles = [o for o in found if PICKLES.search(o.path)]
        held = f"only pickled weights ({_some(pickles)})" if pickles else "no weights"
        raise BadData(
            f"{uri}: {held}; expected *.safetensors: save the model with save_pretrained() and name that"
        )
    return taken


def list_data(uri: str, revision: str | None, split: str | None = None) -> list[Origin]:
    """The data files of a dataset; of a folder with splits, those whose path names `split`."""
    found = [o for o in _list(uri, revision) if DATA_FILES.search(o.path)]
    if not found:
        raise BadData(
            f"{uri}: no .json, .jsonl, .parquet or .arrow file; expected conversations in one of these"
        )
    named = [o for o in found if split and split in re.split(r"[^A-Za-z0-9]+", o.path)]
    return named or found


def pin(uri: str, revision: str | None, files: list[Origin]) -> str:
    """What the address holds: `hf:<commit>`, or `sha256:<digest>` over the files' paths and contents."""
    if uri.startswith("hf://"):
        return f"hf:{_hub_commit(uri, revision)}"
    return f"sha256:{digest([[o.path, o.size, o.sha256()] for o in sorted(files, key=lambda o: o.path)])}"


def _list(uri: str, revision: str | None) -> list[Origin]:
    scheme = uri.partition("://")[0]
    if scheme not in _LISTERS:
        raise BadData(f"{uri}: unknown scheme, expected hf://, s3:// or file://")
    return sorted(_LISTERS[scheme](uri, revision), key=lambda origin: origin.path)


def _some(origins: list[Origin]) -> str:
    names = [o.path for o in origins]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "nothing"


def _list_folder(uri: str, _: str | None) -> list[Origin]:
    root = Path(unquote(urlparse(uri).path))
    if root.is_file():
        return [_local(root, root.name)]
    if not root.is_dir():
        raise BadData(f"{uri}: no such file or folder on this machine; check the path, or make it first")
    return [_local(path, path.relative_to(root).as_posix()) for path in root.rglob("*") if path.is_file()]


def _local(path: Path, name: str) -> Origin:
    def chunks() -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    return Origin(name, path.stat().st_size, chunks)


def _list_s3(uri: str, _: str | None) -> list[Origin]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    store = Store(f"s3://{bucket}")
    prefix = key.rstrip("/")
    found = [o for o in store.keys(prefix) if o.key == prefix or not prefix or o.key.startswith(prefix + "/")]
    if not found:
        raise BadData(f"{uri}: nothing lies there; check the bucket and the prefix")
    return [
        _remote(store, o.key, o.size, o.key.removeprefix(prefix).lstrip("/") or Path(o.key).name)
        for o in found
    ]


def _remote(store: Store, key: str, size: int, name: str) -> Origin:
    entry = FileEntry(name, key, size, "")

    def chunks() -> Iterator[bytes]:
        for start in range(0, size, CHUNK):
            yield store.read(entry, start, min(CHUNK, size - start))

    return Origin(name, size, chunks)


def _hub(uri: str) -> tuple[str, str]:
    """(repository kind, repository id) of hf://owner/name or hf://datasets/owner/name."""
    path = uri.removeprefix("hf://").strip("/")
    return ("dataset", path.removeprefix("datasets/")) if path.startswith("datasets/") else ("model", path)


def _hub_commit(uri: str, revision: str | None) -> str:
    return revision if revision and COMMIT.match(revision) else str(_hub_info(uri, revision).sha)


def _hub_info(uri: str, revision: str | None) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    kind, name = _hub(uri)
    try:
        return HfApi().repo_info(name, repo_type=kind, revision=revision, files_metadata=True, timeout=30)
    except RepositoryNotFoundError as error:
        raise BadData(f"{uri}: no such {kind} on the hub, or it is gated and HF_TOKEN is not set") from error
    except RevisionNotFoundError as error:
        raise BadData(
            f"{uri}: no revision {revision!r}; name a branch, a tag or a full commit of it"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        where = os.environ.get("HF_ENDPOINT", "the hub")
        raise Unavailable(
            f"{uri}: {where} does not answer ({type(error).__name__}); it is tried again"
        ) from error


def _list_hub(uri: str, revision: str | None) -> list[Origin]:
    info = _hub_info(uri, revision)
    return [_hub_file(uri, str(info.sha), sibling) for sibling in info.siblings]


def _hub_file(uri: str, commit: str, sibling: Any) -> Origin:
    kind, name = _hub(uri)

    def chunks() -> Iterator[bytes]:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            path = hf_hub_download(name, sibling.rfilename, repo_type=kind, revision=commit)
        except (HfHubHTTPError, OSError) as error:
            raise Unavailable(
                f"{uri}: {sibling.rfilename} could not be fetched ({error}); it is tried again"
            ) from error
        yield from _local(Path(path), sibling.rfilename).chunks()
        # The hub's cache holds the blob behind a link: both go, or a 70B model would fill the scratch twice.
        Path(path).resolve().unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)

    return Origin(sibling.rfilename, int(sibling.size or 0), chunks)


_LISTERS: Mapping[str, Callable[[str, str | None], list[Origin]]] = {
    "file": _list_folder,
    "s3": _list_s3,
    "hf": _list_hub,
}
