"""Downloads from the Hugging Face hub that survive interruptions.

A download continues where an earlier one broke off, is checked against the hub's size and hash, and only then gets its
name. After a transient failure (no connection, server errors) it is tried again for about twenty seconds; for any other
failure, the error names the remedy.

Addresses, headers and metadata are huggingface_hub's. The transfer is ours, because its own (2.4) would break promises:
`hf_hub_download` begins again after a kill, fetches a file once for each process that asks and deletes it under the
others, and keeps wrong bytes of the right number; `list_repo_files` waits without end for a server that fell silent.
Everything goes over plain HTTP and nothing over Xet, as with ``HF_HUB_DISABLE_XET=1``. The library is imported only
where a socket is opened.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from nanochat_pl.paths import first_line, move_into_place

__all__ = ["fetch_hub_file", "fetch_hub_files", "list_hub_files"]

log = logging.getLogger(__name__)

RepoType = Literal["dataset", "model"]
_Value = TypeVar("_Value")

_ATTEMPTS = 5
_WAIT = wait_exponential_jitter(initial=1, max=30)  # seconds; about twenty in all
_TIMEOUT_S = 30.0  # without a byte from the hub


def fetch_hub_file(
    repo: str,
    filename: str,
    dest: str | Path,
    *,
    repo_type: RepoType = "dataset",
    revision: str = "main",
    offline: bool = False,
    endpoint: str | None = None,
) -> Path:
    """Return ``dest``, downloaded from a Hugging Face repository unless it is there already.

    Several processes may ask for one file: the first downloads, the others wait. An interrupted download leaves
    ``.<name>.<hash>.partial`` next to ``dest``, and the next call continues it.

    Args:
        repo: ``owner/name``.
        filename: Path inside the repository.
        dest: Final path of the file.
        repo_type: Kind of repository.
        revision: Branch, tag or commit.
        offline: Open no socket; a file that is not there is an error. The variable ``HF_HUB_OFFLINE=1`` does the same.
        endpoint: Address of the hub; None = the variable ``HF_ENDPOINT``, else huggingface.co.

    Raises:
        FileNotFoundError: If the file is not here and cannot be fetched: offline, unknown to the hub, no access, or the
            hub could not be reached in several attempts.
        OSError: If it cannot be written (no space left).
    """
    dest = Path(dest)
    if dest.is_file():
        return dest
    what = f"{filename} of the {repo_type} {repo}"
    if offline:
        raise FileNotFoundError(
            f"{dest} is not here and offline=true forbids fetching {what}; put the file there or set offline=false"
        )
    import huggingface_hub
    from filelock import FileLock
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"{dest} is not here and HF_HUB_OFFLINE forbids fetching {what}; unset that variable")
    url = huggingface_hub.hf_hub_url(repo, filename, repo_type=repo_type, revision=revision, endpoint=endpoint)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(dest.with_name(f".{dest.name}.lock")):
        if not dest.is_file():  # else another process was faster
            log.info("fetching %s from %s", what, url)
            again = f"run again to continue, or put the file at {dest}"
            _with_retries(lambda: _download(url, dest), f"could not fetch {what} from {url}", again)
    return dest


def fetch_hub_files(
    repo: str, filenames: Sequence[str], folder: str | Path, *, num_threads: int = 4, **options: Any
) -> list[Path]:
    """Fetch several files of one repository into ``folder`` under their own names; see `fetch_hub_file`.

    After an error the complete files stay, and the next call fetches the rest.
    """

    def fetch(filename: str) -> Path:
        return fetch_hub_file(repo, filename, Path(folder) / filename, **options)

    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        return list(pool.map(fetch, filenames))


def list_hub_files(
    repo: str, *, repo_type: RepoType = "dataset", revision: str = "main", endpoint: str | None = None
) -> list[str]:
    """List the paths of all files in a Hugging Face repository; arguments are those of `fetch_hub_file`.

    Raises:
        FileNotFoundError: If the listing cannot be fetched: offline, unknown to the hub, no access, or the hub could
            not be reached in several attempts.
    """
    from huggingface_hub import constants

    what = f"the files of the {repo_type} {repo}"
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"HF_HUB_OFFLINE forbids listing {what}; unset that variable")
    url = f"{endpoint or constants.ENDPOINT}/api/{repo_type}s/{repo}/tree/{quote(revision, safe='')}?recursive=true"
    return _with_retries(lambda: _list(url), f"could not list {what} at {url}", "run again")


class _BrokenDownloadError(OSError):
    """The body differs from what the hub announced."""


def _list(url: str) -> list[str]:
    """List files in one attempt, page by page."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    names: list[str] = []
    page: str | None = url
    while page is not None:
        response = get_session().get(page, headers=build_hf_headers(), timeout=_TIMEOUT_S, follow_redirects=True)
        hf_raise_for_status(response)
        try:
            names += [str(entry["path"]) for entry in response.json() if entry["type"] == "file"]
        except (ValueError, KeyError, TypeError) as error:
            raise _BrokenDownloadError(f"the answer is no listing: {first_line(error)}") from error
        page = response.links.get("next", {}).get("url")
    return names


def _download(url: str, dest: Path) -> None:
    """Fetch ``url`` to ``dest`` in one attempt, continuing what earlier attempts left."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    file = get_hf_file_metadata(url, timeout=_TIMEOUT_S)
    # Named by content: a file that changed on the hub never continues the old one's beginning.
    partial = dest.with_name(f".{dest.name}.{hashlib.sha256(str(file.etag).encode()).hexdigest()[:12]}.partial")
    have_bytes = partial.stat().st_size if partial.is_file() else 0
    if not partial.is_file() or have_bytes != file.size:
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # sizes and ranges count the file's own bytes
        if have_bytes:
            headers["Range"] = f"bytes={have_bytes}-"
        session = get_session()
        with session.stream("GET", url, headers=headers, timeout=_TIMEOUT_S, follow_redirects=True) as response:
            if response.status_code == 416:  # the partial file is longer than the real one
                partial.unlink(missing_ok=True)
                raise _BrokenDownloadError(f"the hub has nothing after byte {have_bytes}")
            hf_raise_for_status(response)
            continues = response.status_code == 206  # else the server ignored the range and sends all of it
            with partial.open("ab" if continues else "wb") as out:
                for chunk in response.iter_bytes():  # unbuffered: larger chunks would be lost on a break
                    out.write(chunk)
    _check(partial, file.size, file.etag)
    move_into_place(partial, dest)


def _check(partial: Path, size: int | None, etag: str | None) -> None:
    """Compare the file with the hub's size and hash; remove it if continuing cannot mend it."""
    found = partial.stat().st_size
    if size is not None and found < size:
        raise _BrokenDownloadError(f"the body ended after {found} of {size} bytes")
    wrong = None
    if size is not None and found > size:
        wrong = f"{found} bytes came where {size} were announced"
    elif etag is not None and len(etag) == 64:  # a large file's etag is its SHA-256
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != etag:
            wrong = f"SHA-256 is {digest}, announced was {etag}"
    if wrong is not None:
        partial.unlink()
        raise _BrokenDownloadError(wrong)


def _with_retries(action: Callable[[], _Value], failure: str, again: str) -> _Value:
    """Try `action` again after transient failures; for other failures, raise an error with the remedy."""
    attempts = Retrying(
        stop=stop_after_attempt(_ATTEMPTS),
        wait=_WAIT,
        retry=retry_if_exception(_is_transient),
        before_sleep=_log_retry,
        reraise=True,
    )
    try:
        return attempts(action)
    except Exception as error:
        status = _status(error)
        if status in (401, 403):
            hint = "the repository is private or gated, or its name is wrong: check the name, then `hf auth login`"
        elif status == 404:
            hint = "the hub knows no such repository, revision or file; check the names"
        elif _is_transient(error):
            hint = f"gave up after {_ATTEMPTS} attempts; {again}"
        else:
            raise
        raise FileNotFoundError(f"{failure} ({first_line(error)}): {hint}") from error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_transient(error: BaseException) -> bool:
    """Return whether another attempt may succeed.

    This goes by exclusion, since each major version of huggingface_hub has other classes for errors of the transport.
    """
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(error, OSError):  # a full disk, a missing permission or a bad name persists; connections come back
        return isinstance(error, (ConnectionError, TimeoutError, _BrokenDownloadError))
    return isinstance(error, Exception) and not isinstance(error, (ValueError, TypeError, AttributeError))


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_s = state.next_action.sleep if state.next_action else 0.0
    log.warning("attempt %d failed (%s); trying again in %.0f s", state.attempt_number, first_line(error), wait_s)
