"""Layers of known architectures with fused operations, for the time of a run.

Between its matrix products a layer of transformers makes a dozen passes over memory, and allocates
several times what it returns: that leaves the caches, and goes back to the system between two
layers. Here the operations ``rms_norm`` and ``rope`` do it in a pass each. Where native products
are faster than torch's, ``linear`` projects query, key and value together and ``gated_mlp`` is the
whole MLP; elsewhere products are torch's, an MLP's go into two buffers that last, and ``swiglu`` is
between them. The last layer's MLP computes only the rows that are scored. Weights are read where
they lie.

Served are transformers' own classes of the names below, unchanged, as far as a module is in f32 or
bf16 and where all operations serve: on the CPU, and on GPUs by Triton. With native products,
torch's own linear layers are served in any architecture. That they compute what is computed here is
seen by the self-check, which runs the packed path with this and the exact one without
(``check.py``).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from avops.errors import MissingExtraError
from avops.kernels import Workspace, gated_mlp, linear, rms_norm, rope, swiglu
from avops.score.choices import no_fusing, no_products
from avops.score.forwards import replaced

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from avops.kernels.linear import Projection

    Forward = Callable[..., Any]

NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
MLPS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
ATTENTIONS = frozenset({"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention"})
LAYERS = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)

SILU = frozenset({"SiLU", "SiLUActivation"})
"""Names of the classes of an ``act_fn`` that is x / (1 + e⁻ˣ)."""


class Fused:
    """The layers of one model.

    rows: what the last layer's MLP is to compute, in order; None for all. served: how many modules
    the latest session had.
    """

    def __init__(self, model: Any) -> None:
        self.served = 0
        self.rows: torch.Tensor | None = None
        self._model = model
        self._rooms: list[torch.Tensor] = []
        self._workspace = Workspace()

    @contextmanager
    def session(self, attend: Forward) -> Iterator[None]:
        """Within the context, known modules compute as above. attend: the attention function."""
        with ExitStack() as stack:
            forwards = self._forwards(attend)
            for module, forward in forwards:
                stack.enter_context(replaced(module, forward))
            self.served = len(forwards)
            yield

    def _forwards(self, attend: Forward) -> list[tuple[Any, Forward]]:
        found: list[tuple[Any, Forward]] = []
        layers = getattr(getattr(self._model, "model", None), "layers", None) or [None]
        head = self._model.get_output_embeddings()
        for module in self._model.modules():
            name = type(module).__name__
            if _is_linear(module) and module is not head and _products(module.weight):
                found.append((module, self._projection(module)))
            if not _unchanged(module):
                continue
            if name in NORMS and _plain(module.weight):
                found.append((module, _norm(module)))
            elif name in MLPS and _is_mlp(module):
                found.append((module, self._mlp(module)))
            elif name in ATTENTIONS and _are_linear(module, "qkvo"):
                found.append((module, self._attention(module, attend)))
            elif name in LAYERS and module is layers[-1] and _is_one_place(module):
                found.append((module, self._last_layer(module)))
        return found

    def _mlp(self, module: Any) -> Forward:
        parts = [module.gate_proj, module.up_proj, module.down_proj]

        def forward(x: torch.Tensor) -> torch.Tensor:
            rows = x.flatten(0, -2)
            down: torch.Tensor
            if _products(rows):
                three = [_weights(part) for part in parts]
                down = gated_mlp(rows, *three, workspace=self._workspace, backend="native")
                return down.view(*x.shape[:-1], -1)
            gate, up = self._room(rows, module.gate_proj.weight.shape[0])
            _project(rows, module.gate_proj, gate)
            _project(rows, module.up_proj, up)
            down = module.down_proj(swiglu(gate, up))
            return down.view(*x.shape[:-1], -1)

        return forward

    def _last_layer(self, module: Any) -> Forward:
        """Rows that are not scored end as they leave the attention: nobody looks at them."""

        def forward(hidden_states: torch.Tensor, **asked: Any) -> torch.Tensor:
            normed = module.input_layernorm(hidden_states)
            attended, _ = module.self_attn(hidden_states=normed, **asked)
            hidden = hidden_states + attended
            if self.rows is None:
                whole: torch.Tensor = hidden + module.mlp(module.post_attention_layernorm(hidden))
                return whole
            flat = hidden.view(-1, hidden.shape[-1])
            scored = self.rows.to(flat.device)
            some = flat.index_select(0, scored)
            some += module.mlp(module.post_attention_layernorm(some))
            flat.index_copy_(0, scored, some)
            given: torch.Tensor = hidden
            return given

        return forward

    def _attention(self, module: Any, attend: Forward) -> Forward:
        name = type(module).__name__

        def forward(
            hidden_states: torch.Tensor,
            position_embeddings: tuple[torch.Tensor, torch.Tensor],
            attention_mask: torch.Tensor | None = None,
            past_key_values: Any = None,
            **asked: Any,
        ) -> Any:
            cosine, sine = position_embeddings
            rows, size = hidden_states.shape[1], module.head_dim
            own = past_key_values is not None or hidden_states.shape[0] != 1
            if own or not cosine.shape == sine.shape == (1, rows, size):
                return type(module).forward(
                    module,
                    hidden_states,
                    position_embeddings,
                    attention_mask,
                    past_key_values,
                    **asked,
                )
            if name != "LlamaAttention":
                source = module.config if name == "MistralAttention" else module
                asked["sliding_window"] = getattr(source, "sliding_window", None)
            three = (module.q_proj, module.k_proj, module.v_proj)
            parts = [part.view(rows, -1, size) for part in self._linear(hidden_states[0], *three)]
            if name == "Qwen3Attention":
                parts[:2] = module.q_norm(parts[0]), module.k_norm(parts[1])
            for part in parts[:2]:
                rope(part, cosine[0].contiguous(), sine[0].contiguous())
            query, key, value = (part.transpose(0, 1)[None] for part in parts)
            out, _ = attend(
                module, query, key, value, attention_mask, scaling=module.scaling, **asked
            )
            (hidden,) = self._linear(out.reshape(rows, -1), module.o_proj)
            return hidden[None], None

        return forward

    def _projection(self, module: Any) -> Forward:
        def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
            weight = module.weight
            if input.dtype != weight.dtype or torch.is_grad_enabled() or not input.numel():
                return torch.nn.functional.linear(input, weight, module.bias)
            rows = input.reshape(-1, input.shape[-1]).contiguous()
            (out,) = self._linear(rows, module)
            return out.view(*input.shape[:-1], weight.shape[0])

        return forward

    def _linear(self, rows: torch.Tensor, *modules: Any) -> list[torch.Tensor]:
        if not _products(rows):
            return [
                torch.nn.functional.linear(rows, module.weight, module.bias) for module in modules
            ]
        parts = [_weights(module) for module in modules]
        return linear(rows, parts, workspace=self._workspace, backend="native")

    def _room(self, rows: torch.Tensor, width: int) -> list[torch.Tensor]:
        """Two [rows, width] pieces of the buffers, which grow and are never given back."""
        size, kind = rows.shape[0] * width, (rows.dtype, rows.device)
        held = [(room.dtype, room.device) for room in self._rooms if room.numel() >= size]
        if held != [kind, kind]:
            self._rooms = []  # before more is taken
            # Memory made in inference mode could not be written outside of it.
            with torch.inference_mode(mode=False):
                self._rooms = [rows.new_empty(size) for _ in range(2)]
        return [room[:size].view(rows.shape[0], width) for room in self._rooms]


def _norm(module: Any) -> Forward:
    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        epsilon = module.variance_epsilon
        done = rms_norm(rows, module.weight, epsilon)
        return done.view(hidden_states.shape)

    return forward


def _products(like: torch.Tensor) -> bool:
    """Whether native products serve: faster than torch's, and nothing else is asked for."""
    return no_products(like.device.type, like.dtype) is None


def _weights(projection: Any) -> Projection:
    return projection.weight, projection.bias


def _project(rows: torch.Tensor, projection: Any, out: torch.Tensor) -> None:
    weight, bias = projection.weight, projection.bias
    if bias is None:
        torch.mm(rows, weight.T, out=out)
    else:
        torch.addmm(bias, rows, weight.T, out=out)


def _is_mlp(module: Any) -> bool:
    parts = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    return type(module.act_fn).__name__ in SILU and all(_is_linear(part) for part in parts)


def _are_linear(module: Any, letters: str) -> bool:
    return all(_is_linear(getattr(module, f"{letter}_proj", None)) for letter in letters)


def _is_linear(module: Any) -> bool:
    if type(module) is not torch.nn.Linear or _hooked(module) or not _plain(module.weight):
        return False
    weight, bias = module.weight, module.bias
    return bias is None or (
        _plain(bias) and (bias.dtype, bias.device) == (weight.dtype, weight.device)
    )


def _plain(weight: torch.Tensor) -> bool:
    """Whether its values lie where it says: subclasses of tensors may have others, or none."""
    own = type(weight) in (torch.Tensor, torch.nn.Parameter)
    return own and weight.is_contiguous() and _serves(weight.device.type, weight.dtype)


def _serves(device: str, dtype: torch.dtype = torch.float32) -> bool:
    """Whether all operations between products have more than the reference there."""
    return no_fusing(device, dtype) is None


def _is_one_place(layer: Any) -> bool:
    """Whether a layer's weights are all on one device, of a type that is served."""
    devices = {weight.device for weight in layer.parameters()}
    return len(devices) == 1 and _serves(devices.pop().type)


def _unchanged(module: Any) -> bool:
    """Whether a module is of transformers' own, and nobody has changed what it does."""
    own = type(module).__module__.startswith("transformers.models.")
    return own and not _hooked(module)


def _hooked(module: Any) -> bool:
    """Whether a forward of its own, or a hook, is set on a module."""
    hooks = module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001
    return "forward" in vars(module) or bool(hooks)
