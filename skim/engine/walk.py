"""The walk through the layers: ours, once, for every backbone family and every method.

    batch -> embed -> TokenBatch -> [before_layer -> attend -> after_attention -> feed_forward -> after_layer] x L
          -> restore -> finish -> head

``compress`` sets one :class:`Walk` as the ``forward`` of the base model's *instance*; heads, parameter names and
classes stay Hugging Face's, and deleting that attribute undoes it. The state is handed along in a TokenBatch and never
stored on modules. Gradient checkpointing wraps the two halves of a layer and leaves the method's hooks outside, so that
a decision is taken once per step.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from skim.engine.adapters import Modules, adapters, apart, serving, whole_of
from skim.engine.backbone import Backbone
from skim.engine.graphed import Graphed
from skim.engine.head import Head
from skim.engine.hooks import Hooks, Idle
from skim.engine.inputs import INPUTS, Inputs, check_read, misread
from skim.engine.masked import MaskedTokens
from skim.engine.narrowed import NarrowedTokens
from skim.engine.packed import PackedTokens
from skim.engine.static import StaticTokens
from skim.engine.step import Steps
from skim.engine.threads import PerThread
from skim.engine.tokens import Sequences, TokenBatch
from skim.engine.trace import Trace
from skim.engine.watch import Watch
from skim.errors import SkimError, unknown
from skim.flops import LayerCost, precise

FORMS: dict[str, type[Any]] = {"masked": MaskedTokens, "packed": PackedTokens, "narrowed": NarrowedTokens}
EXECUTIONS = ("auto", *FORMS)
IDLE = Idle()
HOOKS = ("runs", "before_layer", "after_attention", "after_layer", "restore")  # that change layers, rows or states


class Walk:
    """The forward of a compressed base model; a plain object, so that it adds no module and no parameter name.

    Args:
        model: what the user holds (with its head).
        base: the base model whose forward this is.
        backbone: the family's adapter.
        method: the compression method.
        execution: ``auto`` trains masked where gradients pass through decisions and runs packed (or narrowed) else.
        head: the model's own; a method may read it behind inner layers.

    Attributes:
        static: whether packed execution runs on static rows, see :mod:`skim.engine.static`; ``None``: on a GPU, where
            no gradients are wanted.
        keeps_states: whether a trace keeps the rows behind each layer.
    """

    def __init__(
        self,
        model: nn.Module,
        base: nn.Module,
        backbone: Backbone,
        method: Hooks,
        execution: str,
        head: Head,
    ) -> None:
        if backbone.shortens and any(getattr(type(method), hook) is not getattr(Hooks, hook) for hook in HOOKS):
            raise SkimError(
                f"{type(base).__name__} shortens its sequences by itself, so it takes no method={method.name}.\n"
                "Use method=dense, or another backbone."
            )
        self.model, self.base, self.backbone = model, base, backbone
        self._method = method
        self.stand_in: Hooks | None = None  # in whose place the method waits
        self.execution = execution
        self.static: bool | None = None
        self.graphs: bool | None = None  # whether static rows run by graphs; None: on a GPU
        self.keeps_states = False
        self.graphed = Graphed()
        self.forms = FORMS
        self.head = head
        self._last = PerThread()
        self._priced = (Modules(model), self._prices())
        self._watch = Watch()
        self.heads = int(base.config.num_attention_heads)  # type: ignore[arg-type, union-attr]
        self.__signature__ = inspect.signature(base.forward)  # by it transformers' Trainer chooses columns
        self.names = list(self.__signature__.parameters)

    @property
    def trace(self) -> Trace:
        """Trace of the calling thread's last forward; a SkimError before there was one."""
        if self._last.value is None:
            raise SkimError(
                "model.trace tells what this thread's last forward did, and it has run none yet: model(**batch) first."
            )
        if not isinstance(self._last.value, Trace):  # of a forward by graphs: put together when somebody asks
            self._last.value = self._last.value()
        trace: Trace = self._last.value
        return trace

    @property
    def method(self) -> Any:
        """The method; of PEFT's copies of it the active one, or whoever stands in for it."""
        return self._present() if self.stand_in is None else self.stand_in

    @property
    def deciding(self) -> Any:
        """Whose hooks the next forward calls: the method's, unless it is idle."""
        method = self.method
        return IDLE if method.idle else method

    def _present(self) -> Hooks:
        return serving(self.model._modules.get("method", self._method))

    @property
    def costs(self) -> list[LayerCost]:
        """FLOPs of each layer per token and per pair, with the adapters that it has now."""
        if not torch.compiler.is_compiling() and self._priced[0].changed():
            method = self._present()
            if inside := adapters(method):
                raise SkimError(
                    f"PEFT has put an adapter inside the method ({inside[0]}): what the method learns then is neither "
                    "counted nor saved.\nKeep it out, exclude_modules=r'.*method\\..*' in the adapter's config, or "
                    "compress the model that get_peft_model returns."
                )
            if method.reads_head:
                apart(self.head.price)
            self._priced = (Modules(self.model), self._prices())
        return self._priced[1]

    def _prices(self) -> list[LayerCost]:
        layers = self.backbone.layers(self.base)
        prices = {layer: self.backbone.cost(layer) for layer in dict.fromkeys(layers)}  # some are shared
        return [prices[layer] for layer in layers]

    @property
    def execution(self) -> str:
        """How the next forward runs: ``auto``, ``masked``, ``packed`` or ``narrowed``."""
        return self._execution

    @execution.setter
    def execution(self, value: str) -> None:
        if value not in EXECUTIONS:
            raise unknown("execution", value, EXECUTIONS)
        if value == "packed" and not self.backbone.packs:
            raise SkimError(
                f"{type(self.base).__name__} cannot run packed: its attention cannot be handed a function.\n"
                "Use execution=narrowed (or auto)."
            )
        if value in ("packed", "narrowed") and not self.method.inside_softmax:
            raise SkimError(
                f"A mask after the softmax cannot run {value}: it needs the retired tokens in the denominator.\n"
                "Use execution=masked, or the method without preset=paper."
            )
        if value in ("packed", "narrowed") and self.method.needs_pads:
            raise SkimError(
                f"The published {self.method.name} computes with the padding, so it cannot run {value}.\n"
                "Use execution=masked, or the method without preset=paper."
            )
        self._execution = value

    def form(self) -> str:
        """The execution of the next forward."""
        method = self.deciding
        if self.model.training and method.trains_masked:
            return "masked"  # whatever was asked for: tokens that are gone have no gradient to learn from
        if self._execution != "auto":
            return self._execution
        if method.retired_run_on or method.needs_pads or not method.inside_softmax:
            return "masked"  # as published, which is not what removing tokens gives
        return "packed" if self.backbone.packs else "narrowed"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs, wants_states, wants_tuple = self._read(args, kwargs)
        self._check_attention()
        base, backbone, method = self.base, self.backbone, self.deciding
        learns = self.model.training and torch.is_grad_enabled()
        if learns:
            self._watch.look(self.model, method)
        form = self.form()
        if not (learns or wants_states or self.keeps_states) and self._by_graphs(form, inputs.device):
            done = self.graphed.forward(self, inputs)
            if done is not None:
                output, self._last.value = done
                return backbone.as_tuple(output) if wants_tuple else output
        hidden = backbone.embed(base, inputs)
        real = inputs.real(hidden)
        static = self._on_static_rows(form, hidden.device)
        total = self._tell(real, form, inputs.attention_mask is None, static)
        protected = method.protected(real, inputs.input_ids, self.head.place)
        run_on = form == "masked" and method.retired_run_on
        sequences = Sequences(real, protected, method.covers, run_on, self.head.place, total, inputs.input_ids)
        tokens: TokenBatch = (StaticTokens if static else self.forms[form]).start(hidden, sequences)
        if not tokens.hidden.numel():  # packed, and every text is empty: no layer takes zero rows
            form, tokens = "masked", MaskedTokens.start(hidden, sequences)
        trace = Trace(sequences, form)
        costs = [backbone.charged(cost, inputs) for cost in self.costs]
        step = Steps(base, backbone, method, self.head, self.heads, costs, inputs, sequences, learns)
        states = []
        layers = backbone.layers(base)
        for i, layer in enumerate(layers):
            if wants_states:
                states.append(tokens.restore())
            tokens = step.enter(i, tokens).between(len(layers) - 1 - i)
            tokens, ran = step(i, layer, tokens)
            trace.layers.append(ran)
            if self.keeps_states:
                trace.states.append(tokens)
        trace.carry = tokens.carry
        hidden = method.restore(tokens)
        if inputs.attention_mask is not None and form != "packed":  # there, who has no token has no state either
            hidden = hidden.masked_fill(~real.any(1)[:, None, None], 0.0)
        output = backbone.finish(base, hidden)
        if wants_states:
            output.hidden_states = backbone.hidden_states(base, states, hidden, output)
        self._last.value = trace
        return backbone.as_tuple(output) if wants_tuple else output

    def _tell(self, real: Tensor, form: str, whole: bool, static: bool) -> int | None:
        """Read what the host has to know before the first layer: on a GPU it waits for that, and so all at once.

        Args:
            real: ``(B, N)`` bool.
            form: the execution.
            whole: the caller gave no mask, so that all is real.
            static: for static rows, which begin with the number of real tokens.

        Returns:
            That number, for them.

        Raises:
            SkimError: padding stands where the head reads.
        """
        if static:
            return self.hear(self.told(real, whole), real, whole)
        if self.head.reads is not None and not whole:
            check_read(real, self.head.reads, form)
        method = self.deciding
        if (asks := method.asks()) is not None:
            method.answered(asks.tolist())
        return None

    def told(self, real: Tensor, whole: bool) -> Tensor | None:
        """Put together all that the host has to know of a static forward: real tokens, whether they fit, answers."""
        reads, asks = self.head.reads, self.deciding.asks()
        if whole:
            return asks
        wrong = real.new_zeros(1) if reads is None else misread(real, reads)
        numbers = precise(torch.stack([real.sum(), wrong.sum()]))
        return numbers if asks is None else torch.cat([numbers, asks.to(numbers)])

    def hear(self, told: Tensor | None, real: Tensor, whole: bool) -> int:
        """Read what was :meth:`told`, the one time that the host waits; returns the number of real tokens."""
        answers = [] if told is None else told.tolist()
        total, wrong = (real.numel(), 0) if whole else (int(answers.pop(0)), int(answers.pop(0)))
        if self.head.reads is not None and wrong:
            check_read(real, self.head.reads, "packed")
        if answers:
            self.deciding.answered(answers)
        return total

    def _on_static_rows(self, form: str, device: torch.device) -> bool:
        """Tell whether this forward runs on static rows: packed on a GPU in inference, unless somebody has chosen."""
        if self.static is None:
            inference = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
            return form == "packed" and device.type == "cuda" and inference
        return form == "packed" and self.static

    def _by_graphs(self, form: str, device: torch.device) -> bool:
        """Tell whether this forward is one for graphs: on static rows, and not switched off."""
        graphs = device.type == "cuda" if self.graphs is None else self.graphs
        return graphs and self._on_static_rows(form, device)

    def _check_attention(self) -> None:
        """Refuse to run when somebody has chosen another attention since: it would not know who is there."""
        chosen = self.base.config._attn_implementation
        if self.backbone.packs and chosen != "skim":
            raise SkimError(
                f"{type(self.model).__name__} was told to use attention '{chosen}' after skim.compress, which needs "
                "its own.\nskim.decompress(model) first and choose then; "
                "model.set_attn_implementation('skim') takes it back."
            )

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Inputs, bool, bool]:
        """Sort out a Hugging Face call: the inputs, whether all hidden states are wanted, whether a tuple is."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        config = self.base.config
        wants_states = given.pop("output_hidden_states", None)
        wants_states = config.output_hidden_states if wants_states is None else wants_states
        if given.pop("output_attentions", None) or getattr(config, "output_attentions", False):
            raise SkimError(
                "output_attentions is not available on a compressed model: no execution keeps the probabilities.\n"
                "skim.decompress(model) first, or load the backbone with attn_implementation='eager'."
            )
        wants_dict = given.pop("return_dict", None)
        wants_tuple = not (config.return_dict if wants_dict is None else wants_dict)
        for name in ("use_cache", "num_items_in_batch"):  # of decoders, and of the head's loss: heads hand them on
            given.pop(name, None)
        inputs = Inputs(**{name: given.pop(name, None) for name in INPUTS})
        extra = [name for name, value in given.items() if value is not None and value is not False]
        if extra:
            raise SkimError(f"{type(self.base).__name__} under skim does not take {', '.join(extra)}.")
        return inputs, bool(wants_states), wants_tuple


def walk_of(model: nn.Module) -> Walk:
    """The walk of a compressed model; a SkimError for any other."""
    walk = getattr(whole_of(model), "skim_walk", None)
    if walk is None:
        raise SkimError("This model is not compressed; skim.compress(model, method) first.")
    return walk
