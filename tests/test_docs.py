"""The documentation is true: it builds, its commands exist, its Python runs, and its numbers stand in docs/results.

A Python block that does not run says so in a comment above it: ``<!-- not run: why -->``.
"""

from __future__ import annotations

import argparse
import ast
import functools
import logging
import re
import runpy
import shlex
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

import skim
from skim import methods
from skim.cli import settled
from tests.laws import cases
from tests.laws import test_1_identity as law_1
from tests.laws import test_2_executions as law_2
from tests.laws import test_3_batches as law_3
from tests.methods import table
from tests.runs import CONF, ROOT, SMALL

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
SKIPPED = r"(?:<!-- not run: (?P<why>.+?) -->\n)?"
BLOCK = re.compile(SKIPPED + r"^ *```python(?P<title> [^\n]*)?\n(?P<code>.*?)^ *```", re.MULTILINE | re.DOTALL)
ADD_A_METHOD = TEXTS["docs/extend/method.md"]


def commands(text: str) -> list[str]:
    """Every command of a page: lines of its shell blocks without comments, and what begins so in running text."""
    lines = [line.strip() for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    lines += re.findall(r"`((?:python|make|mkdocs) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [" ".join(line.split("#")[0].split()) for line in lines if line and not line.startswith("#")]


COMMANDS = sorted({command for text in TEXTS.values() for command in commands(text)})
OURS = [command for command in COMMANDS if re.match(r"python (<skim>/)?(train|evaluate)\.py", command)]
MODULES = [command for command in COMMANDS if command.startswith("python -m ") and " skim.hub " not in command]
FETCHED = [command for command in COMMANDS if command.startswith("python -m skim.hub ")]
OTHERS = set(COMMANDS) - {*OURS, *MODULES, *FETCHED}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_site_builds_strictly_and_offline(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    caplog.set_level(logging.WARNING)
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    assert [record.getMessage() for record in caplog.records if record.name.startswith("mkdocs")] == []
    page = (tmp_path / "methods" / "transkimmer.html").read_text(encoding="utf-8")
    assert "width of the predictor's hidden layer" in page  # options, from the docstring
    assert "<math" in page
    family = (tmp_path / "extend" / "family.html").read_text(encoding="utf-8")
    assert ">MegatronBert<" in family  # a file that the page includes, highlighted
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in ("compress", "Method.penalties", "engine.hooks.Hooks.before_layer", "engine.tokens.TokenBatch.retire"):
        assert f'id="skim.{name}"' in api
    left = {  # what a browser would fetch, and what no one has translated
        f"{file.relative_to(tmp_path)}: {found}"
        for file in tmp_path.rglob("*.html")
        for found in re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]+|:(?:math|class|func):`|--8&lt;--|<m[ion]>\\[^<]*',
            file.read_text(encoding="utf-8"),
        )
    }
    assert left == set()


TAUGHT = {command for name, text in TEXTS.items() if "results/" not in name for command in commands(text)}
MEASURED = [command for command in OURS if command not in TAUGHT]  # how numbers were made: two of three are slow
DEAR = {*MEASURED[1::3], *MEASURED[2::3], *(command for command in OURS if "sweep=sst2_frontier" in command)}


@pytest.mark.parametrize(
    "command", [pytest.param(command, marks=pytest.mark.slow) if command in DEAR else command for command in OURS]
)
def test_commands_compose(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option exists and every choice of a group too; sweeps are read as such."""
    command = re.sub(r"<[^>]+>", "some", command.replace("<skim>/", "").replace("task=<name>", ""))
    script, *arguments = shlex.split(command.removeprefix("python "))
    there = ("resume=", "sweep.resume=")  # what they name has to be there
    arguments = [argument for argument in arguments if argument != "..." and not argument.startswith(there)]
    if "--config-dir" in arguments:
        write_the_method(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)  # the page's export PYTHONPATH=.
        arguments[arguments.index("--config-dir") + 1] = str(tmp_path / "conf")
    monkeypatch.chdir(tmp_path)  # sweep=wandb writes its file here
    if "--help" in arguments or "sweep=wandb" in arguments:
        with pytest.raises(SystemExit) as left:
            settled(arguments, CONF, script.removesuffix(".py"))
        assert left.value.code == 0
    else:
        settled(arguments, CONF, script.removesuffix(".py"))


class Parsed(Exception):
    """The arguments were understood."""


@pytest.mark.parametrize("command", MODULES)
def test_modules_take_these_arguments(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, module, *arguments = shlex.split(command)
    if module == "pytest":
        files = [argument for argument in arguments if argument.startswith("tests")]
        assert [file for file in files if not (ROOT / file.partition("::")[0]).exists()] == []
        return
    path = ROOT.joinpath(*module.split("."))
    (file,) = [file for file in (path / "__main__.py", path.with_suffix(".py")) if file.is_file()]
    if "argparse" not in file.read_text(encoding="utf-8"):
        return  # it would run
    whole = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *given: Any, **named: Any) -> NoReturn:
        whole(self, *given, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__")


@pytest.mark.parametrize("command", FETCHED)
def test_the_hub_takes_these_arguments(command: str) -> None:
    _, _, _, verb, *arguments = shlex.split(command)
    assert verb in ("fetch", "list", "convert")
    if verb == "fetch":
        for override in arguments:
            group, _, names = override.replace("<name>", "sst2").partition("=")
            assert [name for name in names.split(",") if not (CONF / group / f"{name}.yaml").is_file()] == []
    if verb == "convert":
        assert len(arguments) == 2 or arguments[2] == "--preset"


def test_no_other_command_is_unknown() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    made = {command.split()[1] for command in OTHERS if command.startswith("make ")}
    assert made <= targets
    known = (
        "make ",
        "git clone ",
        "source ",
        "export ",
        "pip install ",
        "mkdocs ",
        "wandb sync",
        "torchrun ",
        'eval "$(python ',
    )
    assert [command for command in OTHERS if not command.startswith((*known, "python docs/picture.py "))] == []


def blocks(text: str) -> list[re.Match[str]]:
    return list(BLOCK.finditer(text))


@pytest.mark.parametrize(
    "name", [name for name, text in TEXTS.items() if blocks(text) and name not in ("README.md", "docs/trainers.md")]
)
def test_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's blocks run in tests/test_readme.py, those of docs/trainers.md in tests/integrations/test_docs.py."""
    if name == "docs/extend/method.md":
        pytest.skip("runs with its commands, below")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for block in blocks(TEXTS[name]):
        if block["why"] is None:
            exec(block["code"], scope)


def titled(text: str) -> dict[str, str]:
    """The files that a page tells to write, by name."""
    return dict(re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', text, re.S))


def write_the_method(folder: Path) -> None:
    for name, content in titled(ADD_A_METHOD).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def test_add_a_method_word_for_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From an empty folder: write its files, run its Python, train by its command, load what came of it."""
    write_the_method(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    before, after = ADD_A_METHOD.split("## 3. Train it")
    for block in blocks(before):
        if block["title"] is None:
            exec(block["code"], {})
    said = capsys.readouterr().out
    assert said.startswith("packed tensor([1.0000, 1.0000, 0.")
    assert "similarity=1.5" in said
    monkeypatch.setattr(table, "METHODS", dict(table.METHODS))
    monkeypatch.setattr(cases, "METHODS", table.METHODS)
    (row,) = [block for block in blocks(after) if "METHODS[" in block["code"]]
    exec(row["code"], vars(table))
    case = cases.Case("settled", "bert", "tokens")
    law_1.test_1_identity(case, "cpu")
    law_2.test_2_masked_is_packed_is_narrowed(case, "cpu")
    law_3.test_3_batch_invariance(case, "cpu")
    small = [option for option in SMALL if not option.startswith(("task=", "backbone"))]
    trainings = [line for line in commands(after) if "train.py" in line and "hydra.run.dir" in line]
    for line in trainings:
        arguments = shlex.split(line.removeprefix("python <skim>/train.py "))
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *small, "train.epochs=1"])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert len(trainings) == 2
    for block in blocks(after):
        if block["title"] is None and block["why"] is None:
            exec(block["code"], {})
    assert "{'similarity': 0.9, 'start': 1, 'target': 0.7}" in capsys.readouterr().out
    sys.modules.pop("settled")
    methods.REGISTERED.pop("settled")


PROMISE = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_promise_names_tests_that_exist() -> None:
    """One line each, in sections that stand; the tests are looked for in the files' syntax, and not imported."""
    page = TEXTS["docs/promises.md"]
    sections = dict(zip(*[iter(re.split(r"^## (.+)\n", page, flags=re.M)[1:])] * 2, strict=True))
    assert list(sections) == ["Exactness", "Resuming", "Faults", "Bad input", "Security", "Serving", "Numerics"]
    for section, text in sections.items():
        promises = [line for line in text.splitlines() if line.startswith("- ")]
        assert promises, section
        assert [promise for promise in promises if not PROMISE.search(promise)] == []
        assert len(promises) == len([line for line in text.splitlines() if line.strip()]), "one line each"
    missing = [
        f"{file}::{test}"
        for file, test in PROMISE.findall(page)
        if not (ROOT / file).is_file() or test not in functions(ROOT / file)
    ]
    assert missing == []


@functools.cache
def functions(file: Path) -> set[str]:
    """The functions of a file, those of classes among them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


NUMBER = re.compile(r"(?<![\w.])0\.\d{2,}(?: ± 0\.\d+)?|\d+\.\d+ times")


@pytest.mark.parametrize("name", ["README.md", *(name for name in TEXTS if name.startswith("docs/methods/"))])
def test_numbers_stand_in_results(name: str) -> None:
    """What a page says was measured stands in docs/results, beside the command that measured it."""
    prose = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$", "", TEXTS[name], flags=re.S)
    results = "".join(text for page, text in TEXTS.items() if page.startswith("docs/results/"))
    known = set(NUMBER.findall(results)) | set(re.findall(r"0\.\d+", results))
    assert [number for number in NUMBER.findall(prose) if number not in known] == []


def test_the_version_is_in_the_changelog() -> None:
    assert f"## {skim.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_workflow_says_what_there_is() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {".venv/.ready"}
    assert {run.split()[1] for run in runs if run.startswith("make ")} == {"lint", "test", ".venv/.ready"} & targets
    assert any("python -m skim.demo" in run for run in runs)
    assert any("mkdocs build --strict" in run for run in runs)
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    lowest, above = re.findall(r"requires-python = \">=3\.(\d+),<3\.(\d+)\"", (ROOT / "pyproject.toml").read_text())[0]
    assert pythons == [f"3.{lowest}", f"3.{int(above) - 1}"]  # the two ends of what is promised


def test_issue_forms_are_read() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    for form in forms:
        asked = yaml.safe_load(form.read_text(encoding="utf-8"))["body"]
        names = [field["id"] for field in asked]
        assert len(set(names)) == len(names)
    assert [form.name for form in forms] == ["bug.yml", "method.yml"]
