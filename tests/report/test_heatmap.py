from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
)

import skim
from skim import SkimError
from skim.benchmark import KeepShare
from skim.methods.act import ACT
from skim.methods.early_exit import EarlyExit
from skim.methods.funnel import Funnel
from skim.report import svg
from skim.report.heatmap import SkimmedText, _pieces, load_texts, page, read, show, terminal, write_html
from skim.report.shades import DARK, LIGHT, STEPS, colors, contrast, step

EVIL = "<script>alert('x')</script>"
TEXT = SkimmedText(["[CLS]", "un", "##for", "##gettable", "!", "[SEP]"], [4, 0, 4, 2, 1, 0], [4, 3, 2, 2], "positive")
EMPTY = SkimmedText(["[CLS]", "[SEP]"], [4, 0], [1] * 4)
LONG = SkimmedText(["[CLS]", *["word"] * 300, *["##piece"] * 100], [1] * 401, [401, 0, 0, 0], "label")
ODD = SkimmedText([EVIL, "&", '"', "naïve", "日本語", "🎬", "\x1b[31m", "##", "#"], [1] * 9, [9, 0], EVIL)
ALL = pytest.mark.parametrize("text", [TEXT, EMPTY, LONG, ODD], ids=["text", "empty", "long", "odd"])


class Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_pieces_are_joined_to_the_word_they_continue():
    assert [[piece for piece, _ in word] for word in TEXT.words()] == [
        ["[CLS]"],
        ["un", "for", "gettable"],
        ["!"],
        ["[SEP]"],
    ]
    assert terminal(TEXT).plain == "[CLS] unforgettable ! [SEP] "
    words = Seen(page([TEXT])).text
    assert "unforgettable !" in words
    assert "##" not in words


def test_a_text_of_hash_signs_keeps_them():
    assert [word[0][0] for word in ODD.words()][-2:] == ["##", "#"]


def test_fate_counts_layers():
    assert TEXT.fate(0) == "computed in 0 of 4 layers"
    assert TEXT.fate(4) == "computed in 4 of 4 layers"


@ALL
def test_html_shows_every_token_and_adds_no_tag(text, tmp_path):
    write_html(tmp_path / "tokens.html", [text])
    written = (tmp_path / "tokens.html").read_text(encoding="utf-8")
    seen = Seen(written)
    assert set(seen.tags) <= set("html head meta title style body main h1 p span div i b br".split())
    assert not [value for name, value in seen.attributes if name in ("src", "href", "onload", "onerror")]
    for word in text.words():
        assert "".join(piece for piece, _ in word) in seen.text
    assert "<script" not in written
    assert not re.search(r"https?://|url\(|@import", written)
    assert written.count('title="computed') == len(text.tokens)


def test_html_reads_in_light_and_dark():
    for ramp in (LIGHT, DARK):
        for place in range(STEPS + 1):
            pair = [tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in colors(place, ramp)]
            assert contrast(*pair) >= 4.5, (ramp, place)


def test_shades_fall_with_the_layer_and_survivors_stand_out():
    places = [step(survived, 12) for survived in range(13)]
    assert places == sorted(set(places))
    assert (places[0], places[-1]) == (0, STEPS)
    assert places[-1] - places[-2] >= 4


@ALL
@pytest.mark.parametrize("draw", [svg.sentence, svg.grid])
def test_svg_is_xml_with_every_piece_inside_its_width(text, draw):
    root = ElementTree.fromstring(draw(text))
    space = "{http://www.w3.org/2000/svg}"
    shown = [node.text for node in root.iter(f"{space}text")]
    for word in text.words():
        for piece, _ in word:
            assert piece in shown or piece[:23] + "…" in shown
    for box in root.iter(f"{space}rect"):
        assert 0 <= float(box.get("x")) < float(root.get("width"))
        assert float(box.get("y")) + float(box.get("height")) <= float(root.get("height"))
    assert not list(root.iter(f"{space}script"))


def test_svg_grid_fills_a_cell_per_computed_token():
    assert svg.grid(TEXT).count(f'<rect class="s{STEPS}"') == sum(TEXT.rows)
    assert svg.grid(TEXT).count("<rect") == 4 * len(TEXT.tokens)


def test_svg_wraps_long_texts():
    root = ElementTree.fromstring(svg.sentence(LONG, width=400))
    lines = {node.get("y") for node in root.iter("{http://www.w3.org/2000/svg}rect")}
    assert len(lines) > 20
    right = max(float(b.get("x")) + float(b.get("width")) for b in root.iter("{http://www.w3.org/2000/svg}rect"))
    assert right <= 400


@ALL
@pytest.mark.parametrize("colours", [None, "truecolor"])
def test_terminal_shows_words_counts_and_prediction(text, colours):
    console = Console(
        width=100, color_system=colours, force_terminal=colours is not None, record=True, file=io.StringIO()
    )
    show([text], console)
    out = console.export_text()
    assert " ".join(map(str, text.rows)) in " ".join(out.split())
    assert "\x1b" not in out
    if text.prediction is not None and text is not ODD:
        assert text.prediction in out


def printed(text) -> str:
    console = Console(width=100, color_system=None, record=True, file=io.StringIO())
    show([text], console)
    return console.export_text()


def test_without_colours_the_layer_is_written_out():
    assert "[CLS] un⁰forgettable² !¹ [SEP]⁰" in printed(TEXT)


@pytest.fixture
def tokenizer(tmp_path):
    words = "[PAD] [UNK] [CLS] [SEP] a film for ##get ##table ! café < > script".split()
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=False, strip_accents=False)


@pytest.fixture
def model():
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    return skim.compress(BertForSequenceClassification(config), KeepShare(0.4)).train()


def test_read_drops_pads_and_agrees_with_the_trace(model, tokenizer):
    short, empty, long = read(model, tokenizer, ["a film", "", "a café forgettable <script> !"], ["bad", "good"])
    assert short.tokens == ["[CLS]", "a", "film", "[SEP]"]
    assert empty.tokens == ["[CLS]", "[SEP]"]
    assert long.tokens == "[CLS] a café for ##get ##table < script > ! [SEP]".split()
    assert {text.layers for text in (short, empty, long)} == {4}
    assert short.survived[0] == empty.survived[0] == 4
    assert sum(long.rows) == int(model.trace.counts()[:, 2].sum())
    assert sum(long.rows) < 4 * len(long.tokens)
    assert {text.prediction for text in (short, empty, long)} <= {"bad", "good"}
    assert model.training


def compressed(method):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    return skim.compress(BertForSequenceClassification(config), method)


def test_merged_tokens_are_counted_as_rows(tokenizer):
    """[CLS] alone and 15 others in pairs; every token goes on in its window's row."""
    model = compressed(Funnel())
    text, _ = read(model, tokenizer, ["film " * 14, "film"])
    assert (len(text.tokens), text.rows) == (16, [16, 16, 9, 9, 5, 5])
    assert text.survived == [6] * 16
    assert "rows by layer: 16 16 9 9 5 5" in printed(text)
    assert "rows by layer: 16 16 9 9 5 5" in svg.sentence(text)
    assert re.findall(r"layer \d: (\d+) rows", page([text])) == ["16", "16", "9", "9", "5", "5"]
    with skim.execution(model, "masked"):
        assert read(model, tokenizer, ["film " * 14])[0].rows == text.rows


@pytest.mark.parametrize("method", [ACT(bias_init=0.0), EarlyExit(patience=1)], ids=["halted", "left"])
def test_halted_and_left_tokens_are_not_called_retired(method, tokenizer):
    (text,) = read(compressed(method), tokenizer, ["a film"])
    assert text.rows[0] == 4 > text.rows[-1]
    assert text.rows == [sum(survived > layer for survived in text.survived) for layer in range(6)]
    assert "retired" not in page([text]) + svg.sentence(text) + svg.grid(text) + printed(text)


def test_read_takes_pairs_no_texts_and_what_exceeds_the_model(model, tokenizer):
    assert read(model, tokenizer, []) == []
    (pair,) = read(model, tokenizer, [("a film", "a film !")])
    assert pair.tokens.count("[SEP]") == 2
    assert pair.prediction in {"LABEL_0", "LABEL_1"}


def test_a_text_longer_than_the_model_takes_is_cut_and_says_so(tokenizer):
    config = RobertaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=22
    )
    roberta = skim.compress(RobertaForSequenceClassification(config), "dense")
    long, fits = read(roberta, tokenizer, ["film " * 30, "film " * 18])
    assert len(long.tokens) == len(fits.tokens) == 20  # RoBERTa's first two positions are of padding
    assert (long.truncated, fits.truncated) == (True, False)
    for shown in (page([long]), printed(long)):
        assert "cut at 20 tokens" in shown
    for shown in (page([fits]), printed(fits)):
        assert "20 tokens" in shown
        assert "cut at" not in shown


def test_read_leaves_answers_out_where_there_is_no_single_one(model, tokenizer):
    plain = skim.compress(skim.decompress(model).base_model, "dense")
    assert read(plain, tokenizer, ["a film"])[0].prediction is None
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
    regression = skim.compress(BertForSequenceClassification(config), "dense")
    assert re.fullmatch(r"-?\d+\.\d{3}", read(regression, tokenizer, ["a film"])[0].prediction)


def test_byte_level_pieces_are_joined_and_readable():
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", "<unk>", "Ġ", "Ġcaf", "Ã©", "film", "s"])}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[])
    ids = [vocabulary[token] for token in ["<s>", "film", "s", "Ġcaf", "Ã©", "</s>"]]
    assert _pieces(tokenizer, ids) == ["<s>", "film", "##s", "caf", "##é", "</s>"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Invalid JSON"),
        ('"texts"', "should be a valid"),
        ('[{"tokens": 5, "survived": [], "rows": []}]', "0.tokens: "),
        ('[{"tokens": ["a"], "survived": ["4"], "rows": [1]}]', "0.survived.0: "),
        ('[{"tokens": ["a", "b"], "survived": [4], "rows": [1]}]', "a number of layers for each token"),
        ('[{"tokens": [], "survived": [], "rows": []}]', "a number of layers for each token"),
    ],
)
def test_texts_that_no_run_has_written_are_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "examples.json").write_text(content)
    with pytest.raises(SkimError, match="does not hold the texts of a run: ") as caught:
        load_texts(tmp_path)
    assert says in str(caught.value)
