"""Inversions of one volume made inversions of many."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def one_by_one(invert: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A function of volumes (x, y, z), made one of (*batch, x, y, z) that takes the members of a batch in turn.

    The first argument says what the batch is; others may be one volume for all.
    """

    @wraps(invert)
    def of_batch(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given = [*args, *kwargs.values()]
        shape = given[0].shape if isinstance(given[0], Tensor) else ()
        if len(shape) <= 3:
            return invert(*args, **kwargs)

        def member(index: int, value: object) -> object:
            if not isinstance(value, Tensor):
                return value
            return value.expand(shape).reshape(-1, *shape[-3:])[index]

        members = []
        for index in range(shape[:-3].numel()):
            own = {name: member(index, value) for name, value in kwargs.items()}
            members.append(invert(*(member(index, value) for value in args), **own))  # pyright: ignore
        return torch.stack(members).reshape(shape)

    return of_batch
