"""The same dense model on the same data, trained by transformers' own Trainer: what skim's dense runs are set beside.

$ python -m tests.baseline mrpc --seed 1 --epochs 2 --lr 1e-4
$ python train.py method=dense task=mrpc seed=1 train.epochs=2 train.lr=1e-4      # to be set beside it

Nothing of skim is in it but the door to the mirror: rows are tokenised, batched, trained and scored by transformers,
scikit-learn, scipy and seqeval. Prints one line of metrics, as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as span_f1
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torchmetrics.functional.text import squad

from skim import hub

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


class Data(NamedTuple):
    """Where a task's rows are, and what is done with them."""

    hub_id: str
    config: str
    columns: tuple[str, ...]
    label: str
    metrics: tuple[str, ...]
    evaluation: str = "validation"


GLUE = "nyu-mll/glue"
PAIR = ("sentence1", "sentence2")
TASKS = {
    "sst2": Data(GLUE, "sst2", ("sentence",), "label", ("accuracy",)),
    "cola": Data(GLUE, "cola", ("sentence",), "label", ("matthews", "accuracy")),
    "mrpc": Data(GLUE, "mrpc", PAIR, "label", ("accuracy", "f1")),
    "rte": Data(GLUE, "rte", PAIR, "label", ("accuracy",)),
    "stsb": Data(GLUE, "stsb", PAIR, "label", ("pearson", "spearman")),
    "newsgroups": Data("SetFit/20_newsgroups", "default", ("text",), "label", ("accuracy",), "test"),
    "conll2000": Data("eriktks/conll2000", "conll2000", ("tokens",), "chunk_tags", ("spans", "words"), "test"),
    "ud": Data("universal-dependencies/universal_dependencies", "en_ewt", ("tokens",), "upos", ("words",)),
    "squad": Data("rajpurkar/squad", "plain_text", ("question", "context"), "answers", ("squad",)),
}
SCORES: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews": matthews_corrcoef,
    "pearson": lambda truth, found: pearsonr(truth, found).statistic,
    "spearman": lambda truth, found: spearmanr(truth, found).statistic,
    "words": lambda truth, found: accuracy_score([*chain(*truth)], [*chain(*found)]),
    "spans": span_f1,
}


def subsample(rows: Dataset, count: int | None) -> Dataset:
    """The rows that skim's task.max_train_samples takes: the same for every seed."""
    if count is None or count >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(0).choice(np.arange(len(rows)), count, replace=False)))


def words_encoded(tokenizer: Any, rows: dict[str, list], data: Data, length: int, untagged: int) -> dict[str, list]:
    """Tagged words: the first piece of each has its tag, all others -100, and words without a tag as well."""
    encoded = tokenizer(rows[data.columns[0]], is_split_into_words=True, truncation=True, max_length=length)
    labels = []
    for i, tags in enumerate(rows[data.label]):
        words = encoded.word_ids(i)
        first = [word is not None and words.index(word) == place for place, word in enumerate(words)]
        kept = [begins and tags[word] != untagged for begins, word in zip(first, words, strict=True)]
        labels.append([tags[word] if keep else -100 for keep, word in zip(kept, words, strict=True)])
    return {**encoded, "labels": labels}


def windows_encoded(tokenizer: Any, rows: dict[str, list], data: Data, length: int) -> dict[str, list]:
    """Questions with windows of their contexts, and where the first answer's tokens are: [CLS] where they are not."""
    encoded = tokenizer(
        *(rows[name] for name in data.columns),
        truncation="only_second",
        max_length=length,
        stride=128,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    starts, ends, contexts = [], [], []
    for i, offsets in enumerate(encoded["offset_mapping"]):
        answers = rows[data.label][encoded["overflow_to_sample_mapping"][i]]
        begin = answers["answer_start"][0]
        end = begin + len(answers["text"][0])
        inside = [kind == 1 for kind in encoded.sequence_ids(i)]
        first = [k for k, (a, b) in enumerate(offsets) if inside[k] and a <= begin < b]
        last = [k for k, (a, b) in enumerate(offsets) if inside[k] and a < end <= b]
        whole = bool(first and last)
        starts.append(first[0] if whole else 0)
        ends.append(last[0] if whole else 0)
        contexts.append([pair if within else None for pair, within in zip(offsets, inside, strict=True)])
    encoded["offset_mapping"] = contexts
    return {**encoded, "start_positions": starts, "end_positions": ends}


def encoded(tokenizer: Any, rows: dict[str, list], data: Data, length: int) -> dict[str, list]:
    """Texts and their labels."""
    columns = [rows[name] for name in data.columns]
    return {**tokenizer(*columns, truncation=True, max_length=length), "labels": rows[data.label]}


def answers(features: Dataset, starts: np.ndarray, ends: np.ndarray, rows: Dataset) -> dict[str, float]:
    """EM and F1, in percent: the best span of the twenty best starts and ends over a question's windows."""
    best: dict[int, tuple[float, str]] = {}
    for i, (offsets, question) in enumerate(
        zip(features["offset_mapping"], features["overflow_to_sample_mapping"], strict=True)
    ):
        context = rows[question]["context"]
        for a in np.argsort(-starts[i, : len(offsets)])[:20]:
            for b in np.argsort(-ends[i, : len(offsets)])[:20]:
                if offsets[a] is None or offsets[b] is None or not a <= b < a + 30:
                    continue
                score = float(starts[i, a] + ends[i, b])
                if question not in best or score > best[question][0]:
                    best[question] = (score, context[offsets[a][0] : offsets[b][1]])
    said = [{"prediction_text": best.get(i, (0, ""))[1], "id": row["id"]} for i, row in enumerate(rows)]
    truth = [{"answers": row["answers"], "id": row["id"]} for row in rows]
    found = squad(said, truth)
    return {"em": float(found["exact_match"]), "f1": float(found["f1"])}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train and score; the options are those of ``train.py`` that the comparison is about."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--train-samples", type=int)
    parser.add_argument("--eval-samples", type=int)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers.set_seed(options.seed)
    data = TASKS[options.task]
    kind = "squad" if "squad" in data.metrics else "tags" if "words" in data.metrics else "text"
    train = subsample(hub.dataset(data.hub_id, data.config, "train"), options.train_samples)
    dev = subsample(hub.dataset(data.hub_id, data.config, data.evaluation), options.eval_samples)
    folder = hub.model_path(MODEL)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encode: Any = windows_encoded if kind == "squad" else encoded
    if kind == "tags":
        tags = train.features[data.label].feature.names
        encode = partial(words_encoded, untagged=tags.index("_") if "_" in tags else -1)

    def table(rows: Dataset) -> Dataset:
        columns = rows.column_names
        length = options.max_length
        return rows.map(lambda some: encode(tokenizer, some, data, length), batched=True, remove_columns=columns)

    if kind == "squad":
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
        collate: Any = transformers.DataCollatorWithPadding(tokenizer)
        names = None
    else:
        feature = train.features[data.label]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        count = len(names) if names else 1 if data.metrics[0] == "pearson" else int(max(train[data.label])) + 1
        if kind == "tags":
            model = transformers.AutoModelForTokenClassification.from_pretrained(folder, num_labels=count)
            collate = transformers.DataCollatorForTokenClassification(tokenizer)
        else:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=count)
            collate = transformers.DataCollatorWithPadding(tokenizer)
    train_table, dev_table = table(train), table(dev)
    steps = -(-len(train_table) // options.batch) * options.epochs
    settings = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=options.epochs,
        learning_rate=options.lr,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch,
        weight_decay=0.01,
        warmup_steps=round(0.1 * steps),
        seed=options.seed,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, settings, collate, train_table, processing_class=tokenizer)
    trainer.train()
    trainer.args.train_sampling_strategy = "random"  # by it, evaluation is grouped too, and windows come in no order
    features = (
        dev_table.remove_columns(["offset_mapping", "overflow_to_sample_mapping"]) if kind == "squad" else dev_table
    )
    found = trainer.predict(features)
    if kind == "squad":
        scores = answers(dev_table, *found.predictions[:2], dev)
    elif kind == "tags":
        tags = found.predictions.argmax(-1)
        kept = [[k for k, label in enumerate(row) if label != -100] for row in found.label_ids]
        truth = [[names[row[k]] for k in some] for row, some in zip(found.label_ids, kept, strict=True)]
        said = [[names[row[k]] for k in some] for row, some in zip(tags, kept, strict=True)]
        scores = {name: float(SCORES[name](truth, said)) for name in data.metrics}
    else:
        said = found.predictions[:, 0] if count == 1 else found.predictions.argmax(-1)
        scores = {name: float(SCORES[name](found.label_ids, said)) for name in data.metrics}
    print(json.dumps({"task": options.task, "seed": options.seed, "steps": steps, **scores}))
    return scores


if __name__ == "__main__":
    main()
