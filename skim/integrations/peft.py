"""PEFT: an adapter and the method that it was trained with, saved and loaded together.

Two orders, two places for the method. ``compress(get_peft_model(model, ...), method)``: one method, beside whatever
adapters there are. ``get_peft_model(compress(model, method), LoraConfig(..., modules_to_save=["method"]))``: a copy of
the method belongs to each adapter, as a classification head would; PEFT trains, switches, saves and merges it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from skim.beside import keep_method
from skim.checkpoint import LEARNED, restore
from skim.compression import compress, walk_of
from skim.errors import SkimError
from skim.methods import Method
from skim.published.files import check_folder


def load(
    folder: Path,
    about: dict[str, Any],
    method: Method,
    state: dict[str, Tensor],
    base: nn.Module | None,
    kind: Any,
    execution: str,
    options: dict[str, Any],
) -> nn.Module:
    """Load what ``skim.save_pretrained`` wrote of a PEFT model: base, adapters and method, in evaluation mode.

    Args:
        folder: with PEFT's files, ``skim.json`` and ``method.safetensors``.
        about: of ``skim.json``: names of the adapters, and which are active.
        method: not built yet.
        state: of the method.
        base: the plain model to put the adapters on; ``None``: the one that ``adapter_config.json`` names.
        kind: the class of the base model.
        execution: see :func:`skim.execution`.
        options: for the base model's ``from_pretrained``.

    Raises:
        SkimError: peft is not installed; no base model is given, or named.
    """
    try:
        import peft
    except ImportError as error:
        raise SkimError(f"{folder} holds a PEFT adapter, and peft is not installed: pip install peft.") from error
    import transformers

    first, *others = about["names"]
    at = {name: folder if name == "default" else folder / name for name in about["names"]}
    config = peft.PeftConfig.from_pretrained(str(at[first]))
    if base is None:
        name = config.base_model_name_or_path
        if not name:
            raise SkimError(
                f"{at[first]}/adapter_config.json does not say which model the adapter was trained on.\n"
                "Load that one yourself, without compressing it: skim.from_pretrained(folder, base=model)."
            )
        check_folder(Path(name))
        settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        base = kind.from_pretrained(name, config=settings, **options)
    copied = "method" in (getattr(config, "modules_to_save", None) or ())
    if copied:
        compress(base, method, execution)
    model = peft.PeftModel.from_pretrained(base, str(at[first]), adapter_name=first)
    for name in others:
        model.load_adapter(str(at[name]), name)
    if about["active"] != [first]:
        model.set_adapter(about["active"][0])
    if copied:
        keep_method(model)
    else:
        compress(model, method, execution)
    restore(walk_of(model).method, state, folder / LEARNED)
    return model.eval()
