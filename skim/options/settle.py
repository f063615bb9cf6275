"""Settling what a user typed: an option that does not exist is refused with the nearest that does.

Hydra takes any key behind a ``+``, and any that a YAML file brings, and then nobody reads it. Here the files that were
chosen, composed without a user's own values, say which options exist; what was typed, swept over, or written into
``conf/experiment``, ``conf/local`` and ``conf/debug`` is held against them before anything is loaded. Imports nothing
heavy.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from skim.errors import SkimError, shortened, unknown
from skim.options.members import brought, groups_of, members_asked, unfolded
from skim.options.tree import ALIASES, OPEN, Chosen, Tree, branches, exists, leaves, listed, names, no_option
from skim.options.words import quoted, written

LAUNCHERS = {  # of hydra/launcher: the plugin that brings each, and the extra that brings the plugin
    "joblib": ("hydra_joblib_launcher", "sweep"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "slurm": ("hydra_submitit_launcher", "slurm"),
}
DEEPEST = 50  # brackets within each other
EXTRAS = ("experiment", "local", "debug")  # groups whose files change options and bring none


def renamed(override: str) -> str:
    """Rename an override into this project's words: ``method.lambda=0.1`` is ``method.coefficient=0.1``."""
    sign, key, rest = re.fullmatch(r"([+~]*)([^=]*)(.*)", override, re.DOTALL).groups()  # type: ignore[union-attr]
    for alias, name in ALIASES.items():
        key = re.sub(rf"^((?:overrides\.)?){re.escape(alias)}$", rf"\g<1>{name}", key)
    return f"{sign}{key}{rest}"


def settle(overrides: Sequence[str], name: str, search: Sequence[str] = (), sweeps: bool = False) -> list[str]:
    """Turn what a user typed into overrides for Hydra, every option of which exists.

    To be called where Hydra is initialised. Aliases give way to the options that they stand for, also those in files;
    a ``+`` is not needed in front of what is open, nor in front of a group.

    Args:
        overrides: as typed; also sweeps such as ``train.lr=1e-4,1e-3``.
        name: of the primary config.
        search: overrides of Hydra's that say where config files are.
        sweeps: whether several jobs are asked for.

    Raises:
        SkimError: an option, a group or a choice that does not exist.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    silent = [override for override in overrides if "=" not in override and not override.startswith("~")]
    if silent:
        raise SkimError(f"{silent[0]} says nothing: an option is written {silent[0]}=<value>.")
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    typed = [one for override in overrides for one in unfold(parsed(override, parser), parser)]
    placed = [o.input_line for o in typed if o.key_or_group == "method" and o.package is not None]
    typed = [o for o in typed if o.input_line not in placed]  # members of a chain, as a rank of DDP is told of them
    own = [o for o in typed if o.is_hydra_override() or o.key_or_group.startswith("hydra/")]
    hydra = [*search, *(o.input_line or "" for o in own)]
    for override in own:
        check_launcher(override)

    def files_of(group: str) -> list[str]:
        return loader.get_group_options(group, config_name=name, overrides=hydra)

    groups = {o.key_or_group: o for o in typed if o not in own and files_of(o.key_or_group)}
    values = [o for o in typed if o not in own and o.key_or_group not in groups]  # a group typed twice: the last counts
    for group, override in groups.items():
        check_group(override, [c for c in files_of(group) if not c.startswith("_")])
    swept = {g: choices_of(o) for g, o in groups.items() if not o.is_delete()}
    gone = [f"~{g}" for g, o in groups.items() if o.is_delete()]
    first = {g: choices[0] for g, choices in swept.items()}
    settings = [first, *({**first, g: other} for g, choices in swept.items() for other in choices[1:])]
    before: list[str] = []
    joined: list[str] = []
    for setting in settings:
        choice = [*(f"{g}={c}" for g, c in setting.items()), *gone, *hydra]
        chosen = composed(name, choice)
        asked = members_asked(values, chosen.files)
        members = list(dict.fromkeys(one for methods in asked for one in brought(methods, files_of("method"))))
        said = [f"++{key}={written(value)}" for key, value in leaves(chosen.files) if in_members(key, asked)]
        if members:
            chosen = composed(name, choice, members)
        chosen.targets |= targets_of(values)
        before = [*check_files(chosen), *said]  # what files say of members, whose own files come behind them
        joined = list(dict.fromkeys([*joined, *members]))
        params = [parsed(param, parser) for param in chosen.params]
        for override in [*params, *values]:
            if not files_of(override.key_or_group):
                check_value(override, chosen)
    if strange := [line for line in placed if line not in joined]:
        raise SkimError(f"{strange[0]}: a group has one place here; members of a chain are named in method.methods.")
    if sweeps and any(renamed(param) != param for param in chosen.params):  # Hydra would look for what they say
        before += [renamed(param) for param in chosen.params]
        own = [*own, *parser.parse_overrides(["hydra.sweeper.params=null"])]
    lines = [(o.input_line or "").lstrip("+") for o in groups.values()]  # a group needs no sign
    return [*joined, *before, *lines, *(line_of(o, chosen) for o in values), *(o.input_line or "" for o in own)]


def parsed(override: str, parser: Any) -> Any:
    """Parse an override, in this project's words for it.

    Raises:
        SkimError: Hydra cannot read it: a comma, a bracket or a quote that is not meant as Hydra's.
    """
    from hydra.errors import OverrideParseException

    depth = accumulate((char in "[{(") - (char in ")}]") for char in override)
    if max(depth, default=0) > DEEPEST:  # Hydra would take minutes to say so
        raise SkimError(f"{shortened(override)} opens more than {DEEPEST} brackets within each other.")
    try:
        return parser.parse_overrides([renamed(override)])[0]
    except OverrideParseException:
        key, equals, value = override.partition("=")
        text = f"{key}={quoted(value)}"
        shell = shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'  # the second is easier to read
        raise SkimError(
            f"{override} cannot be read: {value if equals else key} is not a value, a [list], or a,b to sweep over.\n"
            f"A text that holds commas, brackets or quotes of its own is written {shell}."
        ) from None


def line_of(override: Any, chosen: Chosen) -> str:
    """A value's override as Hydra takes it: an option that no file has needs a sign in front of it."""
    line = str(override.input_line)
    return line if override.is_delete() or listed(override.key_or_group, chosen.tree) else f"++{line.lstrip('+')}"


def targets_of(overrides: Sequence[Any]) -> dict[str, list[str]]:
    """The classes that overrides name, by the dotted path of the part: ``optimizer._target_=torch.optim.SGD``."""
    found: dict[str, list[str]] = {}
    for override in overrides:
        place, _, last = str(override.key_or_group).rpartition(".")
        if last == "_target_" and not override.is_delete():
            found[place] = choices_of(override) if override.is_sweep_override() else [str(override.value())]
        elif not override.is_delete() and isinstance(value := override.value(), dict) and "_target_" in value:
            found[str(override.key_or_group)] = [str(value["_target_"])]
    return found


def choices_of(override: Any) -> list[str]:
    """List the files that a group's override names: one, or those of a sweep."""
    if override.is_sweep_override() and override.is_discrete_sweep():
        return [str(choice) for choice in override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def check_launcher(override: Any) -> None:
    """Refuse a launcher whose plugin is not installed."""
    if override.key_or_group != "hydra/launcher" or override.is_delete():
        return
    name = override.get_value_element_as_str()
    plugin, extra = LAUNCHERS.get(name, (None, ""))
    if plugin is not None and not installed(f"hydra_plugins.{plugin}"):
        raise SkimError(
            f"hydra/launcher={name} needs {plugin.replace('_', '-')}, which is not installed: "
            f'pip install "skim[{extra}]"'
        )


def installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is a part of
        return False


def check_group(override: Any, options: Sequence[str]) -> None:
    """Refuse a choice that a group does not have, and a group that is put somewhere else or taken away."""
    group = override.key_or_group
    if override.package is not None:
        raise SkimError(f"{override.input_line}: a group has one place here; write {group}={choices_of(override)[0]}.")
    if override.is_delete():
        if group not in EXTRAS:
            raise SkimError(f"{override.input_line}: a run needs its {group}. Choose one: {', '.join(options)}.")
        return
    for choice in choices_of(override):
        for single in choice.strip("[]").split(","):
            if single not in options:
                raise unknown(group, None if single == "null" else single, options)


def unfold(override: Any, parser: Any) -> list[Any]:
    """The overrides that one stands for: a chain that is typed as a list of methods for two, any other for itself."""
    lines = unfolded(override)
    return [override] if lines is None else [parsed(line, parser) for line in lines]


def in_members(key: str, asked: Sequence[Any]) -> bool:
    """Tell whether an option is one of a member of the chains that are asked for."""
    group, _, rest = key.partition(".")
    return group == "method" and "." in rest and any(rest.partition(".")[0] in groups_of(one) for one in asked)


def composed(name: str, overrides: Sequence[str], members: Sequence[str] = ()) -> Chosen:
    """Compose the config of chosen files, with and without those that change the options of others.

    Args:
        name: of the primary config.
        overrides: that choose files.
        members: those that put the files of a chain's members into its options.
    """
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    def tree_of(config: Any) -> Tree:
        tree: Any = OmegaConf.to_container(config, resolve=False)
        return {key: value for key, value in tree.items() if key != "hydra"}

    files = compose(name, [*overrides, *members], return_hydra_config=True)
    chosen = files.hydra.runtime.choices.items()
    choices = {g: c for g, c in chosen if c is not None and not g.startswith("hydra") and "@" not in g}
    hydra = [o for o in overrides if re.match(r"[+~]*hydra[./]", o)]
    loader = GlobalHydra.instance().config_loader()
    if not loader.get_group_options("local", config_name=name, overrides=hydra):
        choices.pop("local", None)  # it is optional
    params = files.hydra.sweeper.get("params") or {}
    tree = tree_of(files)
    if any(group in choices for group in EXTRAS):
        kept = [f"{group}={choice}" for group, choice in choices.items() if group not in EXTRAS]
        tree = tree_of(compose(name, [*kept, *(["~local"] if "local" in choices else []), *hydra, *members]))
    brought = tree_of(files)
    named = {key: value for key, value in leaves(brought) if key.endswith("._target_")}
    before = dict(leaves(tree))
    targets = {key.removesuffix("._target_"): [str(v)] for key, v in named.items() if before.get(key) != v}
    return Chosen(tree, choices, brought, [f"{key}={value}" for key, value in params.items()], targets)


def check_files(chosen: Chosen) -> list[str]:
    """Refuse what files of :data:`EXTRAS` bring that is not an option; returns overrides that undo their aliases."""
    where = " or ".join(f"conf/{group}/{chosen.choices[group]}.yaml" for group in EXTRAS if group in chosen.choices)
    missing = sorted(set(chosen.tree) - set(chosen.files))
    if missing:
        raise SkimError(f"{where} takes {missing[0]} away, which every run has. Choose one: {missing[0]}=...")
    undone = []
    for key, value in leaves(chosen.files):
        if key in ALIASES and exists(ALIASES[key], chosen):
            undone += [f"~{key}", f"++{ALIASES[key]}={written(value)}"]
        elif not exists(key, chosen) and not (value == {} and exists(key.rpartition(".")[0], chosen)):
            raise no_option(key, chosen, f"{where}: ")
    return undone


def check_value(override: Any, chosen: Chosen) -> None:
    """Refuse an override of what is not an option, of a whole group by a single value, and of an option by nothing."""
    key = str(override.key_or_group)
    if override.package is not None or not exists(key, chosen):
        raise no_option(key, chosen)
    if override.is_delete():
        raise SkimError(f"{override.input_line}: an option cannot be taken away, only set: {key}=<value>.")
    if override.is_sweep_override():
        return
    value, node = override.value(), dict(branches(chosen.tree)).get(key)
    if node is None or key in OPEN:
        return
    if isinstance(value, dict):
        for path, _ in leaves(value, f"{key}."):
            if not exists(path, chosen):
                raise no_option(path, chosen)
    elif value is not None or "." not in key:
        raise SkimError(f"{override.input_line}: {key} is a group of options: {', '.join(names(node))}.")
