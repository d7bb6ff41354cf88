"""Encoders of transformers: pooling by the mask, training, and checkpoints that need neither hub nor files."""

from __future__ import annotations

import os

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_bce import BinaryClassifier
from lightning_bce.models import TextEncoder
from lightning_bce.spec import build

os.environ["HF_HUB_OFFLINE"] = "1"  # at the import, because the hub reads it once
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TINY = {"vocab_size": 37, "hidden_size": 16, "intermediate_size": 24}
BERT = {"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 2, **TINY}


def tokens(lengths=(5, 3, 7)):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(1, 37, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask.long()}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(pooling):
    encoder = TextEncoder(config=BERT, num_labels=3, pooling=pooling).eval()
    batch = tokens()
    alone = {name: values[1:2, :3] for name, values in batch.items()}
    torch.testing.assert_close(encoder(batch)[1:2], encoder(alone))
    hidden = encoder.encoder(**alone).last_hidden_state
    pooled = hidden[:, 0] if pooling == "cls" else hidden.mean(1)
    torch.testing.assert_close(encoder(alone), encoder.fc(pooled))
    torch.testing.assert_close(encoder({"input_ids": alone["input_ids"]}), encoder(alone))


def test_a_row_of_padding_alone_has_finite_logits_and_gradients():
    encoder = TextEncoder(config=BERT)
    encoder({"input_ids": torch.zeros(2, 5, dtype=torch.long), "attention_mask": torch.zeros(2, 5)}).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.fc.parameters())


def collated(rows):
    # As transformers.DataCollatorWithPadding does: labels beside the tokens, whole numbers.
    batch = tokens([row % 5 + 2 for row in rows])
    return transformers.BatchEncoding({**batch, "labels": torch.tensor([row % 2 for row in rows])})


def under_inputs(rows):
    batch = collated(rows)
    target = batch.pop("labels").float().unsqueeze(1)
    return {"inputs": dict(batch), "target": target, "id": torch.tensor(rows)}


@pytest.mark.parametrize("collate", [collated, under_inputs], ids=["labels beside tokens", "inputs and target"])
@pytest.mark.parametrize(
    "config",
    [BERT, {"model_type": "distilbert", "vocab_size": 37, "dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2}],
)
def test_it_trains_and_its_checkpoint_loads_by_itself(tmp_path, config, collate):
    loader = DataLoader(range(33), batch_size=7, collate_fn=collate)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    classifier = BinaryClassifier(TextEncoder(config=config), prior_bias=True)
    trainer.fit(classifier, loader, loader)
    classifier(tokens()).sum().backward()
    assert all(p.grad is not None for p in classifier.parameters()), "DDP would wait for those without"
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    batch = tokens()
    assert torch.equal(again(batch), classifier.eval()(batch))
    assert len(trainer.predict(classifier, loader)[0]["probability"]) == 7


def test_a_pretrained_folder_is_not_needed_again(tmp_path):
    torch.manual_seed(1)
    TextEncoder(config=BERT).encoder.save_pretrained(tmp_path / "there")
    first = TextEncoder(pretrained=str(tmp_path / "there"))
    (tmp_path / "there").rename(tmp_path / "gone")
    again = build(first.spec(), torch.nn.Module)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.eval()(batch := tokens()), first.eval()(batch))


def test_code_of_a_configuration_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    encoder = TextEncoder(config={**BERT, "auto_map": {"AutoModel": f"{tmp_path}--evil.Model"}})
    assert "auto_map" not in encoder.spec()["init_args"]["config"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give `pretrained`"),
        ({"pretrained": "a", "config": BERT}, "not both"),
        ({"config": TINY}, "no 'model_type'"),
        ({"config": {**BERT, "attn_implementation": "kernels-community/flash-attn"}}, "fetched and run"),
        ({"config": {**BERT, "text_config": {"_attn_implementation": {"": "a/b"}}}}, "fetched and run"),
        ({"config": BERT, "pooling": "max"}, "'mean' or 'cls'"),
        ({"config": BERT, "num_labels": 0}, "`num_labels` is 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TextEncoder(**arguments)


def test_inputs_without_tokens_are_named():
    with pytest.raises(TypeError, match="with 'input_ids' and 'attention_mask'"):
        TextEncoder(config=BERT)(torch.zeros(2, 5))
