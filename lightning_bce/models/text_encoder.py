"""TextEncoder: an encoder of transformers with a linear layer, from tokens to logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_bce.losses.checks import check_number, check_whole
from lightning_bce.spec import Recorded, to_plain

Pooling = Literal["mean", "cls"]

# Where it came from, labels of its own, which have numbers as keys, and code.
_NOT_NOTED = ("_name_or_path", "architectures", "auto_map", "id2label", "label2id", "transformers_version")


class TextEncoder(Recorded, nn.Module):
    r"""An encoder of transformers, the pooled hidden states of its last layer, and a linear layer on them.

    .. math:: \mathrm{logits} = W \frac{\sum_t m_t h_t}{\sum_t m_t} + b

    with the hidden states :math:`h_t` and the attention mask :math:`m_t`, or :math:`W h_0 + b` with "cls".

    A checkpoint notes the configuration of the encoder and has its weights, so that it loads without the hub, and
    without the files of ``pretrained``. Code of a model at the hub is never run, nor are kernels from there that a
    configuration names.

    The inputs are the tokens as a tokenizer returns them with ``return_tensors="pt"``. :class:`BinaryClassifier` takes
    them as ``{"inputs": tokens, "target": ...}``, or as a collator of transformers puts them together: one mapping with
    ``input_ids``, what belongs to it, and ``labels``, (N,) or (N, C).

    Args:
        pretrained: Name of a model at the hub, which is downloaded, or a folder.
        config: In its place, the configuration of an encoder with random weights: ``model_type`` and its options.
        num_labels: Number of labels C.
        pooling: The "mean" of the tokens that the attention mask leaves, or the first token, "cls".
        dropout: Probability in [0, 1) of leaving out a pooled number in training.

    Raises:
        ValueError: If both or none of ``pretrained`` and ``config`` are given, or an option is out of range.
        ImportError: If transformers is not installed: ``pip install 'lightning_bce[text]'``.

    Example:
        >>> tiny = {"model_type": "distilbert", "vocab_size": 37, "dim": 16, "n_layers": 1, "n_heads": 2}
        >>> encoder = TextEncoder(config=tiny)  # doctest: +SKIP
        >>> encoder({"input_ids": torch.tensor([[5, 7, 3]])}).shape  # doctest: +SKIP
        torch.Size([1, 1])
    """

    def __init__(
        self,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        num_labels: int = 1,
        pooling: Pooling = "mean",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (config is None):
            raise ValueError(
                "Give `pretrained`, a name at the hub or a folder, or `config`, a mapping with 'model_type'; not both."
            )
        if pooling not in ("mean", "cls"):
            raise ValueError(f"`pooling` is {pooling!r}; 'mean' or 'cls' was expected.")
        check_whole("num_labels", num_labels, at_least=1)
        check_number("dropout", dropout, at_least=0, below=1)
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise ImportError(
                f"TextEncoder needs transformers ({error}): pip install 'lightning_bce[text]'."
            ) from error
        if config is None:
            self.encoder = AutoModel.from_pretrained(pretrained, trust_remote_code=False, dtype=torch.float32)
        else:
            options = {name: value for name, value in config.items() if name not in ("model_type", *_NOT_NOTED)}
            if "model_type" not in config:
                raise ValueError(f"`config` has {sorted(config)} and no 'model_type', such as 'bert'.")
            _refuse_code(config)
            made = AutoConfig.for_model(config["model_type"], **options)
            self.encoder = AutoModel.from_config(made, trust_remote_code=False)
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # of weights that no logit depends on, for which DDP would wait
        # Not what differs from the defaults alone: these may be others in a later release.
        noted = {name: value for name, value in self.encoder.config.to_dict().items() if name not in _NOT_NOTED}
        self._record(pretrained=None, config=to_plain(noted, "config"))
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.encoder.config.hidden_size, num_labels)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits (N, C) of tokens, a mapping with ``input_ids`` (N, T) and, where needed, the mask.

        Raises:
            TypeError: If there are no ``input_ids``.
        """
        if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
            raise TypeError(
                f"The inputs are {type(inputs).__name__}; a mapping with 'input_ids' and 'attention_mask', as a "
                "tokenizer returns with return_tensors='pt', was expected."
            )
        hidden = self.encoder(**inputs).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = inputs.get("attention_mask")
            mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            # A row of padding alone has no mean: 0, and not NaN.
            pooled = torch.where(mask.unsqueeze(-1) > 0, hidden, 0.0).sum(1) / weight.sum(1).clamp(min=1)
        logits: Tensor = self.fc(self.dropout(pooled))
        return logits


def _refuse_code(config: Any) -> None:
    """Refuse an implementation of attention that is to be fetched from the hub, and run: a checkpoint may name it."""
    for name, value in config.items() if isinstance(config, Mapping) else ():
        implementations = value.values() if isinstance(value, Mapping) else [value]
        if "attn_implementation" in name and any("/" in str(found) for found in implementations):
            raise ValueError(
                f"`config` has {name!r}: {value!r}, code that would be fetched and run. Give one that transformers "
                "has, such as 'sdpa', or leave it out."
            )
        _refuse_code(value)
