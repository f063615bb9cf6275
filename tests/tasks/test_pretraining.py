"""From texts to masked blocks, swapped segments and replaced tokens; and what is said of texts that will not do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import skim
from skim.calibration import spend
from skim.errors import SkimError
from skim.lightning.build import COMPANION, build
from skim.lightning.looks import load
from skim.lightning.recipe import train
from tasks.data.masking import IGNORED
from tasks.electra import ReplacedTokens
from tasks.pretraining import MaskedLanguage
from tasks.sentence_order import SentenceOrder, middle
from tests.runs import composed, looking

TEXTS = ["a good film", "", "the soup was not very good and it is a bad film", "it was", "the film is not good"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def make(folder: Path, tokenizer: Any, texts: list[str] = TEXTS, kind: type = MaskedLanguage, **options: Any) -> Any:
    """A task on a .txt file of these texts, a line each."""
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    task = kind(
        name="own", **{"files": dict.fromkeys(("train", "validation", "test"), str(folder / "texts.txt"))} | options
    )
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    return task


def whole(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """The ids of each row before they were masked, without padding."""
    ids = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
    return [row[real.bool()].tolist() for row, real in zip(ids, batch["attention_mask"], strict=True)]


def by_row(loader: Any, epoch: int = 0) -> dict[int, tuple[list[int], list[int]]]:
    """Row -> ids as the model sees them, and labels, without padding."""
    loader.sampler.set_epoch(epoch)
    found = {}
    for batch in loader:
        for i, row in enumerate(batch["row"].tolist()):
            real = batch["attention_mask"][i].bool()
            assert row not in found
            found[row] = (batch["input_ids"][i][real].tolist(), batch["labels"][i][real].tolist())
    return found


def test_documents_lie_end_to_end_in_full_blocks(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer, max_length=10)
    blocks = {
        row: ids
        for batch in task.val_dataloader()
        for row, ids in zip(batch["row"].tolist(), whole(batch), strict=True)
    }
    line: list[int] = []
    for text in TEXTS:
        line += ([tokenizer.sep_token_id] if line and text else []) + tokenizer(
            text, add_special_tokens=False
        ).input_ids
    expected = [[tokenizer.cls_token_id, *line[i : i + 8], tokenizer.sep_token_id] for i in range(0, len(line), 8)]
    assert [blocks[row] for row in sorted(blocks)] == expected
    assert task.report["rows"]["train"] == len(expected)


def test_or_each_has_a_block_of_its_own(tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        task = make(tmp_path, tokenizer, max_length=10, pack=False)
    blocks = sorted(ids for batch in task.val_dataloader() for ids in whole(batch))
    assert blocks == sorted(tokenizer(text, truncation=True, max_length=10).input_ids for text in TEXTS if text)
    assert "1 of 4 texts were truncated to 10 tokens" in caplog.text


def test_paragraphs_of_a_text_file(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer, ["a good", "film", "", "soup"], documents="paragraph", pack=False)
    blocks = sorted(ids for batch in task.val_dataloader() for ids in whole(batch))
    assert blocks == sorted(tokenizer(text).input_ids for text in ("a good film", "soup"))


def test_masks_hang_on_epoch_and_row_and_not_on_batches(tmp_path: Path, tokenizer: Any) -> None:
    texts = ["the soup was not very good and it is a bad film"] * 6 + ["a good film was good"] * 5
    options = {"mask_rate": 0.4, "pack": False}
    found = [
        by_row(make(tmp_path, tokenizer, texts, batch_size=size, **options).train_dataloader(), 3) for size in (1, 2, 3)
    ]
    workers = make(tmp_path, tokenizer, texts, batch_size=3, num_workers=1, **options).train_dataloader()
    assert found[0] == found[1] == found[2] == by_row(workers, 3)
    task = make(tmp_path, tokenizer, texts, batch_size=3, **options)
    assert by_row(task.train_dataloader(), 4) != found[0]
    fixed = by_row(task.val_dataloader())
    assert by_row(task.val_dataloader(), 4) == fixed
    assert by_row(make(tmp_path, tokenizer, texts, eval_batch_size=1, seed=2, **options).val_dataloader()) == fixed
    assert by_row(make(tmp_path, tokenizer, texts, seed=2, **options).train_dataloader(), 3) != found[0]
    assert fixed != by_row(task.train_dataloader()), "the first epoch is not evaluated on its own masks"
    for ids, labels in found[0].values():
        assert labels[0] == labels[-1] == IGNORED
        assert any(label != IGNORED for label in labels)
        assert len(ids) in (7, 14)


def test_left_padding_masks_alike(tmp_path: Path, tokenizer: Any) -> None:
    right = by_row(make(tmp_path, tokenizer, pack=False).val_dataloader())
    tokenizer.padding_side = "left"
    assert by_row(make(tmp_path, tokenizer, pack=False).val_dataloader()) == right


def test_words_of_several_tokens_are_masked_whole(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "so", "##up", "##s", "a"]
    tokenizer = transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=64)
    task = make(tmp_path, tokenizer, ["soups a soup a a soups soup"] * 40, whole_words=True, mask_rate=0.3, pack=False)
    chosen = torch.cat([batch["labels"] for batch in task.val_dataloader()])[:, 1:-1] != IGNORED
    words = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 6, 6])
    assert chosen.shape[1] == len(words)
    for word in range(7):
        some = chosen[:, words == word]
        assert (some.all(1) == some.any(1)).all()
        assert some.any()


def test_metrics_are_those_of_hidden_tokens(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer, mask_rate=0.5)
    metrics, losses, right = task.metrics(), [], []
    for batch in task.val_dataloader():
        logits = torch.randn(*batch["labels"].shape, len(tokenizer))
        output = transformers.modeling_outputs.MaskedLMOutput(logits=logits)
        task.update(metrics, output, batch)
        hidden = batch["labels"] != IGNORED
        losses.append(torch.nn.functional.cross_entropy(logits[hidden], batch["labels"][hidden], reduction="none"))
        right.append(logits[hidden].argmax(-1) == batch["labels"][hidden])
        assert task.labelled(batch) == int(hidden.sum())
        said = task.predictions(output, batch)
        assert sum(len(row["guesses"]) for row in said) == int(hidden.sum())
        assert all("[MASK]" not in guess["token"] for row in said for guess in row["guesses"])
    values = metrics.compute()
    assert values["perplexity"].item() == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-4)
    assert values["accuracy"].item() == pytest.approx(torch.cat(right).float().mean().item())


# ---- sentence order ----


def test_half_of_the_rows_are_swapped(tmp_path: Path, tokenizer: Any) -> None:
    texts = ["the soup was not very good and it is a bad film", "a good film was bad", "soup"] * 40
    task = make(tmp_path, tokenizer, texts, SentenceOrder, max_length=15)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    known = {tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in texts}
    swapped = []
    for batch in task.val_dataloader():
        assert torch.equal(batch["sentence_order_label"], batch["next_sentence_label"])
        for ids, order, kinds in zip(whole(batch), batch["sentence_order_label"], batch["token_type_ids"], strict=True):
            assert (ids[0], ids[-1], ids.count(sep)) == (cls, sep, 2)
            middle = ids.index(sep)
            one, other = ids[1:middle], ids[middle + 1 : -1]
            assert kinds[: len(ids)].tolist() == [0] * (middle + 1) + [1] * (len(other) + 1)
            assert tuple(other + one if order else one + other) in known
            swapped.append(int(order))
    assert len(swapped) == 80, "a text of one word is in no order"
    assert 20 < sum(swapped) < 60


def test_blocks_are_cut_between_sentences_near_the_middle() -> None:
    begins, ends = np.ones(10, bool), np.zeros(10, bool)
    assert middle(begins, ends) == 5
    ends[[3, 8]] = True
    assert middle(begins, ends) == 4
    begins[:] = False
    begins[0] = True
    assert middle(begins, ends) is None


# ---- replaced tokens ----


def electra(tokenizer: Any) -> Any:
    config = transformers.ElectraConfig(vocab_size=len(tokenizer), embedding_size=16, pad_token_id=0, **SIZES)
    return skim.compress(transformers.ElectraForPreTraining(config), "dense")


def test_a_generator_puts_tokens_in(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer, TEXTS * 20, ReplacedTokens, mask_rate=0.4, generator_size=0.5)
    model = electra(tokenizer)
    generator = task.companion(model)
    ours = generator.electra.embeddings.word_embeddings.weight
    assert ours is model.electra.embeddings.word_embeddings.weight is generator.generator_lm_head.weight
    assert (generator.config.hidden_size, generator.config.num_hidden_layers) == (16, 2)
    generator.eval()
    batch = next(iter(task.val_dataloader()))
    hidden = batch["originals"] != IGNORED
    seen, added = task.corrupt(batch, generator)
    out = generator(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["originals"])
    assert added.item() == pytest.approx(out.loss.item() / 50)
    assert torch.equal(seen["input_ids"][~hidden], batch["input_ids"][~hidden])
    assert torch.equal(seen["labels"] == 1, hidden & (seen["input_ids"] != batch["originals"]))
    assert 0 < seen["labels"].sum() <= hidden.sum()
    assert torch.equal(task.corrupt(batch, generator)[0]["input_ids"], seen["input_ids"])
    # the numbers it draws by are uniform: over many of them the tokens are those of its distribution
    many = {**batch, "draw": torch.rand_like(batch["draw"])}
    counts = torch.zeros(int(hidden.sum()), len(tokenizer))
    for _ in range(400):
        many["draw"] = torch.rand_like(batch["draw"])
        counts += torch.nn.functional.one_hot(task.corrupt(many, generator)[0]["input_ids"][hidden], len(tokenizer))
    assert (counts / 400 - out.logits[hidden].softmax(-1)).abs().mean() < 0.02


def test_a_generator_is_saved_and_loaded_with_the_run(tmp_path: Path) -> None:
    given = ["task=electra", "task.hub_id=builtin/text", "task.config=default", "backbone=tiny", "method=dense"]
    given += ["backbone.overrides.model_type=electra", "train.max_steps=2", "train.lr=1e-2", "task.max_length=32"]
    given += ["hardware=cpu", "benchmark.enabled=false", "task.max_train_samples=40", "task.max_eval_samples=20"]
    train(composed(*given), tmp_path / "run", "")
    for source in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"):
        loaded = load(looking(source))
        state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert loaded.parts.companion is not None
        for name, tensor in loaded.parts.companion.state_dict().items():
            assert torch.equal(tensor, state[f"companion.{name}"])
        tied = loaded.parts.companion.electra.embeddings.word_embeddings.weight
        assert tied is loaded.parts.model.electra.embeddings.word_embeddings.weight


# ---- a run that learns, and what is refused ----


@pytest.mark.slow
def test_it_learns_the_built_in_grammar(tmp_path: Path) -> None:
    """Better than one who knows how often each word is: 16 % are "the", at a perplexity of 44."""
    given = ["task=builtin_text", "method=dense", "hardware=cpu", "hardware.threads=1", "benchmark.enabled=false"]
    given += ["train.max_steps=300", "train.lr=3e-3", "task.max_length=32", "task.max_eval_samples=100"]
    given += [f"backbone.overrides.{size}" for size in ("num_hidden_layers=2", "hidden_size=64")]
    given += ["backbone.overrides.hidden_dropout_prob=0"]
    run = train(composed(*given), tmp_path / "run", "")
    assert run.results.metrics["accuracy"] > 0.22
    assert run.results.metrics["perplexity"] < 33
    assert run.results.relative_flops == 1


@pytest.mark.parametrize(
    ("texts", "options", "says"),
    [
        (["", "  "], {}, "own, train: there is no text in column 'text' of the 2 rows"),
        (TEXTS, {"documents": "sentence"}, "documents='sentence'.*one of line, paragraph"),
        (TEXTS, {"max_length": 2}, "max_length=2.*at least 3"),
        (TEXTS, {"mask_rate": 15}, "mask_rate=15.*above 0 and below 1"),
        (TEXTS, {"mask_rate": 1.0}, "mask_rate=1.0.*above 0 and below 1"),
        (TEXTS, {"n_gram": 0}, "n_gram=0.*at least 1"),
        (TEXTS, {"replaced": -0.1}, "replaced=-0.1.*from 0 to 1"),
        (TEXTS, {"kind": ReplacedTokens, "generator_size": 2}, "generator_size=2.*above 0 and at most 1"),
        (TEXTS, {"kind": SentenceOrder, "max_length": 4}, "no room for two segments"),
        (TEXTS, {"files": {"train": "none.txt", "validation": "none.txt"}}, "none.txt is not there"),
    ],
)
def test_what_is_refused(tmp_path: Path, tokenizer: Any, texts: list[str], options: dict[str, Any], says: str) -> None:
    with pytest.raises(SkimError, match=says):
        make(tmp_path, tokenizer, texts, **options)


def test_a_missing_column_and_a_missing_mask_are_named(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "rows.csv").write_text("words,label\na good film,1\n")
    files = dict.fromkeys(("train", "validation"), str(tmp_path / "rows.csv"))
    with pytest.raises(
        SkimError, match=r"no text column 'text'. Its columns: words, label.\nChoose with task.text_column"
    ):
        make(tmp_path, tokenizer, files=files)
    make(tmp_path, tokenizer, files=files, text_column="words")
    tokenizer.mask_token = None
    with pytest.raises(SkimError, match=r"has no \[MASK\].\nUse a backbone"):
        make(tmp_path, tokenizer)


def test_blocks_as_long_as_the_backbone_takes(tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        task = make(tmp_path, tokenizer, TEXTS * 20, max_length=500)
    assert "blocks have 64 tokens, as many as the backbone takes, and not task.max_length=500" in caplog.text
    assert next(iter(task.val_dataloader()))["input_ids"].shape[1] == 64


@pytest.mark.parametrize(
    ("kind", "says"), [(SentenceOrder, "a head for the order of two segments"), (ReplacedTokens, "ELECTRA's")]
)
def test_a_head_that_cannot_is_refused(kind: type, says: str, tokenizer: Any) -> None:
    config = transformers.RobertaConfig(vocab_size=20, **SIZES)
    with pytest.raises(SkimError, match=says):
        kind(name="own").check_model(transformers.RobertaForMaskedLM(config))


def test_a_budget_is_that_of_inputs_as_the_generator_hands_them_on(tmp_path: Path) -> None:
    """And whoever starts from a run starts from its generator too."""
    given = ["task=electra", "task.hub_id=builtin/text", "task.config=default", "backbone=tiny"]
    given += ["backbone.overrides.model_type=electra", "train.lr=1e-3", "task.max_length=32"]
    given += ["hardware=cpu", "benchmark.enabled=false", "task.max_train_samples=40", "task.max_eval_samples=20"]
    train(composed(*given, "method=dense", "train.max_steps=5"), tmp_path / "dense", "")
    first = [f"init_from={tmp_path / 'dense'}", "method=transkimmer", "method.target=0.7", "train.max_steps=3"]
    parts = build(composed(*given, *first))
    before = load_file(tmp_path / "dense" / "model" / COMPANION)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.companion.state_dict().items())
    results = train(composed(*given, *first), tmp_path / "run", "").results
    loaded = load(looking(tmp_path / "run"))
    assert spend(loaded.parts.model, loaded.parts.sampled(32, 512)) == pytest.approx(results.relative_flops, abs=1e-3)
    hidden = loaded.parts.task.sample_batches(32, 512)[0]["input_ids"] == loaded.parts.tokenizer.mask_token_id
    assert hidden.any()
    assert not (loaded.parts.sampled(32, 512)[0]["input_ids"] == loaded.parts.tokenizer.mask_token_id).any()
