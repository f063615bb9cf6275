"""Models by their hub ids: the mirror, the cache of ``huggingface_hub``, the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skim.errors import SkimError, first_line, reading
from skim.hub.door import mirror, nowhere, problem_with

# what transformers needs to load a model without unpickling anything
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


def model_path(
    name: str,
    fetch: str | None = "backbone=<name>",
    pickled: bool = False,
    *,
    revision: str | None = None,
    **options: Any,
) -> str:
    """A folder with a model's config, weights (safetensors) and tokenizer.

    Args:
        name: hub id, or a folder.
        fetch: what to give ``python -m skim.hub fetch`` to get it; stands in the error. ``None``: not by that command.
        pickled: weights in ``*.bin`` will do as well.
        revision: of the hub; a mirror knows none, and is not looked at if one is given.
        options: ``token`` and ``cache_dir`` of ``huggingface_hub``.

    Raises:
        SkimError: it can be had nowhere; says where it was looked for and which command gets it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if Path(name).is_dir():
        return name
    if name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise SkimError(f"There is no folder {name}.")
    asked = {"revision": revision, **options}
    looked = []
    folder = mirror()
    if folder is None:
        looked.append("SKIM_MIRROR is not set")
    elif revision is not None:
        looked.append("a mirror knows no revisions")
    else:
        path = folder / "models" / name
        if complete(path, pickled):
            return str(path)
        state = "is incomplete (needs config.json and *.safetensors)" if path.is_dir() else "is not there"
        looked.append(f"the mirror's {path} {state}")
    try:
        cached = snapshot_download(name, local_files_only=True, **asked)
        if complete(Path(cached), pickled):
            return cached
        looked.append(f"the cache has only parts of it ({cached})")
    except (LocalEntryNotFoundError, ValueError) as error:
        looked.append("the cache has none" if isinstance(error, LocalEntryNotFoundError) else first_line(error))
    problem = problem_with(name, "model", revision, options.get("token"))
    if problem is None:
        try:
            patterns = [*MODEL_FILES, *(["*.bin"] if pickled else [])]
            downloaded = snapshot_download(name, allow_patterns=patterns, **asked)
            if complete(Path(downloaded), pickled):
                return downloaded
            problem = "it has no weights there" + ("" if pickled else " as safetensors, and skim does not unpickle")
        except (HfHubHTTPError, OSError) as error:
            problem = first_line(error)
    looked.append(f"the hub: {problem}")
    raise nowhere(f"Model {name}{f' at {revision}' if revision else ''}", looked, fetch, name)


def tokenizer_of(folder: str | Path, config: Any = None) -> Any:
    """Load the tokenizer in a folder; code that may lie beside it is not run.

    Args:
        folder: of a model.
        config: of that model, if transformers cannot read it there.

    Raises:
        SkimError: there is none, or it is damaged, or only code of its own could make it.
    """
    from transformers import AutoTokenizer

    with reading(folder, "a tokenizer"):
        return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)


def complete(folder: Path, pickled: bool = False) -> bool:
    """Tell whether a folder has a model's config and its weights: as safetensors, or, if ``pickled``, as ``*.bin``."""
    weights = any(folder.glob("*.safetensors")) or (pickled and any(folder.glob("*.bin")))
    return (folder / "config.json").is_file() and weights
