"""Files of columns as they are found, and what is wrong with some."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from skim.errors import SkimError
from tasks.data import cells
from tasks.data.conll import sentences
from tasks.tagging import Tagging


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a DET\ndog N\n\nit PRON\n",
        "a DET\r\ndog N\r\n\r\nit PRON\r\n",
        "\ufeff\n\na\tDET\ndog\tN\n\n \n\t\nit\tPRON",
        "# number one\n\n# two of them\na DET\ndog N\n\n#\nit PRON\n",
        "-DOCSTART- O\n\na DET\ndog N\n\n-DOCSTART- O\nit PRON\n",
    ],
)
def test_words_and_tags_of_each_sentence(tmp_path: Path, text: str) -> None:
    found = [(words, tags) for words, tags, _ in sentences(write(tmp_path / "a.txt", text))]
    assert found == [(["a", "dog"], ["DET", "N"]), (["it"], ["PRON"])]


def test_lines_are_numbered_in_the_file(tmp_path: Path) -> None:
    text = "# id 1 of 2\na DET\ndog N\n\n\nit PRON\n"
    assert [lines for *_, lines in sentences(write(tmp_path / "a.txt", text))] == [[2, 3], [6]]


def test_a_hash_is_a_word_where_it_has_the_columns_of_one(tmp_path: Path) -> None:
    text = "# # B-NP\n20 CD I-NP\n\npaid VBD B-VP\n# # B-NP\n"
    found = list(sentences(write(tmp_path / "a.txt", text)))
    assert [one.words for one in found] == [["#", "20"], ["paid", "#"]]
    assert found[0].tags == ["B-NP", "I-NP"]


def test_words_hold_any_space_but_that_between_columns(tmp_path: Path) -> None:
    words = ["10\u00a0000", "a\u2028b", "c\x85d", "e\x0cf"]
    text = "".join(f"{word} N\n" for word in words)
    assert next(sentences(write(tmp_path / "a.txt", text))).words == words
    text = "New York\tPROPN\n\u00a0\tPUNCT\n"
    assert next(sentences(write(tmp_path / "a.txt", text))).words == ["New York", "\u00a0"]


@pytest.mark.parametrize(
    ("columns", "words", "tags"),
    [
        (None, ["dog", "barks"], ["B-NP", "B-VP"]),
        ((1, 2), ["dog", "barks"], ["NN", "VBZ"]),
        ((2, 1), ["NN", "VBZ"], ["dog", "barks"]),
        ((-2, -1), ["NN", "VBZ"], ["B-NP", "B-VP"]),
    ],
)
def test_columns_are_chosen(tmp_path: Path, columns: tuple[int, int] | None, words: list, tags: list) -> None:
    found = next(sentences(write(tmp_path / "a.conll", "dog NN B-NP\nbarks VBZ B-VP\n"), columns))
    assert (found.words, found.tags) == (words, tags)


def test_universal_dependencies(tmp_path: Path) -> None:
    rest = "\t_\t_\t_\t_\t_"
    text = (
        "# sent_id = 1\n# text = don't # go\n"
        f"1-2\tdon't\t_\t_\t_{rest}\n1\tdo\tdo\tAUX\tVBP{rest}\n2\tn't\tnot\tPART\tRB{rest}\n"
        f"3\t#\t#\tSYM\tNFP{rest}\n3.1\tgo\tgo\tVERB\tVB{rest}\n4\t10 000\t10\tNUM\tCD{rest}\n"
    )
    file = write(tmp_path / "a.conllu", text)
    found = next(sentences(file))
    assert found.words == ["do", "n't", "#", "10 000"]
    assert found.tags == ["AUX", "PART", "SYM", "NUM"]
    assert found.lines == [4, 5, 6, 8]
    assert next(sentences(file, (3, 5))).tags == ["VBP", "RB", "NFP", "CD"]
    assert next(sentences(file, (3, 5))).words == ["do", "not", "#", "10"]


def test_lines_without_their_columns_have_no_tag(tmp_path: Path) -> None:
    found = next(sentences(write(tmp_path / "a.txt", "a DET\ndog\nbarks at V\n. P\n")))
    assert (found.words, found.tags) == (["a", "dog", "barks", "."], ["DET", None, None, "P"])
    assert next(sentences(write(tmp_path / "a.conllu", "1\tdog\tN\n"))).tags == [None]
    alone = next(sentences(write(tmp_path / "a.txt", "a\ndog\n")))
    assert (alone.words, alone.tags) == (["a", "dog"], [None, None])


def test_what_is_not_utf8_is_nothing(tmp_path: Path) -> None:
    found = next(sentences(write(tmp_path / "a.txt", b"caf\xe9 N\nth\xc3\xa9 N\nb \xff\n")))
    assert (found.words, found.tags) == ([None, "thé", "b"], ["N", "N", None])


@pytest.mark.parametrize(
    ("columns", "said"), [((1, 4), "3 columns, .* tags"), ((-4, 1), "words"), ((0, 1), r"\[1,-1\]"), ((1,), r"\[1\]")]
)
def test_columns_that_are_none(tmp_path: Path, columns: tuple[int, ...], said: str) -> None:
    with pytest.raises(SkimError, match=said):
        list(sentences(write(tmp_path / "a.txt", "dog NN B-NP\n"), columns))


def test_no_sentences(tmp_path: Path) -> None:
    assert list(sentences(write(tmp_path / "a.txt", "\n\n# nothing\n"))) == []


@pytest.mark.parametrize("name", ["a.conll", "a.txt.gz", "a.IOB.gz"])
def test_a_tasks_file_is_read_once_also_gzipped(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "CHUNK", 2)
    text = "a DET x\ndog N y\n\nit PRON z\n\nb\n\nd\xe9 N q\n".encode("latin-1")
    file = tmp_path / name
    file.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    wanted = {
        "words": [["a", "dog"], ["it"], ["b"], [None]],
        "kinds": [["x", "y"], ["z"], [None], ["q"]],
        "line": [[1, 2], [4], [6], [8]],
    }
    task = Tagging(name="own", token_column="words", tag_column="kinds")
    rows = task.read(str(file))
    assert rows.to_dict() == wanted
    with monkeypatch.context() as patch:
        patch.setattr("tasks.data.conll.sentences", lambda *arguments: pytest.fail("read again"))
        again = task.read(str(file))
    assert again.to_dict() == wanted
    assert again._fingerprint == rows._fingerprint
    assert again.cache_files
    other = Tagging(name="own", columns=[1, 2]).read(str(file))  # another way to read it
    assert other["tags"][:2] == [["DET", "N"], ["PRON"]]


def test_universal_dependencies_gzipped(tmp_path: Path) -> None:
    line = "1\tdog\tdog\tNOUN" + "\t_" * 6 + "\n"
    file = tmp_path / "a.conllu.gz"
    file.write_bytes(gzip.compress(line.encode()))
    assert Tagging(name="own").read(str(file)).to_dict() == {"tokens": [["dog"]], "tags": [["NOUN"]], "line": [[1]]}


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, content, said in (
        ("a.conll", b"", "is empty"),
        ("a.conll", b"\n\n", "has no rows"),
        ("a.conll.gz", b"no", "cannot be read as conll"),
        ("a.doc", b"a X\n", r"skim reads \.csv, .*\.conllu, \.conll, .* not '\.doc'"),
    ):
        with pytest.raises(SkimError, match=rf"{name}.* {said}"):
            Tagging(name="own").read(str(write(tmp_path / name, content)))
