"""Models and tokenizers: the only file in avops that imports transformers.

A checkpoint's own names decide: a tensor that is missing, left over or of another shape is an
error, where transformers would draw random numbers and print advice. Pickled weights and remote
code are never loaded. A local directory never touches the network; a hub id goes through the
hub's own cache.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from avops.errors import CheckpointError, DataError, MismatchError, MissingExtraError
from avops.score.device_map import check_device_map, check_placed
from avops.score.mapped_files import copy_out, mapped_files
from avops.score.widening import dtype_to_widen, widened

try:
    import torch
    import transformers
    from transformers.utils import logging
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "loading a model") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from os import PathLike

    from tokenizers import Tokenizer as BackendTokenizer

    from avops.score.device_map import DeviceMap

_hf: Any = transformers  # its annotations are incomplete: results are typed at our own border
_logging: Any = logging

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""owner/name, the only text that is ever looked up on the hub."""

IMPLEMENTATION = "_attn_implementation_internal"
"""Where a config keeps its attention implementation; the public name would set sub-configs too."""

SHOWN = 5
"""Tensor names shown in an error; the rest is counted."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and advice, and put its settings back afterwards."""
    verbosity = _logging.get_verbosity()
    bars = _logging.is_progress_bar_enabled()
    _logging.set_verbosity(_logging.CRITICAL)
    _logging.disable_progress_bar()
    try:
        yield
    finally:
        _logging.set_verbosity(verbosity)
        if bars:
            _logging.enable_progress_bar()


def load_tokenizer(path: str | PathLike[str]) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer in a directory (or of a hub id), chat template included."""
    source, local = _locate(path)
    with quiet(), _loading("tokenizer", source, "tokenizer.json and tokenizer_config.json"):
        tokenizer = _hf.AutoTokenizer.from_pretrained(
            source, local_files_only=local, trust_remote_code=False
        )
    return cast(transformers.PreTrainedTokenizerBase, tokenizer)


def load_model(
    config_dir: str | PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    device_map: DeviceMap | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> transformers.PreTrainedModel:
    """A causal LM in eval mode with ``use_cache=False``, on ``device`` in ``dtype``.

    Parameters
    ----------
    config_dir
        A directory with ``config.json`` (and, without ``weights``, safetensors files), or a hub id.
    dtype, device
        Where the parameters live; ``weights`` are converted, rounded to nearest even.
    device_map
        Instead of ``device``: how accelerate cuts the model over several, see ``DeviceMap``.
    weights
        Every parameter by its checkpoint name; only ``config.json`` is then read. The model gets
        copies, so the caller's tensors stay as they are when the model's weights are changed. A
        name tied to another by the config may be left out; where both are there and differ, both
        are kept, untied.

    Raises
    ------
    CheckpointError
        No such directory, no config, an unknown architecture or unreadable weights.
    MismatchError
        Missing, unexpected or wrongly shaped tensors, or a map of another model.
    UserError
        A map that is none, or leaves weights to the CPU or to disk.

    """
    source, local = _locate(config_dir)
    kwargs: dict[str, Any] = {"dtype": dtype, "local_files_only": local}
    if device_map is not None:
        kwargs["device_map"] = check_device_map(device_map)
    with quiet():
        model, info = _from_pretrained(source, weights, kwargs)
    _check_loaded(info, source)
    if device_map is not None:
        check_placed(model, device_map, source)
    _own_memory(model, weights)
    _keep_caps(model)
    model.config.use_cache = False
    placed = model.to(device) if device_map is None else model
    return cast(transformers.PreTrainedModel, placed.eval())


def _from_pretrained(
    source: str, weights: Mapping[str, torch.Tensor] | None, kwargs: dict[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """The model, and what transformers says of every tensor that did not fit."""
    kwargs["output_loading_info"] = True
    kwargs["ignore_mismatched_sizes"] = True  # reported with all names, instead of half loaded
    with _loading("config", source, "config.json"):
        config = _hf.AutoConfig.from_pretrained(
            source, local_files_only=kwargs["local_files_only"], trust_remote_code=False
        )
    if weights is not None:
        with _loading("model", source, "a config.json that fits the weights"):
            model, info = _architecture(config).from_pretrained(
                None, config=config, state_dict=dict(weights), **kwargs
            )
        return model, info
    load, stored = _hf.AutoModelForCausalLM.from_pretrained, dtype_to_widen(config, kwargs)
    kwargs |= {"config": config, "use_safetensors": True, "trust_remote_code": False}
    with _loading("model", source, "config.json and .safetensors weights"):
        if stored is not None:
            model, info = load(source, **kwargs | {"dtype": stored})
            if widened(model, stored):
                return model, info
            del model
        model, info = load(source, **kwargs)
    return model, info


def new_model(config: Mapping[str, Any]) -> transformers.PreTrainedModel:
    """A causal LM with random f32 weights, in training mode, from the contents of a config.json.

    ``config["model_type"]`` names the architecture (``"mistral"``). The weights come from torch's
    global generator: call ``torch.manual_seed`` first.
    """
    if "model_type" not in config:
        raise DataError(
            f"model config: no 'model_type' among {sorted(config)}; "
            "name the architecture, such as 'mistral'"
        )
    with quiet(), _loading("model", "the given config", "a known model_type"):
        parsed = _hf.AutoConfig.for_model(**config)
        model = _hf.AutoModelForCausalLM.from_config(parsed, dtype=torch.float32)
    _keep_caps(model)
    return cast(transformers.PreTrainedModel, model.train())


def new_tokenizer(
    backend_tokenizer: BackendTokenizer, **special: Any
) -> transformers.PreTrainedTokenizerFast:
    """Wrap a ``tokenizers.Tokenizer``; ``special`` are bos_token, eos_token, chat_template, ..."""
    tokenizer = _hf.PreTrainedTokenizerFast(tokenizer_object=backend_tokenizer, **special)
    return cast(transformers.PreTrainedTokenizerFast, tokenizer)


def save_model(
    path: str | PathLike[str],
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
) -> None:
    """Write model (and tokenizer) as a checkpoint directory, quietly."""
    with quiet():
        model.save_pretrained(path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)


@contextmanager
def attention(model: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within the context, the model's attention is ``function``, registered as ``name``.

    Every config that a module of the model reads is set, and set back: also those that another
    part of the model shares.
    """
    _hf.AttentionInterface.register(name, function)
    configs = {id(config): config for config in _configs(model)}
    own = [(config, getattr(config, IMPLEMENTATION)) for config in configs.values()]
    try:
        for config, _ in own:
            setattr(config, IMPLEMENTATION, name)
        yield
    finally:
        for config, implementation in own:
            setattr(config, IMPLEMENTATION, implementation)


def _configs(model: Any) -> Iterator[Any]:
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, IMPLEMENTATION):
            yield config


def _keep_caps(model: Any) -> None:
    """Write attention out where it caps scores: sdpa drops the cap, in some versions silently."""
    for config in _configs(model):
        capped = getattr(config, "attn_logit_softcapping", None) is not None
        if capped and getattr(config, IMPLEMENTATION) == "sdpa":
            setattr(config, IMPLEMENTATION, "eager")


def _locate(path: str | PathLike[str]) -> tuple[str, bool]:
    """(directory or hub id, whether it is local)."""
    text = str(path)
    if Path(text).is_dir():
        return str(Path(text)), True  # "" is the current directory to Path, not to transformers
    if isinstance(path, str) and HUB_ID.fullmatch(text) and not Path(text).exists():
        return text, False
    raise CheckpointError(
        f"{text}: not a directory, expected one with config.json and tokenizer files "
        "(or a hub id such as owner/name); check the path"
    )


@contextmanager
def _loading(what: str, source: str, needed: str) -> Iterator[None]:
    """Turn whatever transformers and its libraries raise into one CheckpointError.

    They share no base class: OSError, ValueError, SafetensorError, dataclass errors and others.
    """
    if HUB_ID.fullmatch(source) and not Path(source).is_dir():
        source = f"{source} (no such directory here, so taken as a hub id)"
    try:
        yield
    except Exception as error:
        reason = textwrap.shorten(str(error), width=240, placeholder=" …")
        raise CheckpointError(
            f"{source}: the {what} cannot be loaded; expected {needed}; "
            f"transformers says: {reason} ({type(error).__name__})"
        ) from error


def _architecture(config: Any) -> Any:
    """The causal LM class of ``config``, found without allocating any weights."""
    with torch.device("meta"):
        return type(_hf.AutoModelForCausalLM.from_config(config))


def _check_loaded(info: Mapping[str, Any], source: str) -> None:
    """Every parameter came from the weights, and every weight has a parameter."""
    shapes = [
        f"{name} (the weights have {list(got)}, the config wants {list(expected)})"
        for name, got, expected in sorted(info["mismatched_keys"])
    ]
    problems = [
        f"{len(names)} {label}: {', '.join(names[:SHOWN])}{', …' * (len(names) > SHOWN)}"
        for label, names in (
            ("missing", sorted(info["missing_keys"])),
            ("unexpected", sorted(info["unexpected_keys"])),
            ("of another shape", shapes),
        )
        if names
    ]
    if info["error_msgs"]:
        problems.append("; ".join(info["error_msgs"]))
    if problems:
        raise MismatchError(
            f"{source}: the weights do not fit its config.json: {'; '.join(problems)}; "
            "check that config and weights belong together"
        )


def _own_memory(model: Any, weights: Mapping[str, torch.Tensor] | None) -> None:
    """Give every tensor memory of its own, aligned to 64 bytes.

    transformers hands out the caller's tensors, or views of a file mapping: weights changed in
    place would change those too. Matrix products may round differently at another alignment, so
    the same weights give the same bits however they were loaded.
    """
    given = {tensor.untyped_storage().data_ptr() for tensor in (weights or {}).values()}
    # The caller's tensors are the caller's, wherever they are.
    mapped = mapped_files() if weights is None else []
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.untyped_storage().data_ptr() in given or tensor.data_ptr() % 64:
            tensor.data = copy_out(tensor.data, mapped)
