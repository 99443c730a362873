"""Other forwards for a time: those that scoring puts on modules, and no compiled ones.

What scoring puts in the place of forwards is another for every run, and every block has another
size: torch.compile would compile anew each time, up to its limit, and gain nothing. So while avops
runs a model, its modules run as they are written.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMPILED_CALL = "_compiled_call_impl"
"""What ``module.compile()`` sets on a module, and its calls then take."""

ORIGINAL = "_torchdynamo_orig_callable"
"""Where a function that torch.compile made keeps the one that it was made of."""


@contextmanager
def replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """The module's forward is another within the context, for the thread that is in it."""
    own, given, me = module.__dict__.get("forward"), module.forward, get_ident()

    def mine(*args: Any, **kwargs: Any) -> Any:
        return (forward if get_ident() == me else given)(*args, **kwargs)

    module.__dict__["forward"] = mine
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


def bare(model: Any) -> Any:
    """The model in the wrapper that ``torch.compile(model)`` returns; any other as it is."""
    # By name: torch._dynamo takes a second to import.
    return model._orig_mod if type(model).__name__ == "OptimizedModule" else model  # noqa: SLF001


@contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Within the context, no module of ``model`` runs compiled code."""
    with ExitStack() as stack:
        for module in model.modules():
            own = vars(module)
            if (plain := getattr(own.get("forward"), ORIGINAL, None)) is not None:
                stack.enter_context(replaced(module, plain))
            if (call := own.get(COMPILED_CALL)) is not None:
                own[COMPILED_CALL] = None
                stack.callback(own.__setitem__, COMPILED_CALL, call)
        yield
