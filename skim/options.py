"""The options that there are: one that does not exist is refused with the nearest that does, whoever wrote it.

Hydra takes any key behind a ``+``, and any that a YAML file brings, and then nobody reads it. Here the files that were
chosen, composed without a user's own values, say which options exist; what was typed, swept over, or written into
``conf/experiment`` and ``conf/local`` is held against them before anything is loaded. Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skim.errors import SkimError, shortened, unknown

# what papers call an option -> what it is called here; written in place of it everywhere
ALIASES = {"method.lambda": "method.coefficient"}
# below these stand the options of others, who know them: a model's config, and a run that is looked at
OPEN = ("backbone.overrides", "overrides")
# what other projects call an option, where no likeness leads to it
SYNONYMS = {"learning_rate": "lr", "device": "accelerator", "dataset": "task", "model": "backbone", "gpus": "devices"}
EXTRAS = ("experiment", "local")  # groups whose files change options and bring none
Tree = dict[str, Any]


@dataclass
class Chosen:
    """A config composed from files alone.

    Attributes:
        tree: its options, without those of Hydra.
        choices: the file of each group.
        files: what ``conf/experiment`` and ``conf/local`` made of it; equal to ``tree`` without them.
        params: overrides that these files want swept over.
    """

    tree: Tree
    choices: dict[str, str]
    files: Tree
    params: list[str] = field(default_factory=list)


def renamed(override: str) -> str:
    """An override in this project's words: ``method.lambda=0.1`` is ``method.coefficient=0.1``."""
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
        SkimError: an option, a group or a choice that there is none of.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    silent = [override for override in overrides if "=" not in override and not override.startswith("~")]
    if silent:
        raise SkimError(f"{silent[0]} says nothing: an option is written {silent[0]}=<value>.")
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    typed = [parsed(override, parser) for override in overrides]
    own = [o for o in typed if o.is_hydra_override() or o.key_or_group.startswith("hydra/")]
    hydra = [*search, *(o.input_line or "" for o in own)]

    def files_of(group: str) -> list[str]:
        return loader.get_group_options(group, config_name=name, overrides=hydra)

    groups = {o.key_or_group: o for o in typed if o not in own and files_of(o.key_or_group)}
    values = [o for o in typed if o not in own and o not in groups.values()]
    for group, override in groups.items():
        check_group(override, [c for c in files_of(group) if not c.startswith("_")])
    swept = {g: choices_of(o) for g, o in groups.items() if not o.is_delete()}
    gone = [f"~{g}" for g, o in groups.items() if o.is_delete()]
    first = {g: choices[0] for g, choices in swept.items()}
    settings = [first, *({**first, g: other} for g, choices in swept.items() for other in choices[1:])]
    before: list[str] = []
    for setting in settings:
        chosen = composed(name, [*(f"{g}={c}" for g, c in setting.items()), *gone, *hydra])
        before = check_files(chosen)
        params = [parsed(param, parser) for param in chosen.params]
        for override in [*params, *values]:
            if not files_of(override.key_or_group):
                check_value(override, chosen)
    if sweeps and any(renamed(param) != param for param in chosen.params):  # Hydra would look for what they say
        before += [renamed(param) for param in chosen.params]
        own = [*own, *parser.parse_overrides(["hydra.sweeper.params=null"])]
    lines = [(o.input_line or "").lstrip("+") for o in groups.values()]  # a group needs no sign
    return [*before, *lines, *(line_of(o) for o in values), *(o.input_line or "" for o in own)]


def parsed(override: str, parser: Any) -> Any:
    """What an override says, in this project's words for it.

    Raises:
        SkimError: it is none that Hydra can read: a comma, a bracket or a quote that is not meant as Hydra's.
    """
    from hydra.errors import OverrideParseException

    try:
        return parser.parse_overrides([renamed(override)])[0]
    except OverrideParseException:
        key, equals, value = override.partition("=")
        text = f"{key}={quoted(value)}"
        shell = shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'  # the second is easier to read
        raise SkimError(
            f"{override} cannot be read: {value if equals else key} is no value, no [list], and no a,b to sweep over.\n"
            f"A text that holds commas, brackets or quotes of its own is written {shell}."
        ) from None


def line_of(override: Any) -> str:
    """A value's override as Hydra takes it: what is open needs a sign in front of what is not there yet."""
    line = str(override.input_line)
    return f"++{line.lstrip('+')}" if override.key_or_group.startswith(tuple(f"{place}." for place in OPEN)) else line


def choices_of(override: Any) -> list[str]:
    """The files that a group's override names: one, or those of a sweep."""
    if override.is_sweep_override() and override.is_discrete_sweep():
        return [str(choice) for choice in override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def check_group(override: Any, options: Sequence[str]) -> None:
    """Refuse a choice that a group does not have, and a group that is put somewhere else or taken away."""
    group = override.key_or_group
    if override.package is not None:
        raise SkimError(f"{override.input_line}: a group has one place here; write {group}={choices_of(override)[0]}.")
    if override.is_delete():
        if group not in EXTRAS:
            raise SkimError(f"{override.input_line}: every run has a {group}. Choose one: {', '.join(options)}.")
        return
    for choice in choices_of(override):
        for single in choice.strip("[]").split(","):
            if single not in options:
                raise unknown(group, None if single == "null" else single, options)


def composed(name: str, overrides: Sequence[str]) -> Chosen:
    """The config of chosen files, with and without those that change the options of others."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    def tree_of(config: Any) -> Tree:
        tree: Any = OmegaConf.to_container(config, resolve=False)
        return {key: value for key, value in tree.items() if key != "hydra"}

    files = compose(name, list(overrides), return_hydra_config=True)
    choices = {g: c for g, c in files.hydra.runtime.choices.items() if c is not None and not g.startswith("hydra")}
    hydra = [o for o in overrides if re.match(r"[+~]*hydra[./]", o)]
    loader = GlobalHydra.instance().config_loader()
    if not loader.get_group_options("local", config_name=name, overrides=hydra):
        choices.pop("local", None)  # it is optional
    params = files.hydra.sweeper.get("params") or {}
    tree = tree_of(files)
    if any(group in choices for group in EXTRAS):
        kept = [f"{group}={choice}" for group, choice in choices.items() if group not in EXTRAS]
        tree = tree_of(compose(name, [*kept, *(["~local"] if "local" in choices else []), *hydra]))
    return Chosen(tree, choices, tree_of(files), [f"{key}={value}" for key, value in params.items()])


def check_files(chosen: Chosen) -> list[str]:
    """Refuse what files of :data:`EXTRAS` bring that is no option; returns overrides that undo their aliases."""
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
    """Refuse an override of what is no option, of a whole group by a single value, and of an option by nothing."""
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


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a tree with its dotted path; a group without options is one itself."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def branches(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tree]]:
    """Every group of options of a tree with its dotted path."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}", value
            yield from branches(value, f"{prefix}{key}.")


def names(node: Tree) -> list[str]:
    """The options of a group, without what is Hydra's."""
    return [str(key) for key in node if not str(key).startswith("_")]


def node_at(key: str, tree: Tree) -> Any:
    """Return the option or group at a path.

    Raises:
        KeyError: nothing does.
    """
    node: Any = tree
    for part in key.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            raise KeyError(key)
    return node


def exists(key: str, chosen: Chosen) -> bool:
    """Tell whether an option exists, or could: in an open place, or as an argument of a user's own class."""
    try:
        node_at(key, chosen.tree)
        return True
    except KeyError:
        pass
    for place in OPEN:
        if key.startswith(f"{place}."):
            return exists(place, chosen)
    group, _, option = key.partition(".")
    target = str((chosen.tree.get(group) or {}).get("_target_", "")) if isinstance(chosen.tree.get(group), dict) else ""
    return bool(target) and not target.startswith(("skim.", "tasks.")) and takes(target, option.partition(".")[0])


def takes(target: str, argument: str) -> bool:
    """Tell whether a class takes an argument; yes if it cannot be imported, which the run then says better."""
    from hydra.utils import get_object

    try:
        parameters = inspect.signature(get_object(target)).parameters
    except Exception:
        return True
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def no_option(key: str, chosen: Chosen, where: str = "") -> SkimError:
    """The error for an option that does not exist: the nearest that does, and all that stand in that place."""
    group = key.partition(".")[0]
    of = f" of {group}={chosen.choices[group]}" if "." in key and group in chosen.choices else ""
    alias = next((alias for alias, name in ALIASES.items() if name == key), None)
    near = meant(key, chosen.tree)
    hint = f" Did you mean {near}?" if near else ""
    parent, groups = key.rpartition(".")[0], dict(branches(chosen.tree))
    while parent and parent not in groups:
        parent = parent.rpartition(".")[0]
    known = names(groups[parent] if parent else chosen.tree)
    listed = (
        f"{f'{parent} has' if parent else 'There are'}: {', '.join(known)}." if known else f"{parent} has no options."
    )
    said = f"{key} (also called {alias})" if alias else key
    return SkimError(f"{where}{said} is no option{of}.{hint}\n{listed}")


def meant(key: str, tree: Tree) -> str | None:
    """The option that was most likely meant: of the same name elsewhere, alike beside it, or alike anywhere."""
    parent, _, last = key.rpartition(".")
    last = SYNONYMS.get(last, last)
    paths = [path for path, _ in leaves(tree) if not path.rpartition(".")[2].startswith("_")]
    paths += [] if parent else list(tree)
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    for alias, name in ALIASES.items():
        if name in paths:
            by_name.setdefault(alias.rpartition(".")[2], []).append(name)
    beside = [path.rpartition(".")[2] for path in paths if path.rpartition(".")[0] == parent]
    found = [last] if last in by_name else []
    found = found or difflib.get_close_matches(last, beside, n=1, cutoff=0.65)
    if found and found[0] in beside:
        return f"{parent}.{found[0]}" if parent else found[0]
    found = found or difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.75)
    if not found:
        return None
    return max(by_name[found[0]], key=lambda path: difflib.SequenceMatcher(None, key, path).ratio())


def written(value: Any) -> str:
    """A value as Hydra reads it on the right of an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(written, value)) + "]"
    return quoted(str(value))


def shown(value: Any) -> str:
    """A value for people, on one line of YAML: ``null``, ``[1, 2]``; a text in quotes only where it needs them."""
    import yaml

    if isinstance(value, float):  # YAML would have 5.0e-05
        return repr(value)
    plain = list(value) if isinstance(value, tuple) else value
    try:
        return shortened(yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip())
    except yaml.YAMLError:  # nothing that a file could say
        return shortened(repr(value))


def quoted(text: str) -> str:
    """A text as one string of Hydra's, in whose quotes a backslash is itself, except in front of a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"
