"""The command `python -m vologan_fast.hub`: model folders to and from Hugging Face, or another server of its kind.

python -m vologan_fast.hub push runs/first NAME/MODEL --license mit
python -m vologan_fast.hub pull NAME/MODEL models/first

huggingface_hub reads the address of the server and the token from the environment: HF_ENDPOINT, HF_TOKEN.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vologan_fast import stopping
from vologan_fast.config import ConfigError
from vologan_fast.files import folder_aside, publish, remove
from vologan_fast.words import in_words, say, say_error

FILES = ("model.safetensors", "config.json", "README.md", "checksums.json")
PROGRAMS = ("*.onnx", "*.pt2")
"""What is pushed and pulled, without subfolders."""
_MOST_FILES = 100
_LARGEST_ANSWER = 1 << 24
"""Bytes of what a server answers besides the files, such as lists and redirections. Usually they are thousands."""
_STALLED = 30.0
"""Seconds without a byte after which a server counts as one that does not answer."""


class HubError(RuntimeError):
    """The server or the way to it failed. The message names the repository and the problem."""


@dataclass
class Push:
    """Upload a model folder, or the last checkpoint of a run, as one commit."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A model folder, a run folder or a checkpoint's folder."""
    repository: Annotated[str, tyro.conf.Positional]
    """NAME/MODEL. It is made if it does not exist."""
    private: bool = False
    """Make a new repository private."""
    revision: str | None = None
    """Branch to write. It is made if it does not exist. Default: the main branch."""
    direction: Literal["s2t", "t2s"] | None = None
    """The generator of a run. Default: s2t, or the direction of a model folder."""
    weights: Literal["average", "trained"] = "average"
    """The weights of a run: averaged, if it has them, or those of the last step."""
    license: str | None = None
    """Licence for the model card of a run, as Hugging Face names it, such as `mit` or `cc-by-4.0`."""


@dataclass
class Pull:
    """Download a model folder. It is complete or absent."""

    repository: Annotated[str, tyro.conf.Positional]
    """NAME/MODEL."""
    folder: Annotated[Path, tyro.conf.Positional]
    """Folder to write. It must be empty or new."""
    revision: str | None = None
    """Branch, tag or commit. Default: the main branch."""
    max_gigabytes: float = 10.0
    """Most gigabytes of all files together. A server that sends more, or more than it has announced, is cut off."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    push_or_pull = Annotated[Push, tyro.conf.subcommand("push")] | Annotated[Pull, tyro.conf.subcommand("pull")]
    arguments: Any = tyro.cli(push_or_pull, args=argv, prog="python -m vologan_fast.hub")
    from vologan_fast.training.checkpoint import CheckpointError

    try:
        with stopping.interrupting():  # a signal removes what is unfinished
            _push(arguments) if isinstance(arguments, Push) else _pull(arguments)
    except (ConfigError, CheckpointError, HubError) as error:
        say_error(f"error: {error}")
        return 1
    return 0


def _push(arguments: Push) -> None:
    from vologan_fast.translation.model_folder import programs_in, write_model_folder
    from vologan_fast.translation.translator import MODEL_FILE, load

    hub = _library()
    model = load(arguments.folder, arguments.direction, device="cpu", averages=arguments.weights == "average")
    with contextlib.ExitStack() as stack:
        folder = model.weights.parent
        if model.weights.name != MODEL_FILE:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_model_folder(model, folder, arguments.license)
        elif arguments.license is not None:
            raise ConfigError(f"--license: {folder} has a model card already; write the licence into its README.md")
        elif arguments.weights != "average":
            raise ConfigError(f"--weights: {folder} is a model folder, which has one generator; expected no --weights")
        with _errors(arguments.repository, arguments.revision):
            api = hub.HfApi(library_name="vologan-fast")
            api.create_repo(arguments.repository, private=arguments.private, exist_ok=True)
            if arguments.private and not api.model_info(arguments.repository).private:
                raise HubError(
                    "exists and is public, so --private has no effect; expected another name, or no --private"
                )
            if arguments.revision is not None:
                api.create_branch(arguments.repository, branch=arguments.revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=arguments.repository,
                folder_path=folder,
                revision=arguments.revision,
                allow_patterns=[*FILES, *map(glob.escape, programs_in(folder))],  # "*.onnx" matches in subfolders, too
                commit_message=f"{model.direction} generator",
            )
    say(f"pushed {model.weights} to {commit.commit_url}")


def _pull(arguments: Pull) -> None:
    from vologan_fast.translation.translator import load

    hub, folder = _library(), arguments.folder
    if not (math.isfinite(arguments.max_gigabytes) and arguments.max_gigabytes > 0):
        raise ConfigError(f"--max-gigabytes {arguments.max_gigabytes:g}: expected more than 0")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: exists and is not empty; expected a new folder")
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with folder_aside(folder) as aside:
            with _errors(arguments.repository, arguments.revision):
                _download(hub, arguments, aside)
            remove(aside / ".cache")  # huggingface_hub's notes on the download
            load(aside, device="cpu")  # raises an error for another kind of model
            publish(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror or error})") from error
    say(f"pulled {arguments.repository} to {folder}")


def _download(hub: Any, arguments: Pull, folder: Path) -> None:
    """Download the files of a model folder into `folder`. Raises HubError for what the server must not do."""
    hub.constants.HF_HUB_DISABLE_XET = True  # it would download by itself, past the limits
    left = int(arguments.max_gigabytes * 1e9)
    with _limited(hub) as allow:
        allow(_LARGEST_ANSWER)
        found = hub.HfApi(library_name="vologan-fast").model_info(
            arguments.repository, revision=arguments.revision, files_metadata=True, timeout=_STALLED
        )
        sizes = {file.rfilename: file.size for file in found.siblings or () if _is_pulled(file.rfilename)}
        known = sum(size or 0 for size in sizes.values())
        if len(sizes) > _MOST_FILES:
            raise HubError(f"found {len(sizes)} files; expected at most {_MOST_FILES}")
        if known > left:
            raise HubError(f"{in_words(known)}; expected at most {in_words(left)} (--max-gigabytes)")
        if known > (free := shutil.disk_usage(folder).free):
            raise HubError(f"{in_words(known)}; only {in_words(free)} are free on the disk of {arguments.folder}")
        for name, size in sizes.items():
            allow((left if size is None else size) + _LARGEST_ANSWER)
            file = hub.hf_hub_download(arguments.repository, name, revision=found.sha, local_dir=folder)
            got = Path(file).stat().st_size
            if got > left or size not in (None, got):
                expected = f"at most {left}" if size is None else f"{size}"
                raise HubError(f"{name}: expected {expected} bytes, found {got}")
            left -= got


def _is_pulled(name: str) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in (*FILES, *PROGRAMS))


@contextlib.contextmanager
def _limited(hub: Any) -> Iterator[Callable[[int], None]]:
    """Limit the bytes of all answers that huggingface_hub reads. Yields the function that allows so many from now on.

    It also ends a wait for a server that does not answer. Packed answers are refused, because a few bytes may become
    billions.
    """
    left = 0

    def allow(count: int) -> None:
        nonlocal left
        left = count

    def ask(request: Any) -> None:
        request.headers["Accept-Encoding"] = "identity"

    def limit(response: Any) -> None:
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            raise HubError(f"the server packs its answers ({encoding}); expected them as they are")
        opened = response.stream

        class Limited(type(opened)):  # type: ignore[misc]  # the client looks at the type
            def __init__(self) -> None:
                pass

            def __iter__(self) -> Iterator[bytes]:
                nonlocal left
                for piece in opened:
                    left -= len(piece)
                    if left < 0:
                        raise HubError("the server sends more than it has announced, or more than is allowed")
                    yield piece

            def close(self) -> None:
                opened.close()

        response.stream = Limited()

    plain = hub.get_session()
    hooks = {"request": [*plain.event_hooks["request"], ask], "response": [*plain.event_hooks["response"], limit]}
    clients = ((hooks, _STALLED), (plain.event_hooks, plain.timeout))
    limited, former = (
        lambda hooks=hooks, timeout=timeout: type(plain)(event_hooks=hooks, follow_redirects=True, timeout=timeout)
        for hooks, timeout in clients
    )
    hub.set_client_factory(limited)
    try:
        yield allow
    finally:
        hub.set_client_factory(former)


def _library() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars, logging
    except ImportError as error:
        raise ConfigError("push and pull need huggingface_hub: pip install 'vologan-fast[hf]'") from error
    logging.set_verbosity_error()  # our sentence says the same as its warnings
    if not sys.stderr.isatty():
        disable_progress_bars()
    return huggingface_hub


@contextlib.contextmanager
def _errors(repository: str, revision: str | None) -> Iterator[None]:
    """Raise HubError with one sentence for any error of huggingface_hub, and of the libraries that it uses."""
    from huggingface_hub import constants, errors

    try:
        yield
    except HubError as error:
        raise HubError(f"{repository} at {constants.ENDPOINT}: {error}") from error
    except errors.HFValidationError as error:
        raise HubError(f"{repository}: expected the name of a repository, NAME/MODEL") from error
    except Exception as error:  # releases of huggingface_hub have different types for a network that fails
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
        reason = _reason(cause or error, revision)
        raise HubError(f"{repository} at {constants.ENDPOINT}: {reason}") from error


def _reason(error: BaseException, revision: str | None) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {revision}"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in _STATUS:
            return f"{_STATUS[status]} (HTTP {status})"
    return " ".join(str(error).split())[:300] or type(error).__name__


_STATUS = {
    401: "no such repository, or no access; expected the token of an account with access, in HF_TOKEN",
    403: "no access for the account of this token",
    404: "no such repository, or no access to it",
}


if __name__ == "__main__":
    stopping.run(main)
