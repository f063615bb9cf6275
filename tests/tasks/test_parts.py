"""Which rows a part has, and what is written of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.text import Text


def test_a_file_of_a_part_comes_before_the_split_that_stands_in_for_it(tmp_path: Path, tokenizer: Any) -> None:
    files = {part: str(tmp_path / f"{part}.jsonl") for part in ("train", "validation", "test")}
    for part, file in files.items():
        Path(file).write_text("".join(json.dumps({"text": part, "label": i}) + "\n" for i in (0, 1)))
    task = Text(name="text", files=files, eval_split="test", test_split="validation", label_names=["no", "yes"])
    for part in files:
        assert task.source(part)[0]["text"] == [part] * 2
    alone = Text(name="text", files={"test": files["test"]}, eval_split="test")  # which is what was named
    assert alone.source("validation")[0]["text"] == ["test"] * 2


def test_predictions_say_which_row_of_the_file_they_are_of(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "test.jsonl"
    lines = [json.dumps({"text": "a " * n + "film", "label": ["bad", "good"][n % 2]}) for n in range(6)]
    lines[1] = "{"  # row 2 cannot be read
    lines[3] = json.dumps({"label": "bad"})  # nor is there a text in row 4
    file.write_text("\n".join(lines))
    task = Text(name="text", files={"test": str(file)}, on_bad_row="skip", label_names=["bad", "good"], length_max=7)
    task.setup_tokenizer(tokenizer)
    task.setup("test")
    said = [{"prediction": "good"}] * 3
    (path,) = task.write_predictions(said, tmp_path)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [
        {"row": 1, "text": "film", "label": "bad", "prediction": "good"},
        {"row": 3, "text": "a a film", "label": "bad", "prediction": "good"},
        {"row": 5, "text": "a a a a film", "label": "bad", "prediction": "good"},
    ]
